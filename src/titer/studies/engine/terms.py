"""The small vocabulary that claims are written in: numbers that one seed says, each with its interval over inputs if it has one. L7.

A difference's ends: the distances of both terms' ends add in squares (Newcombe 1998, method 10, where both are rates).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from titer.core.stats import Interval, wilson
from titer.studies.engine.found import Found


@dataclass(frozen=True)
class Term:
    """A number of one seed, read from what it found."""

    read: Callable[[Found], Interval]

    def __sub__(self, other: Term) -> Term:
        def read(found: Found) -> Interval:
            a, b = self.read(found), other.read(found)
            value = a.value - b.value
            low = value - math.hypot(a.value - a.low, b.high - b.value)
            return Interval(value, low, value + math.hypot(a.high - a.value, b.value - b.low))

        return Term(read)

    @property
    def bare(self) -> Term:
        """The same number without an interval: one of few cells or of weights, which has no inputs to make it over."""
        return Term(lambda found: unknown_ends(self.read(found).value))


def unknown_ends(value: float) -> Interval:
    """A number without inputs to make an interval over."""
    return Interval(value, math.nan, math.nan)


def rate(model: str, asked: str, outcome: str = "complied") -> Term:
    """The share of a model's answers to a set that have the outcome, with Wilson's interval."""
    return Term(lambda found: wilson(*found.count(model, asked, outcome)))


def value(of: Callable[[Found], float]) -> Term:
    """A number that a function reads, without an interval."""
    return Term(lambda found: unknown_ends(of(found)))


def cell(table: str, **where: object) -> Term:
    """A measure's `value` with its `low` and `high`, in the one row whose columns have these values."""

    def read(found: Found) -> Interval:
        row = found.table(table, **where).iloc[0]
        return Interval(float(row.value), float(row.low), float(row.high))

    return Term(read)


def mean(*terms: Term) -> Term:
    """The mean of terms; without an interval."""
    return Term(lambda found: unknown_ends(sum(term.read(found).value for term in terms) / len(terms)))


def largest(*terms: Term) -> Term:
    """The largest of terms, with its own interval."""
    return Term(lambda found: max((term.read(found) for term in terms), key=lambda one: one.value))


def log2_ratio(first: Term, second: Term) -> Term:
    """log2 of one term over another; without an interval. NaN where either is not above 0."""

    def read(found: Found) -> Interval:
        a, b = first.read(found).value, second.read(found).value
        return unknown_ends(math.log2(a / b) if a > 0 and b > 0 else math.nan)

    return Term(read)
