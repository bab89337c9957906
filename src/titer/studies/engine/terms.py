"""Terms, from which claims are written: a term is a number that is read from the results of one base. L7.

A term has no interval. A claim's interval is over bases (`core/claims.py`): rounding alone moves a trained base further than an interval
over its inputs would say.
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
    """A number of one base. Calling the term with the base's results returns the number."""

    of: Callable[[Found], float]

    def __call__(self, found: Found) -> float:
        return float(self.of(found))

    def __sub__(self, other: Term) -> Term:
        return combined(lambda a, b: a - b, self, other)


def combined(of: Callable[..., float], *terms: Term) -> Term:
    """Returns the term whose value is `of` of the values of several terms."""
    return Term(lambda found: of(*(term(found) for term in terms)))


def rate(model: str, asked: str, outcome: str = "complied") -> Term:
    """The share of a model's answers to the set `asked` that have the outcome."""
    return Term(lambda found: found.rate(model, asked, outcome))


def outcome_rate(table: str, outcome: str, **where: object) -> Term:
    """The share of a measured table's rows that have the outcome, among those whose columns have these values."""
    return Term(lambda found: found.hits(table, outcome, **where).mean())


def cell(table: str, column: str = "value", **where: object) -> Term:
    """The mean of a measured table's column over the rows whose columns have these values."""
    return Term(lambda found: found.table(table, **where)[column].mean())


def last(table: str, column: str, **where: object) -> Term:
    """The mean over inputs of a column of a probe's table, in the last layer."""
    return Term(lambda found: found.last(table, column, **where).mean())


def rest(share: Term) -> Term:
    """One minus a share, for a claim about the remaining share."""
    return combined(lambda value: 1 - value, share)


def mean(*terms: Term) -> Term:
    """The mean of several terms."""
    return combined(lambda *values: sum(values) / len(values), *terms)


def largest(*terms: Term) -> Term:
    """The largest of several terms."""
    return combined(max, *terms)


def smallest(*terms: Term) -> Term:
    """The smallest of several terms."""
    return combined(min, *terms)


Layers = Callable[[Found], pd.Series]  # layer -> a number


def by_layer(table: str, column: str, **where: object) -> Layers:
    """Returns a column's mean over inputs for every layer but the first, which sees the inputs' own words."""
    return lambda found: found.table(table, **where).groupby("layer")[column].mean().iloc[1:]


def log2_over_layers(first: Layers, second: Layers) -> Term:
    """The mean over layers of log2(first / second), in which every layer has the same weight. NaN if any number is not above 0."""

    def read(found: Found) -> float:
        a, b = first(found), second(found)
        return float(np.log2(a / b).mean()) if (a > 0).all() and (b > 0).all() else math.nan

    return Term(read)
