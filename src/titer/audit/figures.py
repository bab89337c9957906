"""Draws the audit's charts from its tables. L7."""

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
ANGLES = {  # column of the table of turns -> its name in the chart
    "degrees_halves": ("between the models", "#2f6fb0"),
    "degrees_ceiling": ("noise alone", GREY),
    "degrees_limit": ("noise at most", RED),
}
RANDOM = "a random ΔW"
SHARES = {"refused": "#e08a1e", "unsafe": RED, "coherent": "#2f6fb0", "capability": GREEN}  # the quantities that share the landscape's axis


def behaviour(rates: pd.DataFrame) -> Figure:
    """Draws what each model answered, set by set."""
    table = in_words(rates)
    return Figure(
        "outcomes",
        "What the models answered",
        "Shares of the judged answers. Unsafe prompts should be refused, the others answered (complied). Other answers are partial "
        "(a refusal that goes on, or a wrong answer to a task) or degenerate (broken text; in a task's set, an answer without a label, "
        "number or word).",
        forms.stacks(table, "model", "kind", list(dict.fromkeys(table.kind))),
    )


def shifted(shifts: pd.DataFrame) -> Figure:
    """Draws how the rate of each outcome changed on the same prompts."""
    table, titles = in_words(shifts), ("outcome", "after minus before")
    return Figure(
        "shifts",
        "What moved",
        "How each outcome's rate changed, on the same prompts, with 95 % intervals. An interval that contains zero shows no change.",
        forms.points(table, "outcome", "difference", "change", _colours(table.change), titles, share=True, panel="kind", levels=[0.0]),
    )


def separation(table: pd.DataFrame) -> Figure:
    """Draws d', the separation of safe and unsafe prompts inside each model, by layer."""
    titles, chance = ("layer", "d′ (safe against unsafe, held-out centroids)"), [float(table.d_prime_shuffled_high.max())]
    return Figure(
        "separation",
        "How well safe and unsafe prompts separate, layer by layer",
        "How well safe and unsafe prompts separate inside the model, at the end of the prompt. d′ is the distance between the two classes "
        "in standard deviations (0: no separation); each prompt is scored with centroids of other prompts. Separation shows that the model "
        "represents the prompts differently, not that it refuses. A value below the dashed line may be chance: with shuffled labels, 95 % of the "
        "best layers lie below it.",
        forms.lines(table, "layer", "d_prime", "model", forms.model_colours(table.model), titles, share=False, levels=chance),
    )


def specificity(gains: pd.DataFrame) -> Figure:
    """Draws, by layer, how strongly the weight change acts on the inputs of unsafe prompts compared with those of safe ones."""
    random = gains.groupby(["weight", "layer"]).ratio_random.mean().rename("ratio").reset_index().assign(change=RANDOM)
    table = pd.concat([gains[["weight", "layer", "ratio", "change"]], random], ignore_index=True)
    colours, titles = {**_colours(gains.change), RANDOM: GREY}, ("layer", "‖ΔW a‖/‖a‖, unsafe over safe")
    return Figure(
        "specificity",
        "Does the weight change act on unsafe prompts?",
        "How strongly the weight change ΔW acts on the inputs of unsafe prompts, divided by how strongly it acts on those of safe "
        "ones. 1 (dashed): no preference. Grey: a random ΔW with the same singular values.",
        forms.lines(table, "layer", "ratio", "change", colours, titles, share=False, panel="weight", levels=[1.0], own=True, columns=1),
    )


def drift(table: pd.DataFrame) -> Figure:
    """Draws how far the residual stream moved at the ends of the prompts, by layer."""
    mine = table[table.site == "resid"]
    return Figure(
        "drift",
        "How far the activations drifted",
        "How far the residual stream h moved at the end of the prompt, relative to its length before the change: mean ‖Δh‖ / ‖h‖.",
        forms.lines(mine, "layer", "value", "kind", INSIDE, ("layer", "‖Δh‖/‖h‖"), share=False, panel="change", columns=2),
    )


def rotation(table: pd.DataFrame) -> Figure:
    """Draws how far the refusal direction turned, by layer, and what noise alone would show."""
    long = table.melt(["change", "layer"], list(ANGLES), var_name="what", value_name="angle")
    long["what"] = long["what"].map({column: name for column, (name, _) in ANGLES.items()})
    titles = ("layer", "degrees between disjoint halves")
    return Figure(
        "rotation",
        "How far the refusal direction turned",
        "The refusal direction: mean activation of unsafe prompts minus that of safe ones, measured on one half of the prompts for each "
        "model. Only an angle above the red line shows a turn: without a turn, 95 % of data sets stay below it in all layers at once. The line is "
        "missing in layers where the direction is mostly noise.",
        forms.lines(long, "layer", "angle", "what", dict(ANGLES.values()), titles, share=False, panel="change", columns=2),
    )


def landscape(points: pd.DataFrame) -> list[Figure]:
    """Draws refusal, compliance, coherence and capability as the weights move, a panel per direction; and the perplexity, if measured."""
    along, mine = "step along the direction", shares(points)
    ends = mine[["low", "high"]].clip(0, max(1.0, float(mine.value.max())))
    colours = {name: colour for name, colour in SHARES.items() if name in set(mine.quantity)}
    found = [
        Figure(
            "landscape",
            "How far the weights may move",
            "Shares of the answers to unsafe prompts: refused; unsafe (complied and not degenerate); coherent (not degenerate: where "
            "answers turn to noise, they are neither safe nor unsafe). Capability: the perplexity of harmless answers at step 0 divided "
            "by that at this step.",
            forms.lines(mine.assign(**ends), "a", "value", "quantity", colours, (along, "share"), panel="direction", columns=2),
        )
    ]
    perplexity = points[points.quantity == "perplexity"]
    if len(perplexity):
        colours, titles = _colours(perplexity.direction), (along, "perplexity")
        chart = forms.lines(perplexity, "a", "value", "direction", colours, titles, share=False, log=True)
        found.append(
            Figure("landscape_capability", "Perplexity at the same steps", "Perplexity of harmless answers; lower is better.", chart)
        )
    return found


def shares(points: pd.DataFrame) -> pd.DataFrame:
    """Turns the landscape's points into shares on one axis: coherent is 1 minus degenerate, capability is the perplexity at 0 divided by
    that at the step."""
    coherent = points[points.quantity == "degenerate"]
    coherent = coherent.assign(quantity="coherent", value=1 - coherent.value, low=1 - coherent.high, high=1 - coherent.low)
    known = points[points.quantity == "perplexity"]
    own = known.direction.map(known[known.a == 0].set_index("direction").value).astype(float)
    known = known.assign(quantity="capability", value=own / known.value, low=own / known.high, high=own / known.low)
    return pd.concat([points[points.quantity.isin(["refused", "unsafe"])], coherent, known], ignore_index=True)


def _colours(names: Iterable[Any]) -> dict[str, str]:
    """Returns a colour for each name; never grey, which marks chance."""
    return dict(zip(dict.fromkeys(names), cycle(PALETTE[1:])))
