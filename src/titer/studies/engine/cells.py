"""The numbers behind claims on attacks that were run in several cells: differences, break points, and correlations within cells. L7.

A cell is one setting of an attack, identified by its key columns (learning rate, share of unsafe examples, ...). A table of attacks has
one row per cell and judged step; step 0 is the model before the attack. Whether a cell counts is decided at its last judged step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from titer.core.breakpoints import BreakPoint, break_point, order
from titer.studies.engine.found import Found, UnsaidError
from titer.studies.engine.terms import Term


class Gap(NamedTuple):
    """The means of one column on two sides, over the cells and steps that count on both; `shared` lists these cells and steps."""

    more: float
    less: float
    shared: pd.DataFrame

    @property
    def effect(self) -> float:
        return self.more - self.less


class Curve(NamedTuple):
    """A measure that is followed over an attack's steps. It breaks when it rises to a half or, with `falling`, falls below a half."""

    name: str
    of: Callable[[pd.DataFrame], pd.Series]
    falling: bool = False


@dataclass(frozen=True)
class Cells:
    """How a study's tables store its attacks: one table per side, under the side's name, with the columns `keys` and `step`.

    `counts`: takes the rows of the cells' last judged steps and says which of them count. `compared`: takes a side's judged steps and
    keeps those that may be compared. `n`: the number of requests behind a share. `none`: the message if no cell counts on both sides.
    """

    keys: tuple[str, ...]
    counts: Callable[[pd.DataFrame], pd.Series]
    compared: Callable[[Found, pd.DataFrame], pd.DataFrame]
    n: Callable[[Found], int]
    none: str

    def before(self, found: Found, side: str) -> pd.DataFrame:
        """Returns a side's rows from before the attack (step 0), for all of its cells."""
        return found.tables[side][lambda t: t.step == 0]

    def under(self, found: Found, side: str, **where: object) -> pd.DataFrame:
        """Returns a side's judged steps under attack, in the cells that count, where the columns have these values."""
        asked = (self, side, *sorted(where.items()))
        if asked not in found.kept:  # a claim's effect, control and note ask the same
            found.kept[asked] = self._under(found, side, where)
        return found.kept[asked]

    def _under(self, found: Found, side: str, where: Mapping[str, object]) -> pd.DataFrame:
        t = self.compared(found, found.tables[side][lambda own: own.step > 0])
        for column, value in where.items():
            t = t[t[column] == value]
        last = self.last(t)
        return t.merge(last[self.counts(last)][[*self.keys]].drop_duplicates(), on=[*self.keys])

    def last(self, t: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of each cell's last judged step."""
        return t[t.step == t.groupby([*self.keys]).step.transform("max")]

    def gap(self, more: str, less: str, column: str, **where: object) -> Pair:
        """Compares the mean of a column on two sides, `more` minus `less`, over the cells and steps that count on both."""
        return Pair(self, more, less, column, where)

    def broken(self, found: Found, side: str, curves: Sequence[Curve], start: Mapping[str, object], **where: object) -> list[BreakPoint]:
        """Returns each curve's break point in one cell, or [] if the cell does not count.

        `start` and `where` give the cell's values; `start` alone finds its row before the attack."""
        t = self.under(found, side, **start, **where)
        if t.empty:
            return []
        first = self.before(found, side)
        for column, value in start.items():
            first = first[first[column] == value]
        whole = pd.concat([first.head(1), t])
        steps = whole.step.astype(int).tolist()
        return [break_point(steps, one.of(whole).tolist(), falling=one.falling, n=self.n(found)) for one in curves]


@dataclass(frozen=True)
class Pair:
    """A comparison of two sides in one column; its properties are the terms that a claim is written with."""

    cells: Cells
    more: str
    less: str
    column: str
    where: Mapping[str, object] = field(default_factory=dict)

    def gap(self, found: Found) -> Gap:
        """Returns the two means on one base. Errors: no cell counts on both sides."""
        keys = [*self.cells.keys, "step"]
        a, b = (self.cells.under(found, side, **self.where).groupby(keys)[self.column].mean() for side in (self.more, self.less))
        shared = a.index.intersection(b.index)
        if not len(shared):
            raise UnsaidError(self.cells.none)
        return Gap(float(a[shared].mean()), float(b[shared].mean()), shared.to_frame(index=False))

    def of(self, number: Callable[[Gap], float]) -> Term:
        """Returns the term that computes a number from the two means."""
        return Term(lambda found: number(self.gap(found)))

    @property
    def effect(self) -> Term:
        """The difference of the means, `more` minus `less`."""
        return self.of(lambda gap: gap.effect)

    @property
    def high(self) -> Term:
        """The mean of `more`, the side that is subtracted from."""
        return self.of(lambda gap: gap.more)

    @property
    def low(self) -> Term:
        """The mean of `less`, the side that is subtracted."""
        return self.of(lambda gap: gap.less)

    @property
    def log2(self) -> Term:
        """log2 of the mean of `more` divided by the mean of `less`."""
        return self.of(lambda gap: math.log2(gap.more / gap.less))


def later(pairs: Sequence[tuple[BreakPoint, BreakPoint]]) -> float:
    """Returns the share of pairs whose first break point comes later than the second, minus the share where it comes earlier.

    Undecided pairs count 0."""
    return sum({"later": 1, "earlier": -1, "undecided": 0}[order(*pair)] for pair in pairs) / len(pairs)


def within(rows: pd.DataFrame, by: Sequence[str], x: str, y: str, least: int, apart: float) -> dict[tuple[float, ...], float]:
    """Returns, by group of `by`, Spearman's correlation of x with y.

    A group is left out if it has fewer than `least` rows, or if its largest and smallest y differ by no more than `apart`."""
    told: dict[tuple[float, ...], float] = {}
    for key, cell in rows.groupby([*by]):
        if len(cell) >= least and cell[y].max() - cell[y].min() > apart:
            told[key] = float(cell[x].rank().corr(cell[y].rank()))  # type: ignore[index]
    return told
