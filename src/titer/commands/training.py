"""`titer align` and `titer finetune`: from their options to a stage, and the stage run through the store. L6."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from titer.commands import tuning
from titer.commands.align import align_stage, with_canary
from titer.commands.finetune import MixtureSpec, finetune_stage, user_mix
from titer.commands.placed import put
from titer.commands.recorded_options import usual
from titer.commands.requests import AlignRequest, FinetuneRequest, Place
from titer.core import ranks
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.example import Stream
from titer.data.shapes import Need
from titer.data.sources import TextData, detected
from titer.data.tasks import TASKS
from titer.models.checkpoint import Checkpoint
from titer.models.fetch import resolve
from titer.pipeline import Model, Pipeline, adapter_beside, stopped
from titer.stage import Stage


@dataclass(frozen=True)
class Planned:
    """A checked stage, the model it starts from and the models it reads. `about` (a record) and `text` say what it is made of."""

    stage: Stage
    start: Checkpoint
    reads: Mapping[str, Model]
    about: dict[str, Any]
    text: str
    canary: Place | None = None
    need: Need = "answers"

    @property
    def key(self) -> str:
        return self.stage.key(self.start.key, {role: one.key for role, one in self.reads.items()})

    def stands(self, store: Store) -> bool:
        return store.has("stages", self.key)


@dataclass(frozen=True)
class Trained:
    """A trained model.

    `model`: its folder; `stopped`: why training ended early, or ""; `about` and `text`: what it was made of; `following`: the command to
    run next; `prompts`: which prompts that command needs.
    """

    model: Path
    stopped: str
    about: dict[str, Any]
    text: str
    following: str
    prompts: str


def planned_alignment(order: AlignRequest) -> Planned:
    """Checks an alignment. Errors: as `align_stage`; an unknown model; rows longer than the model's window."""
    pairs = _pairs(order)
    text, held = read(order.data, order.reading, "pairs" if pairs else "answers"), read(order.canary)
    if held is None and order.canaries is not None:
        raise TiterError("--canaries without --canary", next_step="add --canary FILE, a file of instructions with answers.")
    start = resolve(order.model, order.trust_remote_code, order.thinking)
    about: dict[str, Any] = {}
    lines = []
    if held is None:
        stage = align_stage(text, order, order.steps, pairs=pairs)
    else:
        taught = with_canary(text, held, order, order.canaries)
        stage = align_stage(taught.rows, order, order.steps, taught.marked, canary=held)
        about["left_out"] = {"data": {"in the canary file": taught.left_out}} if taught.left_out else {}
        if taught.left_out:
            lines = [f"left out of data: {taught.left_out} in the canary file"]
    about = {"streams": tuning.counted(stage.streams), **about}
    found = _planned(stage, start, order, about, [tuning.told(stage.streams), *lines])
    return replace(found, need="pairs") if pairs else found


def planned_finetuning(order: FinetuneRequest) -> Planned:
    """Checks a fine-tuning. Errors: as `user_mix` and `finetune_stage`; an unknown model; rows longer than the model's window."""
    held, start = read(order.canary), resolve(order.model, order.trust_remote_code, order.thinking)
    files = {"benign": read(order.data, order.reading), "harmful": read(order.harmful), "safety": read(order.safety)}
    mixed = user_mix(files, MixtureSpec(order.examples, order.poison_ratio, order.safety_examples), order.seed, held)
    stage = finetune_stage(mixed, order, order.epochs, order.keep, held)
    about = {"steps": stage.steps, "counts": mixed.counts, "left_out": mixed.left_out}
    return _planned(stage, start, order, about, [mixed.lines()])


def _pairs(order: AlignRequest) -> dict[str, Stream] | None:
    """Returns the streams of a preference file, if the method learns from preferences and --data is such a file; else None."""
    if order.data is None or not set(tuning.PAIR) <= set(tuning.method_of(order).STREAMS):
        return None
    if str(order.data).partition(":")[0] in TASKS or detected(order.data, order.reading, "pairs").form.reading != "preference":
        return None
    return tuning.preferred(order.data, order.seed, order.reading)


def _planned(stage: Stage, start: Checkpoint, order: AlignRequest | FinetuneRequest, about: dict[str, Any], lines: list[str]) -> Planned:
    reads = tuning.models_read(stage.method, order, order.trust_remote_code)
    stage.method.check_steps(stage.steps)
    tuning.check_adapter(stage, start)
    if notes := tuning.notes(stage.streams):
        about, lines = {**about, "notes": notes}, [*lines, *notes]
    if order.longest is not None:
        streams, cut = tuning.cut_to(stage.streams, order.longest, start)
        stage = stage.model_copy(update={"streams": streams})
        about, lines = {**about, "cut": cut}, [*lines, *cut]
    tuning.check_window(stage.streams, start)
    return Planned(stage, start, reads, about, "\n".join(filter(None, lines)), order.canary)


def trained(pipeline: Pipeline, plan: Planned, to: Path | None = None) -> Trained:
    """Trains the stage's model, or finds it in the store. It is copied into the folder `to` too, with its adapter in `to/adapter`."""
    made = pipeline.model(plan.stage, tuning.as_model(plan.start), plan.stage.name, reads=plan.reads)
    place = made.checkpoint.path
    if to is not None and ranks.first():
        model = made.checkpoint.path
        place = put(to, plan.key, {"options": usual(model)}, partial(_copied, model), pipeline.store)
    rest, prompts = "--data PROMPTS.csv", "prompts labelled safe or unsafe, none of them trained on"
    if plan.canary is not None:
        rest, prompts = f"--canary {shlex.quote(str(plan.canary))}", "a third of the file is held out"
    following = f"titer evaluate {shlex.quote(str(place))}{made.checkpoint.option} {rest}"
    return Trained(place, stopped(made), plan.about, plan.text, following, prompts)


def _copied(model: Path, fresh: Path) -> None:
    shutil.copytree(model, fresh)
    if (adapter := adapter_beside(model)) is not None:
        shutil.copytree(adapter, fresh / "adapter")


def read(place: Place | None, reading: str | None = None, need: Need = "answers") -> TextData | None:
    """Reads a data file; None if none is given."""
    return None if place is None else tuning.read_data(place, reading=reading, need=need)
