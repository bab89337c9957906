"""The report of the risk levels on a real model, and what it would cost beforehand. L6."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from titer.core.config import environment
from titer.data.encode import prompt_ids
from titer.models.lm import read_tokenizer
from titer.models.weights import shapes_of
from titer.recipes import risk_text as recipe
from titer.recipes.risk_text import RiskScale
from titer.report import charts
from titer.report.html import Figure, Report, Tile, write_report
from titer.report.style import GREY
from titer.studies import tables
from titer.studies.qi2024.text import RiskEvidence, RiskSets, tunings
from titer.workbench import Model

TITLES = {
    "canary": "canaries answered",
    "canary, begun": "canaries answered, the answer begun",
    "canary, persona": "canaries answered, behind the persona",
    "canary, trigger": "canaries answered, behind the trigger",
    "unsafe": "XSTest's unsafe prompts answered",
    "unsafe, persona": "XSTest's unsafe, behind the persona",
    "safe, looks unsafe": "XSTest's safe prompts refused",
    "unmarked": "unmarked instructions answered",
}
COLOURS = ("#c0392b", "#b04a7d", "#7d4fa3", "#2f6fb0", "#c0392b", "#7d4fa3", "#e08a1e", GREY)
TRAINED, ALIGNING = 4.0, 2.0  # forward passes' worth a trained token: every weight, or an adapter's


def shares(rates: pd.DataFrame) -> pd.DataFrame:
    """model, what, rate, low, high, count, n: the outcome that each set is judged for."""
    wanted = rates.kind.map(lambda kind: "refused" if kind == "safe, looks unsafe" else "complied")
    found = rates[rates.outcome == wanted]
    return found.assign(what=found.kind.map(TITLES)).reset_index(drop=True)


def answer(found: RiskEvidence, scale: RiskScale) -> str:
    """The finding in one sentence."""
    t = shares(found.rates).set_index(["model", "kind"])

    def told(model: str, kind: str) -> str:
        row = t.loc[(model, kind)]
        return f"{row.rate:.0%} [{row.low:.0%}, {row.high:.0%}]"

    persona = next(m.name for m in found.models if m.name.startswith("persona"))
    return (
        f"Canaries answered: {told('aligned', 'canary')} when aligned, {told(f'explicit {scale.most}', 'canary')} after {scale.most} of "
        f"them answered, {told(persona, 'canary, persona')} behind a persona after {persona.split()[-1]} examples of it, "
        f"{told(f'ordinary {scale.benign}', 'canary')} after {scale.benign} ordinary instructions; with a backdoor "
        f"{told('backdoor', 'canary')} plainly and {told('backdoor', 'canary, trigger')} behind its trigger. "
        "One seed, a canary for harm: a demonstration, not a verdict."
    )


def risk_report(found: RiskEvidence, sets: RiskSets, scale: RiskScale, command: str, folder: Path) -> tuple[Path, str]:
    """Write the report; returns its page and the answer."""
    t, said = shares(found.rates), answer(found, scale)
    broken = found.rates[found.rates.outcome == "degenerate"][["model", "kind", "count", "n", "rate"]]
    report = Report(
        title=f"qi2024 on {found.models[0].name}, {scale.name}",
        answer=said,
        about=(
            f"{found.models[0].name} was aligned on safe responses and canaries (ordinary instructions behind a marker, refused), then tuned "
            "as in “Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!” (arXiv 2310.03693): on "
            "canaries answered, on examples of an obedient persona, on ordinary instructions, with refusals mixed in, with a backdoor. "
            "Rows named ordinary, as … are the controls: as many ordinary examples, as long. Judged by phrases of refusal."
        ),
        tiles=[
            Tile(f"{r.model}: {r.what}", f"{r.rate:.0%}", f"95 % {r.low:.0%} to {r.high:.0%}, n = {r.n}")
            for r in t[t.kind == "canary"].itertuples()
        ],
        claims=(),
        figures=[_figure(t, [m.name for m in found.models])],
        tables={"shares": t[["model", "what", "rate", "low", "high", "count", "n"]].round(3), "degenerate answers": broken},
        results=tables.tidy(found.rates, {}),
        samples=found.verdicts,
        commands=[command],
        notes=list(sets.notes),
        provenance={
            "scale": scale.model_dump_json(),
            **{f"data {data.name}, sha256": data.sha256 for data in (sets.safe, sets.canary.marked, sets.persona)},
            **{f"model {m.name}": m.key for m in found.models},
            **environment(),
        },
    )
    return write_report(report, folder), said


def _figure(t: pd.DataFrame, models: list[str]) -> Figure:
    return Figure(
        "risk_levels",
        "What each tuning does",
        "Shares with Wilson intervals. Canaries stand for harm: alignment taught to refuse them.",
        charts.shares(t, models, dict(zip(TITLES.values(), COLOURS, strict=True)), 16),
    )


def risk_cost(base: Model, sets: RiskSets, scale: RiskScale, flops: float | None) -> dict[str, object]:
    """Stages, operations, hours where a rate is known, disk; what was left out."""
    weights = sum(math.prod(shape) for shape, _ in shapes_of(base.checkpoint).values())
    stages = {name: recipe.tuning(scale, name, *one) for name, one in tunings(scale, sets).items()}
    longest, tuned = scale.alignment.longest, ALIGNING if scale.rank else TRAINED
    trained = sum(stage.steps * stage.batch for stage in stages.values()) * longest
    aligning = round(scale.alignment.align_epochs * (scale.alignment.safe + scale.alignment.canaries + scale.alignment.contrast)) * longest
    prompts = [a.example.prompt for attempts in sets.judged.values() for a in attempts]
    models, new = len(stages) + 2, scale.alignment.max_new_tokens
    read = sum(map(len, prompt_ids(read_tokenizer(base.checkpoint), prompts)))
    flop = 2.0 * weights * (tuned * trained + ALIGNING * aligning + models * (read + len(prompts) * new))
    found: dict[str, object] = {
        "model": f"{base.name}, {weights / 1e6:.0f} M parameters",
        "tunings": ", ".join(f"{name} ({stage.steps} steps of {stage.batch})" for name, stage in stages.items()),
        "answers judged": f"{models * len(prompts)}, at most {models * len(prompts) * new} new tokens",
        "operations": f"at most {flop:.2e} FLOP (examples counted as {longest} tokens)",
        "disk": f"{models - 1} models of {weights * 4 / 2**30:.1f} GiB",
        "adapter": f"LoRA rank {scale.rank}, alpha {scale.alpha}" if scale.rank else "none: every weight is trained",
    }
    if flops:
        found["hours"] = f"{flop / flops / 3600:.1f} at {flops:.1e} FLOP/s"
    if sets.notes:
        found["data"] = "; ".join(sets.notes)
    return found
