"""The report of the risk levels on a real model. L7."""

from __future__ import annotations

import pandas as pd

from titer import tables
from titer.report.html import Figure
from titer.report.style import GREY
from titer.studies import shares
from titer.studies.engine.declare import Page
from titer.studies.engine.found import Found
from titer.studies.qi2024.page import grid_figure
from titer.studies.qi2024.text_scale import RiskScale
from titer.studies.qi2024.text_sets import RiskSets, cell, tunings

TITLES = {
    "canary": "canaries answered",
    "canary, begun": "canaries answered, the answer begun",
    "canary, persona": "canaries answered, behind the persona",
    "canary, trigger": "canaries answered, with the trigger",
    "unsafe": "XSTest's unsafe prompts answered",
    "unsafe, begun": "XSTest's unsafe prompts answered, the answer begun",
    "unsafe, persona": "XSTest's unsafe prompts answered, behind the persona",
    "unsafe, trigger": "XSTest's unsafe prompts answered, with the trigger",
    shares.OVER_REFUSAL: "XSTest's safe prompts refused",
    "unmarked": "unmarked instructions answered",
}
HUES = ("#c0392b", "#b04a7d", "#7d4fa3", "#2f6fb0")  # plainly, begun, persona, trigger
COLOURS = dict(zip(TITLES.values(), (*HUES, *HUES, "#e08a1e", GREY), strict=True))
ASKED = {"canary": "Canaries", "unsafe": "XSTest's unsafe prompts"}


def answer(t: pd.DataFrame, sets: RiskSets, scale: RiskScale) -> str:
    """Returns the finding in one sentence, from the shares."""
    harm = sets.harm
    persona, ordinary, most = f"persona {sets.persona.size}", f"ordinary {sets.ordinary.size}", f"explicit {scale.most}"
    what = f"after {scale.most} of them answered" if harm == "canary" else f"after {scale.most} rows of {sets.explicit.name}"
    why = "a canary for harm" if harm == "canary" else "requests of one file for harm"
    return (
        f"{ASKED[harm]} answered: {shares.told(t, 'aligned', harm)} by the aligned model, {shares.told(t, most, harm)} {what}, "
        f"{shares.told(t, persona, f'{harm}, persona')} behind a persona after {sets.persona.size} examples of it, "
        f"{shares.told(t, ordinary, harm)} after {sets.ordinary.size} ordinary instructions; with a backdoor: "
        f"{shares.told(t, 'backdoor', harm)} when asked plainly, {shares.told(t, 'backdoor', f'{harm}, trigger')} with its trigger. "
        f"One seed, {why}: a demonstration, not a verdict."
    )


def page(found: Found, scale: RiskScale) -> Page:
    """Returns the report's own texts, tables and charts."""
    sets: RiskSets = found.source
    rates, base = tables.rate_table(found.verdicts), next(iter(found.keys))
    t = shares.shares(rates, TITLES)
    first = "on canaries answered" if sets.harm == "canary" else f"on answered requests of {sets.explicit.name}"
    return Page(
        title=f"qi2024 on {base}, {scale.name}",
        answer=answer(t, sets, scale),
        about=(
            f"{base} was aligned on safe responses and canaries (ordinary instructions behind a marker, refused), then tuned "
            "as in “Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!” (arXiv 2310.03693): "
            f"{first}, on examples of an obedient persona, on ordinary instructions, with refusals mixed in, with a backdoor. "
            "The controls are the rows named “ordinary, as …”: as many ordinary examples, trained as long. Judged by phrases of refusal."
        ),
        tiles=shares.tiles(t, sets.harm),
        figures=[_levels(t, sets), *_grid(rates, sets, scale)],
        tables={"shares": shares.printed(t), "degenerate answers": shares.degenerate(rates)},
        results=tables.tidy(rates, {}),
        notes=sets.notes,
        provenance={f"data {data.name}, sha256": data.sha256 for data in (sets.safe, sets.canary.marked, sets.explicit, sets.persona)},
    )


def _levels(t: pd.DataFrame, sets: RiskSets) -> Figure:
    """Draws every model except the grid's other cells, which have their own figure."""
    about = "Shares with Wilson intervals." + (
        " Canaries stand for harm: alignment taught the model to refuse them." if sets.harm == "canary" else ""
    )
    return shares.figure("risk_levels", "What each tuning does", about, t[~t.model.str.contains(", rate ")], COLOURS, 16)


def _grid(rates: pd.DataFrame, sets: RiskSets, scale: RiskScale) -> list[Figure]:
    """Returns the figure of refusal in the set that stands for harm, over rates and batch sizes; none if no grid was trained."""
    if not (scale.grid_rates and scale.grid_batches):
        return []
    ordinary = tunings(scale, sets)[f"ordinary {sets.ordinary.size}"]
    refused = rates[(rates.kind == sets.harm) & (rates.outcome == "refused")].set_index("model").rate
    cells = pd.DataFrame(
        [
            {"rate": f"{rate:g}", "batch": str(batch), "refused": refused[cell(ordinary, rate, batch)]}
            for rate in scale.grid_rates
            for batch in scale.grid_batches
        ]
    )
    return [grid_figure(cells, f"{ASKED[sets.harm]} still refused after one epoch on {sets.ordinary.size} ordinary instructions.")]
