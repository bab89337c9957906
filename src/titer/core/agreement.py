"""Measures how far two raters agree and how often a rater errs, and corrects rates for these errors.

Sources: kappa: Cohen 1960; its variance: Fleiss, Cohen and Everitt 1969 (large samples, kappa not 0). Rates: Wilson 1927.
Corrected rate: Rogan and Gladen 1978; its interval: Lang and Reiczigel 2014, eq. 16, which includes the uncertainty of sensitivity and
specificity (by the delta method, so the specificity's term has the factor (1 - rate)^2).
Shapes: `table` (C, C) counts, rows the first rater, columns the second, C categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from titer.core.stats import Interval, rate_difference, wilson

Counts = NDArray[np.int64]
NOTHING = Interval(math.nan, math.nan, math.nan)
ROUNDING = 1e-12  # a variance below this counts as zero


class Agreement(NamedTuple):
    """How far two raters agree on the `n` inputs that both rated. `left_out`: how many inputs at least one of them did not rate."""

    table: Counts
    agreed: Interval
    kappa: Interval
    n: int
    left_out: int

    @property
    def share_left_out(self) -> float:
        whole = self.n + self.left_out
        return self.left_out / whole if whole else math.nan


class Accuracy(NamedTuple):
    """A yes-or-no rater against the truth: `hits` of the `positives` were rated yes, `rejections` of the `negatives` were rated no."""

    hits: int
    positives: int
    rejections: int
    negatives: int

    @property
    def sensitivity(self) -> Interval:
        return wilson(self.hits, self.positives)

    @property
    def specificity(self) -> Interval:
        return wilson(self.rejections, self.negatives)


class Corrected(NamedTuple):
    """A rate corrected for the rater's errors. `reason`: why there is none (NaN), or why its interval is all of [0, 1]."""

    value: float
    low: float
    high: float
    reason: str = ""


def confusion(first: Sequence[str], second: Sequence[str], categories: Sequence[str]) -> Counts:
    """Counts the pairs of ratings by category, (C, C). Errors: different lengths; a rating that is none of the categories."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} ratings")
    index, size = pd.Index(list(categories), dtype=object), len(categories)
    rows, columns = (index.get_indexer(pd.Index(list(ratings), dtype=object)) for ratings in (first, second))
    if (rows < 0).any() or (columns < 0).any():
        raise ValueError(f"a rating that is none of {', '.join(categories)}")
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size).astype(np.int64)


def agreement(first: Sequence[str], second: Sequence[str], categories: Sequence[str], unrated: Sequence[str] = ()) -> Agreement:
    """Computes the share of agreement and kappa over `categories`. Inputs with a rating in `unrated` are left out and counted."""
    both = confusion(first, second, [*categories, *unrated])
    table = both[: len(categories), : len(categories)]
    n = int(table.sum())
    return Agreement(table, wilson(int(np.trace(table)), n), kappa(table), n, int(both.sum()) - n)


def kappa(table: ArrayLike, level: float = 0.95) -> Interval:
    """Computes Cohen's kappa, (agreed - by chance) / (1 - by chance). NaN without inputs, or if both raters used one same category (0/0).

    The interval is the normal one of the estimate, cut to [-1, 1]. If the variance is zero (full agreement, or a constant rater), it is
    Wilson's interval of the share of agreement, converted to kappa with the same agreement by chance.
    """
    counts = np.asarray(table, dtype=np.int64)
    n = int(counts.sum())
    if n == 0 or int(counts.sum(0) @ counts.sum(1)) == n * n:
        return NOTHING
    p = counts / n
    row, column, agreed = p.sum(1), p.sum(0), np.diag(p)  # shares of each category by rater, and of agreement
    chance = float(row @ column)
    value = (float(agreed.sum()) - chance) / (1 - chance)
    off = p - np.diag(agreed)
    same = float(agreed @ (1 - (row + column) * (1 - value)) ** 2)
    other = (1 - value) ** 2 * float((off * (column[:, None] + row[None, :]) ** 2).sum())
    variance = (same + other - (value - chance * (1 - value)) ** 2) / (n * (1 - chance) ** 2)
    if variance < ROUNDING:
        ends = wilson(int(np.trace(counts)), n, level)
        low, high = ((end - chance) / (1 - chance) for end in (ends.low, ends.high))
    else:
        half = float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt(variance)
        low, high = value - half, value + half
    return Interval(value, max(-1.0, min(low, value)), min(1.0, max(high, value)))


def accuracy(said: ArrayLike, true: ArrayLike) -> Accuracy:
    """Counts a rater's right yes-or-no ratings: `said` against the truth `true`, both (n,). Errors: different lengths."""
    yes, truth = np.asarray(said, dtype=bool), np.asarray(true, dtype=bool)
    if yes.shape != truth.shape:
        raise ValueError(f"{yes.size} ratings of {truth.size} inputs")
    return Accuracy(int((yes & truth).sum()), int(truth.sum()), int((~yes & ~truth).sum()), int((~truth).sum()))


def corrected_rate(count: int, n: int, rater: Accuracy, level: float = 0.95) -> Corrected:
    """Estimates the true rate if `count` of `n` were rated yes: (rate + specificity - 1) / (sensitivity + specificity - 1), cut to [0, 1].

    The rater's errors were measured on other inputs and are assumed to be the same here. It is NaN, with a reason, if sensitivity +
    specificity <= 1. The interval is all of [0, 1] if those inputs do not show that the sum exceeds 1.
    """
    if reason := _unknown(n, rater):
        return Corrected(math.nan, math.nan, math.nan, reason)
    specificity = rater.rejections / rater.negatives
    value = _cut((count / n + specificity - 1) / (rater.hits / rater.positives + specificity - 1))
    z = float(stats.norm.ppf(0.5 + level / 2))
    # Agresti and Coull's additions: z^2 inputs to the sample, two to each of the rater's samples
    rate, size = (count + z * z / 2) / (n + z * z), n + z * z
    se, sp = (rater.hits + 1) / (rater.positives + 2), (rater.rejections + 1) / (rater.negatives + 2)
    shown = rate_difference((rater.hits, rater.positives), (rater.negatives - rater.rejections, rater.negatives), level)
    if shown.low <= 0 or se + sp <= 1:
        return Corrected(value, 0.0, 1.0, "sensitivity + specificity is not shown to exceed 1")
    centre = (rate + sp - 1) / (se + sp - 1)
    of_se, of_sp = se * (1 - se) / (rater.positives + 2), sp * (1 - sp) / (rater.negatives + 2)
    variance = (rate * (1 - rate) / size + centre**2 * of_se + (1 - centre) ** 2 * of_sp) / (se + sp - 1) ** 2
    shift = 2 * z * z * (centre * of_se - (1 - centre) * of_sp)
    low, high = centre + shift - z * math.sqrt(variance), centre + shift + z * math.sqrt(variance)
    return Corrected(value, min(_cut(low), value), max(_cut(high), value))


def _unknown(n: int, rater: Accuracy) -> str:
    """Returns why a rate cannot be corrected; "" if it can."""
    if not n:
        return "nothing was rated"
    if not rater.positives:
        return "no true case to measure the sensitivity on"
    if not rater.negatives:
        return "no other case to measure the specificity on"
    if rater.hits * rater.negatives + rater.rejections * rater.positives <= rater.positives * rater.negatives:
        return "sensitivity + specificity is at most 1: the rater tells nothing"
    return ""


def _cut(share: float) -> float:
    return min(1.0, max(0.0, share))
