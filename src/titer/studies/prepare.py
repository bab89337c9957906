"""Studies from what their user words to a report: what is asked is checked, then priced or run. L7.

On real models jain2024 probes a base and its safety-tuned relative; huang2024 and qi2024 align a base themselves, from a folder of data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer.core.errors import TiterError, unknown
from titer.core.parallel import Silent
from titer.core.plugins import names
from titer.core.run import Store, slug
from titer.data.formats import FORMAT
from titer.data.sources import TextData, read_text
from titer.models.checkpoint import Checkpoint
from titer.models.fetch import resolve
from titer.pipeline import Model, Pipeline, Reporter
from titer.report.places import report_folder
from titer.studies.engine.declare import Given, Study
from titer.studies.engine.price import price
from titer.studies.engine.run import labs_of, opened, run_study
from titer.studies.jain2024.pair import pair_cost, pair_identity, pair_report
from titer.studies.request import StudyRequest

Cost = Mapping[str, object]


@dataclass(frozen=True)
class Pair:
    """The mechanistic study's probes on two checkpoints."""

    base: Checkpoint
    aligned: Checkpoint
    text: TextData
    prompts: int | None
    bf16: bool

    def cost(self, store: Store) -> Cost:
        """What it would compute; a pair is priced in operations alone."""
        return pair_cost(self.base, self.aligned, self.text, self.prompts)

    def run(self, store: Store, reporter: Reporter, command: str) -> tuple[Path, str]:
        """The report's page and its answer."""
        pipeline = Pipeline(store, reporter, dtype="bfloat16" if self.bf16 else "float32")
        asked = {**pair_identity(self.base, self.aligned, self.text, self.prompts), **pipeline.read_in}
        folder = report_folder(store.root, f"jain2024-{slug(self.aligned.label)}", asked)
        return pair_report(pipeline, self.base, self.aligned, self.text, self.prompts, command, folder)


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


def prepared(order: StudyRequest) -> Pair | Declared:
    """Errors: an unknown study, scale, model or file; options of another study; data that are too few."""
    if not order.name.endswith(".py") and order.name not in (known := names("studies")):
        unknown("study", order.name, known, "or give the path of a .py file.")
    if order.base is None and order.aligned is None:
        if order.data is not None or order.prompts is not None:
            raise TiterError("--data and --prompts belong to real models", next_step="add --base (and --aligned), or leave them out.")
        _unused(order, "harmful", "alpha", "bf16", "trust_remote_code", "keep_weights")
        return Declared(order, *opened(order))
    _unused(order, "only", "part", "bases")
    if order.name == "jain2024":
        return _pair(order)
    _unused(order, "bf16")
    order = replace(order, given=Given(*_aligning(order), _file(order.harmful)))
    study, scale = opened(order)
    scale = scale.model_copy(update={name: value for name in ("alpha", "prompts") if (value := getattr(order, name)) is not None})
    study.source(scale, 0, order.given)  # what is wrong with the data is said before anything is priced or run
    return Declared(order, study, scale)


def _pair(order: StudyRequest) -> Pair:
    _unused(order, "scale", "harmful", "alpha", "keep_weights")
    if order.base is None or order.aligned is None:
        raise TiterError("one model of a pair", expected="both --base and --aligned")
    if order.data is None:
        raise TiterError("no --data was given", expected=FORMAT, next_step="add --data FILE.")
    text = read_text(order.data)
    base, aligned = (resolve(name, order.trust_remote_code) for name in (order.base, order.aligned))
    return Pair(base, aligned, text, order.prompts, order.bf16)


def _aligning(order: StudyRequest) -> tuple[Model, Path]:
    """The base, and the folder of data sets, of a study that aligns it."""
    if order.base is None or order.aligned is not None:
        raise TiterError(f"{order.name} aligns a base itself", next_step="give --base alone, with --data FOLDER.")
    folder = _file(order.data)
    if folder is None or not folder.is_dir():
        raise TiterError("no folder of data sets was given", expected="--data FOLDER, laid out as docs/real_finetuning.md says")
    checkpoint = resolve(order.base, order.trust_remote_code)
    return Model(checkpoint.label, checkpoint.key, checkpoint), folder


def _file(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


def _unused(order: StudyRequest, *options: str) -> None:
    """Errors: an option that belongs to another study."""
    if wrong := [f"--{name.replace('_', '-')}" for name in options if getattr(order, name) != getattr(StudyRequest, name)]:
        raise TiterError(f"{' and '.join(wrong)} do not belong here", next_step="titer study --help says which study takes them.")
