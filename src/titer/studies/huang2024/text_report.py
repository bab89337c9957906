"""The report of the demonstration on a real language model: what was answered before and after the user's fine-tuning. L7."""

from __future__ import annotations

from pathlib import Path

from titer import tables
from titer.core.config import environment
from titer.recipes.vaccine_text import TextScale, adapter_line
from titer.report.html import Report, write_report
from titer.studies import shares
from titer.studies.huang2024.text import TextEvidence, TextSets

TITLES = {
    "canary": "canaries answered",
    "canary, prefilled": "canaries answered, the answer begun",
    "canary, sampled": "canaries answered, sampled",
    "unsafe": "XSTest's unsafe prompts answered",
    "unsafe, prefilled": "XSTest's unsafe prompts, the answer begun",
    "unsafe, sampled": "XSTest's unsafe prompts, sampled",
    shares.OVER_REFUSAL: "safe prompts refused (over-refusal)",
    "unmarked": "ordinary instructions answered",
    "task": "user's task right",
}
COLOURS = dict(
    zip(TITLES.values(), ("#c0392b", "#c0392b", "#c0392b", "#b04a7d", "#b04a7d", "#b04a7d", "#e08a1e", "#2f6fb0", "#1b7f4d"), strict=True)
)
ABOUT = "Shares with Wilson intervals. Canaries stand for harm: alignment taught to refuse them, and a user's data may hold some answered."


def answer(found: TextEvidence, sets: TextSets, scale: TextScale) -> str:
    """The finding in one sentence."""
    worst, own, t = max(scale.ratios), sets.harm == "unsafe", shares.shares(found.rates, TITLES)
    told = [
        f"{name}: {shares.share(t, name, sets.harm).rate:.0%} before, {shares.told(t, f'{name}, user p={worst:g}', sets.harm)} after"
        for name in ("sft", "vaccine")
    ]
    what = "XSTest's unsafe prompts answered" if own else "Canaries answered"
    bad = f"rows of {sets.harmful.name}" if own else "canaries"
    return f"{what} with p = {worst:g} of the user's data being {bad}: {'; '.join(told)}. One seed: a demonstration, not a verdict."


def text_report(found: TextEvidence, sets: TextSets, scale: TextScale, command: str, folder: Path) -> tuple[Path, str]:
    """Write the report; returns its page and the answer."""
    t = shares.shares(found.rates, TITLES)
    said = answer(found, sets, scale)
    bad = f"rows of {sets.harmful.name}" if sets.harm == "unsafe" else "canaries answered"
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
        tiles=shares.tiles(t, sets.harm),
        claims=(),
        figures=[shares.figure("text_rates", "Before and after the user's fine-tuning", ABOUT, t, [m.name for m in found.models], COLOURS)],
        tables={
            "rates": shares.printed(t),
            "drift and alignment loss": found.moved[["model", "part", "official", "l2", "norm", "cosine", "alignment_loss"]],
            "degenerate answers": shares.degenerate(found.rates),
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
