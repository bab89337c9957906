"""Safe MDP planning by learning temporal patterns of undesirable trajectories (arXiv 2304.03081), on grids.

Here "unsafe" is a property of a whole path, which no cost of single steps can express. Can a recurrent predictor learn it from labels of
whole paths, and does planning under that predictor avoid unsafe paths? Random paths are labelled by the grid's rule. A GRU is compared with
scores of single steps (their largest or their mean). Policies with the fewest steps are planned without a constraint and under each
predictor.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import pandas as pd
import torch
from pydantic import Field
from torch import nn

from titer.core.config import Record
from titer.data.draws import seed_of
from titer.report import forms
from titer.report.html import Figure
from titer.report.style import PALETTE
from titer.studies.engine.declare import Given, Measure, Page, Question, Row, Seed, Study
from titer.studies.engine.found import Found
from titer.studies.engine.terms import Term, cell, combined, largest, smallest
from titer.studies.safe_mdp import planning
from titer.studies.safe_mdp.grid import Grid

POLICIES = ("unconstrained", "GRU", "largest step", "mean step")
COLOURS = dict(zip(POLICIES, PALETTE, strict=False))
SELECTION_SEED = 100  # on which sizes were set; no verdict uses it


class Scale(Record):
    """The sizes of one run."""

    name: str = "nano"
    grid: Grid = Grid()
    paths: int = Field(default=3000, ge=100, description="explored, and a third of it for the test")
    epochs: int = Field(default=15, ge=1)
    updates: int = Field(default=300, ge=1)
    episodes: int = Field(default=100, ge=10, description="of a policy's update; five times as many judge it")
    least: float = Field(default=0.95, gt=0, lt=1, description="share of paths that must be safe; the paper's 0.95")
    save_every: int = 100


NANO = Scale()
QUICK = Scale(name="quick", paths=300, epochs=1, updates=3, episodes=10)


def planned(scale: Scale, grid: Grid, base: int) -> pd.DataFrame:
    """Trains the predictors and plans the policies of one grid. Returns model, measure, update, value: each predictor's accuracy, each
    policy's unsafe share and steps, and the history of its updates."""
    generator = torch.Generator().manual_seed(seed_of(grid.seed, "safe mdp", base))
    (shown, safe), (held_out, truth) = (planning.balanced(grid, n, generator) for n in (scale.paths, scale.paths // 3))
    rows: list[tuple[str, str, int, float]] = [
        ("the commoner answer", "accuracy", 0, float(max(truth.float().mean(), 1 - truth.float().mean())))
    ]
    predictors: dict[str, nn.Module | None] = {"unconstrained": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(grid.seed, "weights", base))
        made = {"GRU": planning.Recurrent(), **{f"{how} step": planning.Markovian(how) for how in ("largest", "mean")}}
    for name, model in made.items():
        predictors[name] = planning.taught(model, shown, safe, scale.epochs, 3e-3 if name == "GRU" else 3e-2, generator)
        rows.append((name, "accuracy", 0, float(((model(held_out) > 0) == truth).float().mean())))
    for name, predictor in predictors.items():
        found = planning.plan(grid, predictor, scale.updates, generator, scale.episodes, scale.least)
        judged = planning.rolled(grid, found.table.__getitem__, 5 * scale.episodes, generator)
        rows += [(name, "unsafe", 0, float(grid.unsafe(judged).float().mean())), (name, "steps", 0, float(judged.steps.float().mean()))]
        seen = found.history.melt("update", var_name="measure")
        rows += [
            (name, f"seen {measure}", update, value)
            for update, measure, value in zip(seen["update"], seen.measure, seen.value, strict=True)
        ]
    rows += [("the grid", "shortest", 0, float(grid.shortest(False))), ("the grid", "shortest safe", 0, float(grid.shortest(True)))]
    return pd.DataFrame(rows, columns=["model", "measure", "update", "value"])


class SafeMDP(Study):
    """Trains predictors of unsafe paths and plans policies under them; there is no language model."""

    SOURCE = "arXiv 2304.03081"
    SCALES = MappingProxyType({NANO.name: NANO, QUICK.name: QUICK})
    CHOSEN_ON = (SELECTION_SEED,)

    def source(self, scale: Scale, seed: int, given: Given | None) -> Grid:
        return scale.grid.model_copy(update={"seed": seed})

    def nodes(self, scale: Scale, source: Grid) -> list[object]:  # type: ignore[override]
        return []

    def questions(self, lab: Seed) -> list[Question]:
        return []

    def measures(self, lab: Seed) -> list[Measure]:
        base = getattr(lab, "base", 0)
        return [Measure("planned", lambda lab: planned(lab.scale, lab.source, base), [()], (2, lab.scale.model_dump(), lab.seed, base))]

    def claims(self, scale: Scale) -> list[Row]:
        def of(model: str, measure: str) -> Term:
            return cell("planned", "value", model=model, measure=measure)

        steps = largest(of("largest step", "accuracy"), of("mean step", "accuracy"))
        near = combined(lambda best, mine: best / mine, of("the grid", "shortest safe"), of("GRU", "steps"))
        near_steps = combined(lambda best, mine: best / mine, of("the grid", "shortest safe"), of("mean step", "steps"))
        averted = combined(lambda unsafe: 1 - unsafe, of("GRU", "unsafe"))
        needs = ("planned",)
        return [
            Row("the pattern is learned", "A recurrent predictor learns which paths are unsafe.", "abstract", "share of held-out paths classified correctly",
                of("GRU", "accuracy"), of("the commoner answer", "accuracy"), "always giving the more common answer", 0.95, needs=needs, whole=True),
            Row("single steps do not say it", "Scores of single steps do not say which paths are unsafe.", "abstract", "share of held-out paths classified correctly: the GRU minus the better pooling of single steps",
                of("GRU", "accuracy"), steps, "scores of single steps, largest or mean", 0.05, needs=needs),
            Row("the shortest way is unsafe", "Without the constraint, most planned paths are unsafe.", "abstract", "share of unsafe paths: planned without the constraint minus planned under the GRU",
                of("unconstrained", "unsafe"), of("GRU", "unsafe"), "planned under the GRU", 0.45, needs=needs),
            Row("planning averts it", "Planned under the GRU predictor, at most one path in twenty is unsafe.", "abstract", "share of safe paths, planned under the GRU",
                averted, combined(lambda unsafe: 1 - unsafe, of("unconstrained", "unsafe")), "unconstrained", 0.95, needs=needs, whole=True),
            Row("it takes the recurrent predictor", "Planned under scores of single steps, more paths are unsafe than under the GRU.", "abstract", "share of unsafe paths: planned under the better score of single steps minus under the GRU",
                smallest(of("largest step", "unsafe"), of("mean step", "unsafe")), of("GRU", "unsafe"), "planned under the GRU", 0.05, "beats the best Markovian method (no number found)", needs=needs),
            Row("and costs little", "Paths planned under the GRU are at most 15 % longer than the shortest safe path.", "abstract", "steps of the shortest safe path divided by steps planned under the GRU",
                near, near_steps, "planned under the mean of single steps", 1 / 1.15, needs=needs, whole=True),
        ]  # fmt: skip

    def page(self, found: Sequence[Found], scale: Scale) -> Page:
        table = pd.concat([one.tables["planned"] for one in found], ignore_index=True)
        mean = table[~table.measure.str.startswith("seen")].groupby(["model", "measure"]).value.mean()
        seen = table[table.measure.isin(["seen predicted", "seen multiplier", "seen steps"])]
        lines = (
            seen.assign(what=seen.measure.str.removeprefix("seen "))
            .groupby(["model", "what", "update"], sort=False, as_index=False)
            .value.mean()
        )
        chart = forms.lines(
            lines.astype({"update": float}),
            "update",
            "value",
            "model",
            COLOURS,
            ("update", "mean over grids"),
            share=False,
            panel="what",
            own=True,
            columns=3,
        )
        return Page(
            f"The GRU classifies {mean['GRU', 'accuracy']:.0%} of paths correctly, the better score of single steps {max(mean['largest step', 'accuracy'], mean['mean step', 'accuracy']):.0%}. "
            f"Planned without a constraint, {mean['unconstrained', 'unsafe']:.0%} of paths are unsafe; under the GRU {mean['GRU', 'unsafe']:.0%}.",
            (__doc__ or "").partition("\n\n")[2],
            [
                Figure(
                    "planning",
                    "How planning went",
                    "By update: steps to the goal, the share of paths that the predictor finds safe, and the multiplier of the constraint.",
                    chart,
                )
            ],
            tables={"predictors and policies, mean over grids": mean.unstack("measure").reset_index()},
            results=("planned",),
        )
