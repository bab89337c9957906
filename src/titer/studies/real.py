"""Studies on real models, from names and files to a report: what is asked is checked, then priced or run. L7.

jain2024 probes a base and its safety-tuned relative; huang2024 and qi2024 align a base themselves, from a folder of data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.core.errors import TiterError
from titer.core.parallel import Silent
from titer.core.run import Store, slug
from titer.data.formats import FORMAT
from titer.data.sources import TextData, read_text
from titer.models.checkpoint import Checkpoint
from titer.models.fetch import resolve
from titer.pipeline import Model, Pipeline, Reporter
from titer.report.places import report_folder
from titer.studies.engine.declare import Given, Study
from titer.studies.engine.run import StudyRequest, run_study
from titer.studies.jain2024.pair import pair_cost, pair_identity, pair_report

Cost = Mapping[str, object]
DEMONSTRATION = "demonstration"


@dataclass(frozen=True)
class RealStudyRequest:
    """A study of a real model as its user words it. `data`: a file of labelled prompts (jain2024), a folder of data sets (the others)."""

    study: str
    base: str | None = None
    aligned: str | None = None
    data: str | Path | None = None
    scale: str = ""
    harmful: str | Path | None = None
    alpha: int | None = None
    prompts: int | None = None
    bf16: bool = False
    trust_remote_code: bool = False
    keep_weights: bool = False


@dataclass(frozen=True)
class Pair:
    """The mechanistic study's probes on two checkpoints."""

    base: Checkpoint
    aligned: Checkpoint
    text: TextData
    prompts: int | None
    bf16: bool

    def cost(self, flops: float | None = None) -> Cost:
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
    """A study that the engine makes, of one model; its scale may be changed from the named one's."""

    order: StudyRequest
    study: Study
    scale: Any

    def cost(self, flops: float | None = None) -> Cost:
        """What it would compute, in hours where FLOP/s are given."""
        lab = self.order.labs(self.study, self.scale, Pipeline(Store(Path("runs")), Silent()))[0]
        return self.study.cost(lab, lab.nodes, flops)

    def run(self, store: Store, reporter: Reporter, command: str) -> tuple[Path, str]:
        """The report's page and its answer."""
        return run_study(self.study, self.order, self.scale, store, reporter, command)


Prepared = Pair | Declared


def prepared(order: RealStudyRequest) -> Prepared:
    """Errors: an unknown study, scale, model or file; options of another study; data that are too few."""
    return _pair(order) if order.study == "jain2024" else _declared(order)


def _pair(order: RealStudyRequest) -> Pair:
    unused({"--scale": order.scale, "--harmful": order.harmful, "--alpha": order.alpha, "--keep-weights": order.keep_weights})
    if order.base is None or order.aligned is None:
        raise TiterError("one model of a pair", expected="both --base and --aligned")
    if order.data is None:
        raise TiterError("no --data was given", expected=FORMAT, next_step="add --data FILE.")
    text = read_text(order.data)
    return Pair(
        resolve(order.base, order.trust_remote_code), resolve(order.aligned, order.trust_remote_code), text, order.prompts, order.bf16
    )


def _declared(order: RealStudyRequest) -> Declared:
    unused({"--bf16": order.bf16})
    asked = StudyRequest(order.study, order.scale, given=Given(*_aligning(order), _file(order.harmful)), keep_weights=order.keep_weights)
    study, scale = asked.opened()
    changes = {name: value for name, value in (("alpha", order.alpha), ("prompts", order.prompts)) if value is not None}
    scale = scale.model_copy(update=changes)
    study.source(scale, 0, asked.given)  # what is wrong with the data is said before anything is priced or run
    return Declared(asked, study, scale)


def _aligning(order: RealStudyRequest) -> tuple[Model, Path]:
    """The base, and the folder of data sets, of a study that aligns it."""
    if order.base is None or order.aligned is not None:
        raise TiterError(f"{order.study} aligns a base itself", next_step="give --base alone, with --data FOLDER.")
    folder = _file(order.data)
    if folder is None or not folder.is_dir():
        raise TiterError("no folder of data sets was given", expected="--data FOLDER, laid out as docs/real_finetuning.md says")
    checkpoint = resolve(order.base, order.trust_remote_code)
    return Model(checkpoint.label, checkpoint.key, checkpoint), folder


def _file(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


def unused(given: dict[str, object]) -> None:
    """Errors: an option that belongs to another study."""
    if wrong := [option for option, value in given.items() if value]:
        raise TiterError(f"{' and '.join(wrong)} do not belong here", next_step="titer study --help says which study takes them.")
