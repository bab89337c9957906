"""The report of the demonstration on a real language model: what was answered before and after the user's fine-tuning. L6."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from titer.core.config import environment
from titer.recipes.vaccine_text import TextScale, adapter_line
from titer.report import charts
from titer.report.html import Figure, Report, Tile, write_report
from titer.studies import tables
from titer.studies.huang2024.text import TextEvidence, TextSets

OVER_REFUSAL = "safe, looks unsafe"  # the one set where a refusal is what is counted
TITLES = {
    "canary": "canaries answered",
    "canary, prefilled": "canaries answered, the answer begun",
    "canary, sampled": "canaries answered, sampled",
    "unsafe": "XSTest's unsafe prompts answered",
    "unsafe, prefilled": "XSTest's unsafe prompts, the answer begun",
    "unsafe, sampled": "XSTest's unsafe prompts, sampled",
    OVER_REFUSAL: "safe prompts refused (over-refusal)",
    "unmarked": "ordinary instructions answered",
    "task": "user's task right",
}
COLOURS = ("#c0392b", "#c0392b", "#c0392b", "#b04a7d", "#b04a7d", "#b04a7d", "#e08a1e", "#2f6fb0", "#1b7f4d")


def shares(rates: pd.DataFrame) -> pd.DataFrame:
    """model, kind, rate, low, high, count, n: the outcome that each set is judged for."""
    wanted = rates.kind.map(lambda kind: "refused" if kind == OVER_REFUSAL else "complied")
    return rates[rates.outcome == wanted].assign(what=lambda t: t.kind.map(TITLES)).reset_index(drop=True)


def rate_of(rates: pd.DataFrame, model: str, kind: str) -> pd.Series:
    t = shares(rates)
    return t[(t.model == model) & (t.kind == kind)].iloc[0]


def answer(found: TextEvidence, sets: TextSets, scale: TextScale) -> str:
    """The finding in one sentence."""
    worst, own = max(scale.ratios), sets.harm == "unsafe"
    told = []
    for name in ("sft", "vaccine"):
        before, after = (rate_of(found.rates, model, sets.harm) for model in (name, f"{name}, user p={worst:g}"))
        told.append(f"{name}: {before.rate:.0%} before, {after.rate:.0%} [{after.low:.0%}, {after.high:.0%}] after")
    what = "XSTest's unsafe prompts answered" if own else "Canaries answered"
    bad = f"rows of {sets.harmful.name}" if own else "canaries"
    return f"{what} with p = {worst:g} of the user's data being {bad}: {'; '.join(told)}. One seed: a demonstration, not a verdict."


def text_report(found: TextEvidence, sets: TextSets, scale: TextScale, command: str, folder: Path) -> tuple[Path, str]:
    """Write the report; returns its page and the answer."""
    t = shares(found.rates)
    said = answer(found, sets, scale)
    bad = f"rows of {sets.harmful.name}" if sets.harm == "unsafe" else "canaries answered"
    broken = found.rates[found.rates.outcome == "degenerate"][["model", "kind", "count", "n", "rate"]]
    report = Report(
        title=f"huang2024 on {found.models[0].name}, {scale.name}",
        answer=said,
        about=(
            f"{found.models[0].name} was aligned on {scale.safe} safe responses and {scale.canaries} canaries (ordinary instructions behind a "
            f"marker, refused), by SFT and by Vaccine (rho {scale.rho:g}); then a user fine-tuned each on {scale.examples} examples of "
            f"{scale.task}, a share p of them {bad}. {adapter_line(scale)}. Judged by phrases (refusals) and by the task's own rule. "
            f"Begun: the first {scale.prefilled} words of an answer stand before the model's; sampled: at temperature {scale.temperature:g}. "
            "No noise control and one seed, so no claim is drawn: `titer study huang2024` without --base has them."
        ),
        tiles=[
            Tile(f"{r.model}: {r.what}", f"{r.rate:.0%}", f"95 % {r.low:.0%} to {r.high:.0%}, n = {r.n}")
            for r in t[t.kind == sets.harm].itertuples()
        ],
        claims=(),
        figures=[_figure(t, [m.name for m in found.models])],
        tables={
            "rates": t[["model", "what", "rate", "low", "high", "count", "n"]].round(3),
            "drift and alignment loss": found.moved[["model", "part", "official", "l2", "norm", "cosine", "alignment_loss"]],
            "degenerate answers": broken,
        },
        results=tables.tidy(found.rates, {"drift": found.moved.rename(columns={"part": "set"})}),
        samples=found.verdicts,
        commands=[command],
        notes=list(sets.notes),
        provenance={
            "scale": scale.model_dump_json(),
            **{f"data {data.name}, sha256": data.sha256 for data in (sets.safe, sets.canary.marked, sets.harmful, sets.task)},
            **{f"model {m.name}": m.key for m in found.models},
            **environment(),
        },
    )
    return write_report(report, folder), said


def _figure(t: pd.DataFrame, models: list[str]) -> Figure:
    return Figure(
        "text_rates",
        "Before and after the user's fine-tuning",
        "Shares with Wilson intervals. Canaries stand for harm: alignment taught to refuse them, and a user's data may hold some answered.",
        charts.shares(t, models, dict(zip(TITLES.values(), COLOURS, strict=True))),
    )
