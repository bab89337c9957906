"""Does refusal need the part of the weight change ΔW in the left null space of the base weights? A measure and a figure. L7.

The probe is `probes/subspaces.py`. The demo and the mechanistic study, both of arXiv 2407.10264, use this.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from titer.studies.engine.declare import Question, Seed

VERSION = [subspaces.VERSION, evaluate.VERSION]
DRAWS = 3  # random subspaces of each dimension
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
