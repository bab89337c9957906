"""The small vocabulary that claims are written in: numbers that one base says. L7.

A term has no interval: a claim's is over bases (`core/claims.py`), for rounding alone moves a trained base further than its inputs say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from titer.studies.engine.found import Found


@dataclass(frozen=True)
class Term:
    """A number of one base, read from what it found by calling the term."""

    of: Callable[[Found], float]

    def __call__(self, found: Found) -> float:
        return float(self.of(found))

    def __sub__(self, other: Term) -> Term:
        return combined(lambda a, b: a - b, self, other)


def combined(of: Callable[..., float], *terms: Term) -> Term:
    """`of` of several numbers."""
    return Term(lambda found: of(*(term(found) for term in terms)))


def rate(model: str, asked: str, outcome: str = "complied") -> Term:
    """The share of a model's answers to a set that have the outcome."""
    return Term(lambda found: found.rate(model, asked, outcome))


def outcome_rate(table: str, outcome: str, **where: object) -> Term:
    """The same of a measured table's rows of these values, by their column `outcome`."""
    return Term(lambda found: found.hits(table, outcome, **where).mean())


def cell(table: str, column: str = "value", **where: object) -> Term:
    """A measure's column, mean over the rows whose columns have these values."""
    return Term(lambda found: found.table(table, **where)[column].mean())


def last(table: str, column: str, **where: object) -> Term:
    """The mean over inputs of a probe's column in the last layer."""
    return Term(lambda found: found.last(table, column, **where).mean())


def rest(share: Term) -> Term:
    """One minus a share, for a claim about the share that is spared."""
    return combined(lambda value: 1 - value, share)


def mean(*terms: Term) -> Term:
    """The mean of terms."""
    return combined(lambda *values: sum(values) / len(values), *terms)


def largest(*terms: Term) -> Term:
    """The largest of terms."""
    return combined(max, *terms)


def smallest(*terms: Term) -> Term:
    """The smallest of terms."""
    return combined(min, *terms)


Layers = Callable[[Found], pd.Series]  # layer -> a number


def by_layer(table: str, column: str, **where: object) -> Layers:
    """A column's mean over inputs in every layer but the first, which sees the inputs' own words."""
    return lambda found: found.table(table, **where).groupby("layer")[column].mean().iloc[1:]


def log2_over_layers(first: Layers, second: Layers) -> Term:
    """The mean over layers of log2 of one number over another: layers count alike, whatever their size. NaN where one is not above 0."""

    def read(found: Found) -> float:
        a, b = first(found), second(found)
        return float(np.log2(a / b).mean()) if (a > 0).all() and (b > 0).all() else math.nan

    return Term(read)
