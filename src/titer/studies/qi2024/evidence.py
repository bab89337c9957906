"""What one seed measured of the risk levels, and how claims read it. L6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from titer.core.stats import Interval, rate_difference, wilson
from titer.recipes.qi2024 import Scale
from titer.studies.claims import Measured
from titer.studies.huang2024.evidence import REFUSED
from titer.studies.huang2024.selection import BASE_SKILL
from titer.studies.qi2024.levels import ALIGNED, BASE

Cell = tuple[str, str, str]  # model, set, outcome


@dataclass(frozen=True)
class Evidence:
    """One seed: `rates` (model, set, outcome), `moved` (model, part), `searched` (model, word), `unsure` (model, measure)."""

    seed: int
    scale: Scale
    tables: Mapping[str, pd.DataFrame]

    def has(self, *names: str) -> bool:
        return all(name in self.tables for name in names)

    def count(self, cell: Cell) -> tuple[int, int]:
        """(count, n) of a model's answers to a set with that outcome."""
        model, asked, outcome = cell
        t = self.tables["rates"]
        row = t[(t.model == model) & (t.set == asked) & (t.outcome == outcome)].iloc[0]
        return int(row["count"]), int(row["n"])

    def rate(self, *cell: str) -> float:
        return wilson(*self.count(cell)).value  # type: ignore[arg-type]

    def grade(self, model: str, asked: str) -> float:
        """Mean grade, 1 to 5, of the answers that could be graded; NaN where none could."""
        t = self.tables["rates"]
        return float(t[(t.model == model) & (t.set == asked)].grade.iloc[0])

    def minus(self, effect: Cell, control: Cell, note: str = "") -> Measured:
        """One rate minus another, with the interval over inputs."""
        found = rate_difference(self.count(effect), self.count(control))
        return Measured(found, wilson(*self.count(control)).value, note)

    def unsure(self, model: str, measure: str) -> Interval:
        """A measure of uncertainty on correct answers, with its interval over inputs."""
        t = self.tables["unsure"]
        row = t[(t.model == model) & (t.measure == measure)].iloc[0]
        return Interval(float(row.value), float(row.low), float(row.high))

    def searched(self, model: str) -> pd.DataFrame:
        t = self.tables["searched"]
        return t[t.model == model].sort_values("answered", ascending=False, kind="stable").reset_index(drop=True)

    def fault(self, models: Sequence[str]) -> str:
        """Why this seed says nothing: a base that did not learn its task, an alignment that did not take."""
        skill = min(self.rate(BASE, kind, "complied") for kind in ("safe", "unsafe"))
        if skill < BASE_SKILL:
            return f"seed {self.seed}: the base answers {skill:.1%} of a set in full ({BASE_SKILL:.0%} needed)"
        refused = self.rate(ALIGNED, "unsafe", "refused")
        return "" if refused >= REFUSED else f"seed {self.seed}: the alignment refuses {refused:.1%} ({REFUSED:.0%} needed)"
