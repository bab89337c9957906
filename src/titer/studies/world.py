"""Studies on the synthetic world, by name: priced or run. L7."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from titer.core.run import Store
from titer.pipeline import Reporter
from titer.studies.engine import price as priced
from titer.studies.engine.run import BASES, StudyRequest
from titer.studies.engine.run import run as engine_run


@dataclass(frozen=True)
class WorldOrder:
    """A study on the world as its user words it: on these seeds, `bases` a seed; `part` and `only` choose parts of it."""

    study: str
    scale: str = ""
    seeds: range = field(default_factory=lambda: range(3))
    part: str = "all"
    only: str = ""
    bases: int = BASES

    @property
    def declared(self) -> StudyRequest:
        only = tuple(name.strip() for name in self.only.split(",") if name.strip())
        return StudyRequest(self.study, self.scale, self.seeds, only, self.bases, self.part)


def price(order: WorldOrder, store: Store, flops: float | None = None) -> tuple[pd.DataFrame, str]:
    """What a study would run, as a table and in words. Errors: an unknown study, scale or part."""
    return priced.price(order.declared, store, flops)


def run(order: WorldOrder, store: Store, reporter: Reporter, command: str) -> tuple[Path, str]:
    """The study's page and its answer, run or finished. Errors: an unknown study, scale or part."""
    return engine_run(order.declared, store, reporter, command)
