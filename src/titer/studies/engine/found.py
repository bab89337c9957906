"""What one seed of a study found: its answers' rates and its measures, and how claims read them. L7."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from titer.core.stats import Array, wilson


class UnsaidError(Exception):
    """A seed has no value for a number; the message says why."""


@dataclass(frozen=True)
class Found:
    """One base: that of a seed, or another of the same world (`base` 1, 2, ...). `tables` by name, each with the column `model`: `rates`
    (set, outcome, count, n) and the study's measures.

    `verdicts`: a row per judged answer. `keys`: the models' content keys. `faults`: per model, what it should have learned and did not.
    `stopped`: per model, why its training ended early. `source`: what the examples were drawn from. `parts`: the parts asked for.
    `chosen`: what was chosen beforehand. `ended`: why nothing was trained on it, if the base did not learn.
    """

    seed: int
    scale: Any
    tables: Mapping[str, pd.DataFrame]
    verdicts: pd.DataFrame = field(default_factory=pd.DataFrame)
    keys: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)
    source: Any = None
    base: int = 0
    parts: tuple[str, ...] = ()
    chosen: Any = None
    stopped: Mapping[str, str] = field(default_factory=dict)
    ended: str = ""

    def has(self, *names: str) -> bool:
        """Whether these tables were measured, or parts asked for."""
        return all(name in self.tables or name in self.parts for name in names)

    @cached_property
    def _counts(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        t = self.tables["rates"]
        return {(m, s, o): (int(c), int(n)) for m, s, o, c, n in zip(t.model, t.set, t.outcome, t["count"], t.n, strict=True)}

    @property
    def unit(self) -> str:
        """What this is, in words."""
        return f"seed {self.seed}, base {self.base}" if self.base else f"seed {self.seed}"

    def fault(self, models: Sequence[str]) -> str:
        """Why this seed has nothing to say about these models (none named: about any model); "" if it has."""
        told = [f"{model} was stopped: {self.stopped[model]}" for model in models if model in self.stopped]
        told += [text for model, text in self.faults.items() if model in models or not models]
        return f"{self.unit}: {'; '.join(told)}" if told else ""

    def count(self, model: str, asked: str, outcome: str) -> tuple[int, int]:
        """(answers of a model to a set with that outcome, answers judged)."""
        return self._counts[model, asked, outcome]

    def judged(self, model: str, asked: str) -> bool:
        """Whether a model was asked a set."""
        return any((model, asked, outcome) in self._counts for outcome in ("complied", "refused"))

    def rate(self, model: str, asked: str, outcome: str = "complied") -> float:
        return wilson(*self.count(model, asked, outcome)).value

    @cached_property
    def _by_model(self) -> dict[str, dict[object, pd.DataFrame]]:
        return {}

    @cached_property
    def kept(self) -> dict[Hashable, pd.DataFrame]:
        """Tables that claims made of the others, by what they asked (`cells.py`)."""
        return {}

    def hits(self, table: str, outcome: str, **where: object) -> Array:
        """For the rows of a table with these values: 1.0 where the outcome is `outcome`, else 0.0."""
        return hits(self.table(table, **where).outcome, outcome)

    def last(self, table: str, column: str, **where: object) -> Array:
        """A column's values in the last layer of the rows whose columns have these values."""
        mine = self.table(table, **where)
        return np.asarray(mine[mine.layer == mine.layer.max()][column], dtype=float)

    def table(self, name: str, **where: object) -> pd.DataFrame:
        """The rows of a table whose columns have these values."""
        t = self.tables[name]
        if "model" in where and "model" in t:
            if name not in self._by_model:
                self._by_model[name] = dict(iter(t.groupby("model", sort=False)))
            t = self._by_model[name].get(where.pop("model"), t.iloc[:0])
        for column, value in where.items():
            t = t[t[column] == value]
        return t.reset_index(drop=True)


def hits(outcomes: pd.Series, outcome: str) -> Array:
    """1.0 where an outcome is the one asked for ("neither": partial and degenerate too), else 0.0."""
    wanted = ["neither", "partial", "degenerate"] if outcome == "neither" else [outcome]
    return np.asarray(outcomes.isin(wanted), dtype=float)
