"""Does refusal need the part of the weight change ΔW in the left null space of the base weights? A measure, claims and a figure. L7.

The probe is `probes/subspaces.py`. The demo and the mechanistic study, both of arXiv 2407.10264, use this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from titer import evaluate
from titer.attacks.base import Attempt
from titer.core.config import digest
from titer.data.draws import seed_of
from titer.models.interpolate import with_weights
from titer.pipeline import Model
from titer.probes import subspaces
from titer.report import forms
from titer.report.html import Figure
from titer.report.style import GREY
from titer.studies.engine.declare import Question, Row, Seed
from titer.studies.engine.terms import Term, cell

VERSION = [subspaces.VERSION, evaluate.VERSION]
DRAWS = 3  # random subspaces of each dimension
KEPT = 0.05  # how much more refusal a part of the change must give than a random part
WHAT = {"weights": "ΔW", "inputs": "change before the activation, unsafe inputs"}


def kept(lab: Seed, base: Model, model: Model, asked: Sequence[Attempt]) -> pd.DataFrame:
    """Measures the share of `asked` that a tuned model refuses if only one part of its change of the first MLP matrices is kept. Returns
    the columns part, draw (of a random subspace) and refused. The answers are stored under a key of the edited model's own."""
    lm, rows = lab.pipeline.lm(model), []
    for part in subspaces.PARTS:
        for draw in range(DRAWS if part.startswith("random") else 1):
            seed = seed_of(lab.seed, "draw", draw)
            weights = subspaces.with_part(lm, base.checkpoint, model.checkpoint, part, seed)
            key = digest({"part kept": [part, seed, subspaces.VERSION], "base": base.key, "model": model.key})
            edited = Model(f"{model.name}, {part} kept", key, model.checkpoint)
            with with_weights(lm, weights), lab.pipeline.holding(edited, lm):
                found = lab.answers(edited, [Question("unsafe", asked)])
            rows.append({"part": part, "draw": draw, "refused": float((found.outcome == "refused").mean())})
    return pd.DataFrame(rows)


def share(model: str, of: str = "weights", column: str = "share") -> Term:
    """Returns a term: the share in the base's null space of dW, or of pre-activations' change on unsafe inputs; mean over all layers."""
    return cell("subspaces", column, model=model, of=of)


def part_alone(part: str, name: str, refused: Callable[[str], Term], over: str, without: str, models: tuple[str, ...] = ()) -> Row:
    """Returns the claim that a part of the change gives refusal. `refused`: part -> the share of unsafe requests refused with it alone."""
    return Row(
        f"{name} part alone",
        f"If, of the change ΔW of the first MLP matrices, only the part in the base weights' {name} is kept, the model refuses more than if "
        "a random part with as many dimensions is kept.",
        "figure 4; the causal check is Titer's",
        f"unsafe requests refused, ΔW of the first MLP matrices projected onto the base weights' {name}, minus onto random subspaces{over}",
        refused(part),
        refused(f"random as {part}"),
        "random subspaces of as many dimensions",
        KEPT,
        note=lambda found: f"refused: {refused(part)(found):.0%} with this part alone, {refused('none')(found):.0%} without {without}",
        needs=("kept",),
        models=models,
    )


def figure(shares: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Draws the shares of `probes/subspaces.py` (model, layer, of, share, dimension) by layer, and the share from dimension alone."""
    shown = shares.assign(what=shares.of.map(WHAT))
    dimension = shown[shown.model == shown.model.iloc[0]]
    whole = pd.concat([shown, dimension.assign(model="dimension alone", share=dimension.dimension)], ignore_index=True)
    names = [*shares.model.unique(), "dimension alone"]
    return Figure(
        "null_space",
        "How much of the change is in the left null space of the base weights?",
        "Share of the energy of ΔW (first MLP matrix), and of the change of the activation function's input on unsafe requests. "
        "Dimension alone: the null space's share of all dimensions, which a random change would have there.",
        forms.lines(
            whole,
            "layer",
            "share",
            "model",
            {name: colours.get(name, GREY) for name in names},
            ("layer", "share in the left null space of W"),
            share=False,
            panel="what",
        ),
    )
