"""Studies on the synthetic world, by name: priced or run. L7."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from titer.core.errors import TiterError
from titer.core.run import Store
from titer.recipes import huang2024
from titer.studies.engine import price as priced
from titer.studies.engine.run import Order
from titer.studies.engine.run import run as engine_run
from titer.studies.huang2024 import cost as huang_cost
from titer.studies.huang2024.parts import parts_of as huang_parts
from titer.studies.huang2024.study import run_huang
from titer.workbench import Reporter

OWN = ("huang2024",)  # studies that are not made by the engine yet


@dataclass(frozen=True)
class WorldOrder:
    """A study on the world as its user words it: on these seeds; `part` (huang2024) and `only` choose parts of it."""

    study: str
    scale: str = ""
    seeds: range = field(default_factory=lambda: range(3))
    part: str = "all"
    only: str = ""
    bases: int = 1

    @property
    def declared(self) -> Order:
        """For a study that the engine makes."""
        only = tuple(name.strip() for name in self.only.split(",") if name.strip())
        return Order(self.study, self.scale, self.seeds, only, self.bases, self.part)


def _one_base(order: WorldOrder) -> None:
    """Errors: several bases of a study that is not made by the engine."""
    if order.study in OWN and order.bases > 1:
        raise TiterError(f"--bases {order.bases}: {order.study} has one base a seed", next_step="leave --bases out, or raise --seeds.")


def price(order: WorldOrder, store: Store, flops: float | None = None) -> tuple[pd.DataFrame, str]:
    """What a study would run, as a table and in words. Errors: an unknown study, scale or part."""
    _one_base(order)
    if order.study == "huang2024":
        table = huang_cost.cost(huang2024.scale_of(order.scale or "nano"), len(order.seeds), huang_parts(order.part, order.only))
        return table, huang_cost.summary(table, flops)
    return priced.price(order.declared, store, flops)


def run(order: WorldOrder, store: Store, reporter: Reporter, command: str) -> tuple[Path, str]:
    """The study's page and its answer, run or finished. Errors: an unknown study, scale or part."""
    _one_base(order)
    if order.study == "huang2024":
        found = run_huang(
            store, reporter, huang2024.scale_of(order.scale or "nano"), order.seeds, huang_parts(order.part, order.only), command
        )
        return found.page, found.answer
    return engine_run(order.declared, store, reporter, command)
