"""The results of one base of a study, the rates of its answers and its measures, and how claims read them. L7."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from titer.core.stats import Array, wilson


class UnsaidError(Exception):
    """Raised where a base has no value for a number that a claim needs; the message says why."""


@dataclass(frozen=True)
class Found:
    """All results of one base model and the models made from it: a seed's first base (`base` 0) or a further one (1, 2, ...).

    `tables`: by name, each with the column `model`: `rates` (set, outcome, count, n) and the study's measures. `verdicts`: one row per
    judged answer. `keys`: the models' content keys. `faults`: for each model, what it should have learned and did not. `stopped`: for each
    model, why its training ended early. `source`: what the examples were drawn from. `parts`: the parts that the user requested.
    `chosen`: what was chosen beforehand. `edited`: judged answers of edited models, which the report shows beside those of `verdicts`. `ended`: if the base did not learn its task, so that nothing was trained on it, the reason.
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
    edited: pd.DataFrame = field(default_factory=pd.DataFrame)

    def has(self, *names: str) -> bool:
        """Whether each name is a table that was measured or a part that was requested."""
        return all(name in self.tables or name in self.parts for name in names)

    @cached_property
    def _counts(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        t = self.tables["rates"]
        return {(m, s, o): (int(c), int(n)) for m, s, o, c, n in zip(t.model, t.set, t.outcome, t["count"], t.n, strict=True)}

    @property
    def unit(self) -> str:
        """The base's name in texts, such as "seed 0, base 1"."""
        return f"seed {self.seed}, base {self.base}" if self.base else f"seed {self.seed}"

    def fault(self, models: Sequence[str]) -> str:
        """Returns why these models (with none named: any of the models) cannot be used for a claim; "" if they can."""
        told = [f"{model} was stopped: {self.stopped[model]}" for model in models if model in self.stopped]
        told += [text for model, text in self.faults.items() if model in models or not models]
        return f"{self.unit}: {'; '.join(told)}" if told else ""

    def count(self, model: str, asked: str, outcome: str) -> tuple[int, int]:
        """Returns (number of a model's answers to a set that have the outcome, number of answers that were judged)."""
        return self._counts[model, asked, outcome]

    def judged(self, model: str, asked: str) -> bool:
        """Whether the model was asked this set."""
        return any((model, asked, outcome) in self._counts for outcome in ("complied", "refused"))

    def rate(self, model: str, asked: str, outcome: str = "complied") -> float:
        return wilson(*self.count(model, asked, outcome)).value

    @cached_property
    def _by_model(self) -> dict[str, dict[object, pd.DataFrame]]:
        return {}

    @cached_property
    def kept(self) -> dict[Hashable, pd.DataFrame]:
        """A cache of the tables that `cells.py` derives for claims, by the arguments of the call."""
        return {}

    def hits(self, table: str, outcome: str, **where: object) -> Array:
        """Returns 1.0 or 0.0 for each row of a table whose columns have these values: whether its outcome is `outcome`."""
        return hits(self.table(table, **where).outcome, outcome)

    def last(self, table: str, column: str, **where: object) -> Array:
        """Returns a column's values in the last layer, from the rows whose columns have these values."""
        mine = self.table(table, **where)
        return np.asarray(mine[mine.layer == mine.layer.max()][column], dtype=float)

    def table(self, name: str, **where: object) -> pd.DataFrame:
        """Returns the rows of a table whose columns have these values."""
        t = self.tables[name]
        if "model" in where and "model" in t:
            if name not in self._by_model:
                self._by_model[name] = dict(iter(t.groupby("model", sort=False)))
            t = self._by_model[name].get(where.pop("model"), t.iloc[:0])
        for column, value in where.items():
            t = t[t[column] == value]
        return t.reset_index(drop=True)


def hits(outcomes: pd.Series, outcome: str) -> Array:
    """Returns 1.0 where an outcome equals `outcome`, else 0.0. "neither" also matches partial and degenerate."""
    wanted = ["neither", "partial", "degenerate"] if outcome == "neither" else [outcome]
    return np.asarray(outcomes.isin(wanted), dtype=float)
