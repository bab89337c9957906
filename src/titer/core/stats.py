"""Statistics: intervals of rates, means and other statistics, and measures of how well two classes separate.

Sources: Wilson 1927 (one rate), Newcombe 1998 method 10 (difference of two rates), Student's t (means
over seeds), percentile bootstrap (statistics over inputs). Shapes: 1-D float arrays, n values each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A statistic and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, total: int, level: float = 0.95) -> Interval:
    """Returns a rate with its Wilson score interval; NaN for an empty sample. (scipy's binomtest would also compute a test each time.)"""
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    rate, z = successes / total, float(special.ndtri(0.5 + level / 2))
    scale = 2 * (total + z**2)
    centre, half = (2 * total * rate + z**2) / scale, z / scale * math.sqrt(4 * total * rate * (1 - rate) + z**2)
    return Interval(rate, centre - half if successes else 0.0, centre + half if successes < total else 1.0)


def rate_difference(first: tuple[int, int], second: tuple[int, int], level: float = 0.95) -> Interval:
    """Returns rate(first) - rate(second) of two independent samples (successes, total), with the interval of Newcombe's method 10."""
    a, b = wilson(*first, level), wilson(*second, level)
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    return Interval(value, low, value + math.hypot(a.high - a.value, b.value - b.low))


def paired_difference(gained: int, lost: int, total: int, level: float = 0.95) -> Interval:
    """Returns rate(after) - rate(before) over the same `total` inputs, with its interval (see `paired_ends`).
    `gained`: how many inputs have the outcome only after; `lost`: only before."""
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    low, high = paired_ends(gained, lost, total, level)
    return Interval((gained - lost) / total, float(low), float(high))


def paired_ends(gained: ArrayLike, lost: ArrayLike, total: int, level: float = 0.95) -> tuple[Array, Array]:
    """Returns the ends of a paired difference's interval, element by element: Wald's, with half an input added to each cell of the
    table of pairs (Agresti and Min 2005)."""
    size, up, down = total + 2, np.asarray(gained) + 0.5, np.asarray(lost) + 0.5
    centre = (up - down) / size
    half = float(special.ndtri(0.5 + level / 2)) * np.sqrt(up + down - (up - down) ** 2 / size) / size
    return np.maximum(-1.0, centre - half), np.minimum(1.0, centre + half)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the mean of `values` with its t interval; the ends are NaN for fewer than two values."""
    sample = np.asarray(values, dtype=float)
    if sample.size == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(sample.mean())
    if sample.size < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(special.stdtrit(sample.size - 1, 0.5 + level / 2) * sample.std(ddof=1) / math.sqrt(sample.size))
    return Interval(mean, mean - half, mean + half)


def over_bases(worlds: Sequence[Sequence[float]]) -> tuple[Interval, float]:
    """Returns (mean with its t interval, spread within a world). `worlds`: for each world, one value for each of its bases.

    With one world, the interval is over its bases and says nothing of other worlds. With several, it is over the worlds' means, so each
    world counts once. The spread is the pooled standard deviation of the bases within a world; NaN if no world has two bases.
    """
    repeated = [np.asarray(world, dtype=float) for world in worlds if len(world) > 1]
    spread = math.sqrt(sum(((w - w.mean()) ** 2).sum() for w in repeated) / sum(len(w) - 1 for w in repeated)) if repeated else math.nan
    return t_interval(worlds[0] if len(worlds) == 1 else [float(np.mean(world)) for world in worlds]), spread


def bootstrap(statistic: Callable[..., float], samples: Sequence[ArrayLike], seed: int, level: float = 0.95, rounds: int = 400) -> Interval:
    """Returns `statistic(*samples)` with its percentile bootstrap interval; each sample is resampled independently on its first axis."""
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    if (
        statistic in (np.mean, np.median) and len(arrays) == 1 and arrays[0].ndim == 1
    ):  # all rounds at once, with the same draws and the same bits
        (one,) = arrays
        drawn: Any = statistic(one[rng.integers(0, len(one), (rounds, len(one)))], axis=1)
    else:
        drawn = [statistic(*(a[rng.integers(0, len(a), len(a))] for a in arrays)) for _ in range(rounds)]
    low, high = np.nanquantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(statistic(*arrays)), float(low), float(high))


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Computes the AUROC: P(positive > negative), a tie counted as half (Mann-Whitney's U divided by n m); NaN if a class is empty."""
    p, n = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    if p.size == 0 or n.size == 0:
        return math.nan
    ranks = stats.rankdata(np.concatenate([p, n]))
    return float((ranks[: p.size].sum() - p.size * (p.size + 1) / 2) / (p.size * n.size))


def d_prime(positive: ArrayLike, negative: ArrayLike) -> float:
    """Computes d', (mean positive - mean negative) / root of the mean of the two variances; NaN if both are 0 or a class has under 2."""
    p, n = np.asarray(positive, dtype=float), np.asarray(negative, dtype=float)
    if p.size < 2 or n.size < 2:
        return math.nan
    spread = math.sqrt((p.var(ddof=1) + n.var(ddof=1)) / 2)
    return float((p.mean() - n.mean()) / spread) if spread > 0 else math.nan
