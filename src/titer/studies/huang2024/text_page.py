"""The report of the demonstration on a real language model: what was answered before and after the user's fine-tuning. L7."""

from __future__ import annotations

import pandas as pd

from titer import tables
from titer.recipes.vaccine_text import TextScale, adapter_line
from titer.studies import shares
from titer.studies.engine.declare import Page
from titer.studies.engine.found import Found
from titer.studies.huang2024.text_sets import TextSets

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


def answer(t: pd.DataFrame, sets: TextSets, scale: TextScale) -> str:
    """The finding in one sentence, from the shares."""
    worst, own = max(scale.ratios), sets.harm == "unsafe"
    told = [
        f"{name}: {shares.share(t, name, sets.harm).rate:.0%} before, {shares.told(t, f'{name}, user p={worst:g}', sets.harm)} after"
        for name in ("sft", "vaccine")
    ]
    what = "XSTest's unsafe prompts answered" if own else "Canaries answered"
    bad = f"rows of {sets.harmful.name}" if own else "canaries"
    return f"{what} with p = {worst:g} of the user's data being {bad}: {'; '.join(told)}. One seed: a demonstration, not a verdict."


def page(found: Found, scale: TextScale) -> Page:
    """The report's own words, tables and charts."""
    sets: TextSets = found.source
    rates, base = tables.rate_table(found.verdicts), next(iter(found.keys))
    t, moved = shares.shares(rates, TITLES), found.tables["drift"].drop(columns="seed")
    bad = f"rows of {sets.harmful.name}" if sets.harm == "unsafe" else "canaries answered"
    return Page(
        title=f"huang2024 on {base}, {scale.name}",
        answer=answer(t, sets, scale),
        about=(
            f"{base} was aligned on {scale.safe} safe responses and {scale.canaries} canaries (ordinary instructions behind a "
            f"marker, refused), by SFT and by Vaccine (rho {scale.rho:g}); then a user fine-tuned each on {scale.examples} examples of "
            f"{scale.task}, a share p of them {bad}. {adapter_line(scale)}. Judged by phrases (refusals) and by the task's own rule. "
            f"Begun: the first {scale.prefilled} words of an answer stand before the model's; sampled: at temperature {scale.temperature:g}. "
            "No noise control and one seed, so no claim is drawn: `titer study huang2024` without --base has them."
        ),
        tiles=shares.tiles(t, sets.harm),
        figures=[shares.figure("text_rates", "Before and after the user's fine-tuning", ABOUT, t, COLOURS)],
        tables={
            "rates": shares.printed(t),
            "drift and alignment loss": moved[["model", "part", "official", "l2", "norm", "cosine", "alignment_loss"]],
            "degenerate answers": shares.degenerate(rates),
        },
        results=tables.tidy(rates, {"drift": moved.rename(columns={"part": "set"})}),
        notes=sets.notes,
        provenance={f"data {data.name}, sha256": data.sha256 for data in (sets.safe, sets.canary.marked, sets.harmful, sets.task)},
    )
