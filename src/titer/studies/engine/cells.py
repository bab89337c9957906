"""Claims over attacks in cells: differences over the cells that count for both sides, break points, correlations within cells. L7.

A table of attacks has a row per cell and judged step; step 0 is the model before. A cell is identified by its key columns (learning
rate, share of unsafe examples, ...). Whether a cell counts is decided at its last judged step.
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
    """One column compared between two sides, over the cells and steps that count for both: the two means, and those cells."""

    more: float
    less: float
    shared: pd.DataFrame

    @property
    def effect(self) -> float:
        return self.more - self.less


class Curve(NamedTuple):
    """A measure and when it breaks: when it rises to a half or, with `falling`, falls below it."""

    name: str
    of: Callable[[pd.DataFrame], pd.Series]
    falling: bool = False


@dataclass(frozen=True)
class Cells:
    """How attacks are stored in a seed's tables: one table per side (with its name), with the columns `keys` and `step`.

    `counts`: from a cell's last judged step, whether the cell counts. `compared`: the rows that are compared at all. `n`: the number of
    requests behind a share. `none`: the message where no cell counts for both sides.
    """

    keys: tuple[str, ...]
    counts: Callable[[pd.DataFrame], pd.Series]
    compared: Callable[[Found, pd.DataFrame], pd.DataFrame]
    n: Callable[[Found], int]
    none: str

    def before(self, found: Found, side: str) -> pd.DataFrame:
        """The rows of a side before the attack, of all of its cells."""
        return found.tables[side][lambda t: t.step == 0]

    def under(self, found: Found, side: str, **where: object) -> pd.DataFrame:
        """Judged steps of the cells that are compared and count, of those whose columns have these values."""
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
        """The last judged step of every cell."""
        return t[t.step == t.groupby([*self.keys]).step.transform("max")]

    def gap(self, more: str, less: str, column: str, **where: object) -> Pair:
        """The mean of a column over shared cells and steps, `more` minus `less`."""
        return Pair(self, more, less, column, where)

    def broken(self, found: Found, side: str, curves: Sequence[Curve], start: Mapping[str, object], **where: object) -> list[BreakPoint]:
        """The break point of each curve in the cell of these values; `start` finds the row before the attack. Empty: it does not count."""
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
    """Two sides compared in one column."""

    cells: Cells
    more: str
    less: str
    column: str
    where: Mapping[str, object] = field(default_factory=dict)

    def gap(self, found: Found) -> Gap:
        """Errors: no cell counts for both."""
        keys = [*self.cells.keys, "step"]
        a, b = (self.cells.under(found, side, **self.where).groupby(keys)[self.column].mean() for side in (self.more, self.less))
        shared = a.index.intersection(b.index)
        if not len(shared):
            raise UnsaidError(self.cells.none)
        return Gap(float(a[shared].mean()), float(b[shared].mean()), shared.to_frame(index=False))

    def of(self, number: Callable[[Gap], float]) -> Term:
        """A number of both sides."""
        return Term(lambda found: number(self.gap(found)))

    @property
    def effect(self) -> Term:
        """The difference."""
        return self.of(lambda gap: gap.effect)

    @property
    def high(self) -> Term:
        """The mean of the side that is subtracted from."""
        return self.of(lambda gap: gap.more)

    @property
    def low(self) -> Term:
        """The mean of the side that is subtracted."""
        return self.of(lambda gap: gap.less)

    @property
    def log2(self) -> Term:
        """log2 of one mean over the other."""
        return self.of(lambda gap: math.log2(gap.more / gap.less))


def later(pairs: Sequence[tuple[BreakPoint, BreakPoint]]) -> float:
    """The share of break points that come later than the other's, minus those that come earlier; undecided ones count 0."""
    return sum({"later": 1, "earlier": -1, "undecided": 0}[order(*pair)] for pair in pairs) / len(pairs)


def within(rows: pd.DataFrame, by: Sequence[str], x: str, y: str, least: int, apart: float) -> dict[tuple[float, ...], float]:
    """Spearman's correlation of x with y in every group of `by` that has `least` rows or more and whose y differ by more than `apart`."""
    told: dict[tuple[float, ...], float] = {}
    for key, cell in rows.groupby([*by]):
        if len(cell) >= least and cell[y].max() - cell[y].min() > apart:
            told[key] = float(cell[x].rank().corr(cell[y].rank()))  # type: ignore[index]
    return told
