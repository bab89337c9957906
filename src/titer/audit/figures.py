"""The audit's charts, from its tables. L7."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import pandas as pd

from titer.audit.headline import in_words
from titer.report import forms
from titer.report.html import Figure
from titer.report.style import GREEN, GREY, PALETTE, RED

INSIDE = {"safe": GREEN, "unsafe": RED}
ANGLES = {  # columns of the rotation, as they are drawn
    "degrees_halves": ("between the models", "#2f6fb0"),
    "degrees_ceiling": ("noise alone", GREY),
    "degrees_limit": ("noise at most", RED),
}
RANDOM = "a random ΔW"
SHARES = {"refused": "#e08a1e", "unsafe": RED, "coherent": "#2f6fb0", "capability": GREEN}  # what stands on the landscape's one axis


def behaviour(rates: pd.DataFrame) -> Figure:
    """What each model answered, set by set."""
    table = in_words(rates)
    return Figure(
        "outcomes",
        "What the models answered",
        "Shares of judged answers; neither is partial or degenerate. Unsafe prompts should be refused, the others answered. "
        "Of a task, degenerate is an answer that names no label or number: a refusal too.",
        forms.stacks(table, "model", "kind", list(dict.fromkeys(table.kind))),
    )


def shifted(shifts: pd.DataFrame) -> Figure:
    """How each outcome moved on the same prompts."""
    table, titles = in_words(shifts), ("outcome", "after minus before")
    return Figure(
        "shifts",
        "What moved",
        "Differences over the same prompts with their 95 % intervals; an interval over zero is no finding.",
        forms.points(table, "outcome", "difference", "change", _colours(table.change), titles, share=True, panel="kind", levels=[0.0]),
    )


def separation(table: pd.DataFrame) -> Figure:
    """d' by layer."""
    titles = ("layer", "d′ (safe against unsafe, held-out centroids)")
    return Figure(
        "separation",
        "Safe and unsafe prompts inside, layer by layer",
        "Separation d′ at the end of the prompt on held-out centroids; 0 is none. It says that prompts differ to the model, not that it refuses.",
        forms.lines(table, "layer", "d_prime", "model", forms.model_colours(table.model), titles, share=False),
    )


def specificity(gains: pd.DataFrame) -> Figure:
    """Where the change acts."""
    random = gains.groupby(["weight", "layer"]).ratio_random.mean().rename("ratio").reset_index().assign(change=RANDOM)
    table = pd.concat([gains[["weight", "layer", "ratio", "change"]], random], ignore_index=True)
    colours, titles = {**_colours(gains.change), RANDOM: GREY}, ("layer", "‖ΔW a‖/‖a‖, unsafe over safe")
    return Figure(
        "specificity",
        "Does the weight change act on unsafe prompts?",
        "1 (dashed) is no preference; grey: a random ΔW of equal singular values.",
        forms.lines(table, "layer", "ratio", "change", colours, titles, share=False, panel="weight", levels=[1.0], own=True, columns=1),
    )


def drift(table: pd.DataFrame) -> Figure:
    """How far activations moved."""
    mine = table[table.site == "resid"]
    return Figure(
        "drift",
        "How far the activations drifted",
        "Residual stream at the end of the prompt, relative to its length before.",
        forms.lines(mine, "layer", "value", "kind", INSIDE, ("layer", "‖Δh‖/‖h‖"), share=False, panel="change", columns=2),
    )


def rotation(table: pd.DataFrame) -> Figure:
    """How far the refusal direction turned, beside what noise alone would show."""
    long = table.melt(["change", "layer"], list(ANGLES), var_name="what", value_name="angle")
    long["what"] = long["what"].map({column: name for column, (name, _) in ANGLES.items()})
    titles = ("layer", "degrees between disjoint halves")
    return Figure(
        "rotation",
        "How far the refusal direction turned",
        "Mean of unsafe minus mean of safe prompts, each direction from one half of the prompts. Only what exceeds the red line is turning: "
        "95 % of data sets without a turn stay below it in all layers at once. It is missing where the direction is mostly noise.",
        forms.lines(long, "layer", "angle", "what", dict(ANGLES.values()), titles, share=False, panel="change", columns=2),
    )


def landscape(points: pd.DataFrame) -> list[Figure]:
    """Refusal, compliance, coherence and capability as the weights move, per kind of direction; the perplexity where it was measured."""
    along, mine = "step along the direction", shares(points)
    ends = mine[["low", "high"]].clip(0, max(1.0, float(mine.value.max())))
    colours = {name: colour for name, colour in SHARES.items() if name in set(mine.quantity)}
    found = [
        Figure(
            "landscape",
            "How far the weights may move",
            "Of the answers to unsafe prompts: refused, unsafe (compliance that is not degenerate), coherent (not degenerate; where answers "
            "turn to noise nothing is safe or unsafe). Capability: perplexity of harmless answers at step 0 over that at the step.",
            forms.lines(mine.assign(**ends), "a", "value", "quantity", colours, (along, "share"), panel="direction", columns=2),
        )
    ]
    perplexity = points[points.quantity == "perplexity"]
    if len(perplexity):
        colours, titles = _colours(perplexity.direction), (along, "perplexity")
        chart = forms.lines(perplexity, "a", "value", "direction", colours, titles, share=False, log=True)
        found.append(Figure("landscape_capability", "Perplexity on the same steps", "Perplexity of harmless answers.", chart))
    return found


def shares(points: pd.DataFrame) -> pd.DataFrame:
    """The points as shares of one axis: coherent is what is not degenerate, capability the perplexity at 0 over that at the step."""
    coherent = points[points.quantity == "degenerate"]
    coherent = coherent.assign(quantity="coherent", value=1 - coherent.value, low=1 - coherent.high, high=1 - coherent.low)
    known = points[points.quantity == "perplexity"]
    own = known.direction.map(known[known.a == 0].set_index("direction").value).astype(float)
    known = known.assign(quantity="capability", value=own / known.value, low=own / known.high, high=own / known.low)
    return pd.concat([points[points.quantity.isin(["refused", "unsafe"])], coherent, known], ignore_index=True)


def _colours(names: Iterable[Any]) -> dict[str, str]:
    """A colour for each of the names but grey, which is what chance shows."""
    return dict(zip(dict.fromkeys(names), cycle(PALETTE[1:])))
