"""The small vocabulary that claims are written in: numbers that one seed says, each with its interval over inputs if it has one. L7.

A difference's ends: the distances of both terms' ends add in squares (Newcombe 1998, method 10, where both are rates). A term that a
function makes of samples (a value an input) is resampled instead, each sample on its own (percentile bootstrap); what is combined of
such terms alone is made of the samples of all of them, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from titer.core.stats import Array, Interval, bootstrap, wilson
from titer.data.draws import seed_of
from titer.studies.engine.found import Found


class Sampled(NamedTuple):
    """A number `of(*samples)`; each sample has a value an input."""

    samples: tuple[Array, ...]
    of: Callable[..., float]

    @property
    def value(self) -> float:
        return float(self.of(*self.samples))


@dataclass(frozen=True)
class Term:
    """A number of one seed, read from what it found; `sampled`: the samples that it is made of, if it is."""

    read: Callable[[Found], Interval]
    sampled: Callable[[Found], Sampled] | None = None

    def __sub__(self, other: Term) -> Term:
        if self.sampled and other.sampled:
            return combined(lambda a, b: a - b, self, other)

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

    def at(self, found: Found) -> float:
        """The number itself."""
        return self.read(found).value

    def over_inputs(self, found: Found, name: str) -> Interval:
        """With its interval over inputs; samples are drawn again with the seed that the claim's name gives."""
        if self.sampled is None:
            return self.read(found)
        one = self.sampled(found)
        drawn = all(len(sample) for sample in one.samples)
        return bootstrap(one.of, one.samples, seed_of(found.seed, "bootstrap", name)) if drawn else unknown_ends(one.value)


def unknown_ends(value: float) -> Interval:
    """A number without inputs to make an interval over."""
    return Interval(value, math.nan, math.nan)


def resampled(samples: Callable[[Found], Sequence[Array]], of: Callable[..., float]) -> Term:
    """A number that `of` makes of per-input samples."""
    return _of_samples(lambda found: Sampled(tuple(samples(found)), of))


def _of_samples(sampled: Callable[[Found], Sampled]) -> Term:
    return Term(lambda found: unknown_ends(sampled(found).value), sampled)


def combined(of: Callable[..., float], *terms: Term) -> Term:
    """`of` of several numbers: made of the samples of all of them if each has some, else without an interval."""
    parts = [term.sampled for term in terms if term.sampled]
    if len(parts) < len(terms):
        return Term(lambda found: unknown_ends(float(of(*(term.read(found).value for term in terms)))))

    def sampled(found: Found) -> Sampled:
        each = [part(found) for part in parts]
        ends = np.cumsum([len(one.samples) for one in each])
        pieces = [(one.of, slice(end - len(one.samples), end)) for one, end in zip(each, ends, strict=True)]
        return Sampled(tuple(s for one in each for s in one.samples), lambda *s: of(*(part(*s[where]) for part, where in pieces)))

    return _of_samples(sampled)


def rate(model: str, asked: str, outcome: str = "complied") -> Term:
    """The share of a model's answers to a set that have the outcome, with Wilson's interval."""
    return Term(lambda found: wilson(*found.count(model, asked, outcome)))


def answered(model: str, asked: str, outcome: str = "complied") -> Term:
    """The same share, resampled over the inputs: for what a rate's own interval does not reach."""
    return resampled(lambda found: [found.was(model, asked, outcome)], np.mean)


def value(of: Callable[[Found], float]) -> Term:
    """A number that a function reads, without an interval."""
    return Term(lambda found: unknown_ends(of(found)))


def cell(table: str, **where: object) -> Term:
    """A measure's `value` with its `low` and `high`, in the one row whose columns have these values."""

    def read(found: Found) -> Interval:
        row = found.table(table, **where).iloc[0]
        return Interval(float(row.value), float(row.low), float(row.high))

    return Term(read)


def last(table: str, column: str, back: int = 0, **where: object) -> Term:
    """The mean over inputs of a probe's column in the last layer, or `back` layers before it."""
    return resampled(lambda found: [found.last(table, column, back, **where)], np.mean)


def mean(*terms: Term) -> Term:
    """The mean of terms."""
    return combined(lambda *values: sum(values) / len(values), *terms)


def largest(*terms: Term) -> Term:
    """The largest of terms, with its own interval."""
    if all(term.sampled for term in terms):
        return combined(max, *terms)
    return Term(lambda found: max((term.read(found) for term in terms), key=lambda one: one.value))


def smallest(*terms: Term) -> Term:
    """The smallest of terms."""
    return combined(min, *terms)


def log2_ratio(first: Term, second: Term) -> Term:
    """log2 of one term over another. NaN where either is not above 0."""
    return combined(lambda a, b: math.log2(a / b) if a > 0 and b > 0 else math.nan, first, second)


Layers = Callable[[Found], pd.Series]  # layer -> a number


def by_layer(table: str, column: str, **where: object) -> Layers:
    """A column's mean over inputs in every layer but the first, which sees the inputs' own words."""
    return lambda found: found.table(table, **where).groupby("layer")[column].mean().iloc[1:]


def over_layers(layers: Layers) -> Term:
    """The mean over layers."""
    return value(lambda found: float(layers(found).mean()))


def log2_over_layers(first: Layers, second: Layers) -> Term:
    """The mean over layers of log2 of one number over another: layers count alike, whatever their size. NaN where one is not above 0."""

    def read(found: Found) -> float:
        a, b = first(found), second(found)
        return float(np.log2(a / b).mean()) if (a > 0).all() and (b > 0).all() else math.nan

    return value(read)
