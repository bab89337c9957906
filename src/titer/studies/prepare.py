"""Studies from what their user words to a report: what is asked is checked, then priced or run. L7.

On a real model huang2024, qi2024 and repair2026 align a base themselves, from a folder of data sets; two given models are an audit's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer.core.errors import TiterError, unknown
from titer.core.parallel import Silent
from titer.core.plugins import names
from titer.core.run import Store
from titer.models.fetch import resolve
from titer.pipeline import Model, Pipeline, Reporter
from titer.studies.engine.declare import Given, Study
from titer.studies.engine.lab import on_text
from titer.studies.engine.price import price
from titer.studies.engine.run import labs_of, opened, run_study
from titer.studies.request import StudyRequest

Cost = Mapping[str, object]


@dataclass(frozen=True)
class Declared:
    """A study that the engine makes, on worlds or of one model; its scale may be changed from the named one's."""

    order: StudyRequest
    study: Study
    scale: Any

    def cost(self, store: Store) -> Cost:
        """What it would compute, in hours where FLOP/s are given; on worlds `plan`, a row a model, and `summary`, the same in words."""
        if self.order.given is None:
            return dict(zip(("plan", "summary"), price(self.order, store), strict=True))
        lab = labs_of(self.order, self.study, self.scale, Pipeline(store, Silent()))[0]
        return self.study.cost(lab, lab.nodes, self.order.flops)

    def run(self, store: Store, reporter: Reporter, command: str) -> tuple[Path, str]:
        """The report's page and its answer."""
        return run_study(self.study, self.order, self.scale, store, reporter, command)


def prepared(order: StudyRequest) -> Declared:
    """Errors: an unknown study, scale, model or file; options of another study; data that are too few."""
    if not order.name.endswith(".py") and order.name not in (known := names("studies")):
        unknown("study", order.name, known, "or give the path of a .py file.")
    if order.base is None:
        if order.data is not None or order.prompts is not None:
            raise TiterError("--data and --prompts belong to real models", next_step="add --base, or leave them out.")
        _unused(order, "harmful", "alpha", "trust_remote_code", "keep_weights")
        return Declared(order, *opened(order))
    _unused(order, "only", "part", "bases")
    on_text(order.name)  # a study without such a form is told before its data are asked for
    order = replace(order, given=Given(*_aligning(order, order.base), _file(order.harmful)))
    study, scale = opened(order)
    scale = scale.model_copy(update={name: value for name in ("alpha", "prompts") if (value := getattr(order, name)) is not None})
    study.source(scale, 0, order.given)  # what is wrong with the data is said before anything is priced or run
    return Declared(order, study, scale)


def _aligning(order: StudyRequest, base: str) -> tuple[Model, Path]:
    """The base, and the folder of data sets, of a study that aligns it."""
    folder = _file(order.data)
    if folder is None or not folder.is_dir():
        raise TiterError("no folder of data sets was given", expected="--data FOLDER, laid out as docs/real_finetuning.md says")
    checkpoint = resolve(base, order.trust_remote_code)
    return Model(checkpoint.label, checkpoint.key, checkpoint), folder


def _file(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


def _unused(order: StudyRequest, *options: str) -> None:
    """Errors: an option that belongs to another study."""
    if wrong := [f"--{name.replace('_', '-')}" for name in options if getattr(order, name) != getattr(StudyRequest, name)]:
        raise TiterError(f"{' and '.join(wrong)} do not belong here", next_step="titer study --help says which study takes them.")
