"""Interventions along dW, judged: alpha sweeps, random directions, parts alone, another method's direction. L7.

Source: arXiv 2407.10264, section 5.6. Each random direction has the change's norm in every tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from titer.data.draws import seed_of
from titer.models.interpolate import Weights, along, of_part, plus, random_direction, weights_of, with_weights
from titer.models.lm import LM, load
from titer.pipeline import Model
from titer.probes import placement
from titer.studies.engine.declare import Seed
from titer.studies.jain2024.subject import CLASSES, SWEPT, requests_of
from titer.studies.judged import outcomes

VERSION = 2  # 2: the answers are kept
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
ADDED = (0.25, 0.5)
TO = "ssft M"


class Point(NamedTuple):
    """One point of a sweep: in which direction, how far (alpha), and the weights there."""

    direction: str
    alpha: float
    weights: Weights


def along_change(lab: Seed, base: Model, model: Model) -> pd.DataFrame:
    """Judges models along the weight change. Returns direction (own; random; beyond, random; mlp; attention), alpha, kind, input, outcome,
    and the last layer's tau of both classes."""
    lm = load(base.checkpoint)
    start, end = weights_of(lm), weights_of(load(model.checkpoint))
    return _at_points(lab, lm, list(_points(lab, lm, start, end)))


def _points(lab: Seed, lm: LM, start: Weights, end: Weights) -> Iterator[Point]:
    random = random_direction(start, end, seed_of(lab.world.seed, "random direction"))
    for alpha in ALPHAS:
        yield Point("own", alpha, along(start, end, alpha))
        if alpha > 0:
            yield Point("random", alpha, along(start, random, alpha))
            if alpha > 1:  # the control of going beyond: as far again, but in a random direction
                yield Point("beyond, random", alpha, plus(end, start, random, alpha - 1))
    for part in ("mlp", "attention"):
        yield Point(part, 1.0, of_part(lm.sites, start, end, part))


def _at_points(lab: Seed, lm: LM, points: list[Point]) -> pd.DataFrame:
    progress = lab.pipeline.reporter.task(f"along ΔW, seed {lab.world.seed}")
    tables = []
    for number, point in enumerate(points, start=1):
        with with_weights(lm, point.weights):
            table = outcomes(lm, requests_of(lab).judged(*SWEPT), lab.decoding)
            separation = _separation(lab, lm)
        tables.append(table.assign(direction=point.direction, alpha=point.alpha, **separation))
        progress(number, len(points))
    return pd.concat(tables, ignore_index=True)


def _separation(lab: Seed, lm: LM) -> dict[str, float]:
    """Returns the mean tau of both classes in the last layer."""
    table = placement.placement(lm, {kind: (examples, None) for kind, examples in requests_of(lab).examples(*CLASSES).items()})
    last = table[table.layer == table.layer.max()].groupby("kind").tau.mean()
    return {"tau_safe": float(last["safe"]), "tau_unsafe": float(last["unsafe"])}


def added(lab: Seed, base: Model, to: Model, other: Model) -> pd.DataFrame:
    """Judges the SSFT model with another method's change added. Returns direction, alpha, kind, input, outcome, and tau as above."""
    lm = load(to.checkpoint)
    onto, start, end = weights_of(lm), weights_of(load(base.checkpoint)), weights_of(load(other.checkpoint))
    random = random_direction(start, end, seed_of(lab.world.seed, "random direction"))
    points = [Point("own", 0.0, onto)]
    points += [Point(name, size, plus(onto, start, away, size)) for size in ADDED for name, away in (("own", end), ("random", random))]
    return _at_points(lab, lm, points)
