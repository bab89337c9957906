"""`titer repair`: edit a tuned model's weights by a repair, parameter by parameter, and write it into a folder of the user's. L6.

The models are checked before anything is written: they must be of one family with one vocabulary, and no two may have the same weights.
An adapter stays an adapter if the repair can edit its factors and if it lies on the model that the repair compares with.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from titer.commands import tuning
from titer.commands.placed import check_free, put, stands
from titer.commands.recorded_options import usual
from titer.commands.requests import RepairRequest
from titer.core.config import digest
from titer.core.errors import TiterError, visible
from titer.core.plugins import made
from titer.core.run import Store
from titer.data.sources import TextData, detected, preferences
from titer.models import edited as writing
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.compatible import FAMILY, comparable, configured_apart, unused_tensors
from titer.models.edited import floating, stored_as, write_adapter, write_edited, written_bytes
from titer.models.fetch import resolve
from titer.models.weights import BLOCK, DIFFER, check_fits, difference, lacking
from titer.pipeline import Reporter
from titer.repairs.base import TUNED, Others, Reading, Repair

GRID = "grid"
OWN = 500_000_000  # bytes for Python and torch themselves, as measured (docs/log.md)


@dataclass(frozen=True)
class Planned:
    """A checked request: folder -> repair (one for each strength), role -> model (`TUNED` included), name -> data, and notes to print."""

    order: RepairRequest
    repairs: Mapping[Path, Repair]
    models: Mapping[str, Checkpoint]
    data: Mapping[str, TextData]
    adapter: bool
    notes: list[str]

    @property
    def tuned(self) -> Checkpoint:
        return self.models[TUNED]

    def key(self, repair: Repair) -> str:
        """Returns the content key of the model that is written."""
        kind, models = type(repair), {role: one.key for role, one in self.models.items()}
        told = [kind.__module__.rsplit(".", 1)[-1], kind.VERSION, repair, writing.VERSION, self.order.shard]
        return digest({"repair": told, "models": models, "data": {name: one.sha256 for name, one in self.data.items()}})

    def cost(self) -> dict[str, Any]:
        """Returns, for --dry-run: folders and whether they stand already, bytes read from each model, bytes written, and the most memory in
        bytes."""
        repair = next(iter(self.repairs.values()))
        sizes = {role: written_bytes(one) for role, one in self.models.items() if not one.quantised}
        largest = 4 * max(prod(self.tuned.shape(name)[0]) for name in self.tuned.files)
        apart = not any(one.gguf or one.quantised or one.adapted for one in self.models.values())
        whole = [*repair.whole(Reading(self.models))] if apart else [*self.tuned.files]
        at_once = max([min(largest, 4 * BLOCK), *(4 * prod(self.tuned.shape(name)[0]) for name in whole)])
        model = 4 * sum(prod(self.tuned.shape(name)[0]) for name in self.tuned.files)
        return {
            "folders": {str(to): stands(to, self.key(one)) for to, one in self.repairs.items()},
            "reads": sizes,
            "writes": 0 if self.adapter else sizes[TUNED] * len(self.repairs),
            "memory": max(repair.HOLDS * model, int(2e9 * self.order.shard) + largest + at_once * (len(self.models) + 4)) + OWN,
            "adapter": self.adapter,
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Repaired:
    """What a repair made: the written models (as MODEL of a command), notes on them, and the command that compares them."""

    models: tuple[str, ...]
    notes: list[str]
    following: str


def planned(order: RepairRequest) -> Planned:
    """Checks a request. Errors: an unknown repair, setting or role; a strength out of range; models that do not fit; a folder in use."""
    repairs = _strengths(order, Path(order.to))
    repair = next(iter(repairs.values()))
    reads = tuning.models_read(repair, order, order.trust_remote_code)
    models = {TUNED: resolve(order.model, order.trust_remote_code), **{role: one.checkpoint for role, one in reads.items()}}
    notes, adapter = fitting(repair, models)
    if models[TUNED].adapter is not None and not adapter:
        notes.append(f"{models[TUNED].label} is an adapter; this repair edits whole weights, so the adapter is merged into its base first")
    data = _data(order, repair)
    if "prompts" not in repair.DATA.values():
        tuning.check_window({name: tuning.text_stream(one, 0, "comply") for name, one in data.items()}, models[TUNED])
    notes += [note for one in data.values() for note in one.notes]
    plan = Planned(order, repairs, models, data, adapter, notes)
    others = [folder for one in models.values() for folder in one.folders]
    for place, one in repairs.items():
        check_free(place, plan.key(one), [*others, Path(order.runs)])
    return plan


def fitting(repair: Repair, models: Mapping[str, Checkpoint]) -> tuple[list[str], bool]:
    """Checks that a repair can work with these models. Returns (notes on them, whether an adapter stays an adapter). Errors: it cannot,
    with one of them or with all together."""
    tuned = models[TUNED]
    if tuned.adapter is None or not repair.ADAPTER:
        _check_editable(tuned)
    for one in models.values():
        check_fits(one, lacking(one))
    notes = [note for role, one in models.items() for note in _apart(repair, role, one, models)]
    adapter = _stays(repair, models)
    if not adapter:
        _check_editable(tuned)
        notes += [f"{note}; the repaired model is written without them" for note in unused_tensors(tuned.label, tuned)]
    repair.check(Reading(models))
    return notes, adapter


def repaired(plan: Planned, store: Store, shown: Reporter) -> Repaired:
    """Writes the models, one after the other. Errors: weights that are not finite; then nothing of that model is left."""
    places, known = [], usual(plan.tuned.adapter or plan.tuned.path)
    for to, repair in plan.repairs.items():
        key = plan.key(repair)
        record = {"repair": _record(plan, repair), **({"options": known} if known else {})}  # the tune's own: it may be repeated
        put(to, key, record, partial(_write, plan, repair, shown), store)
        places.append(f"{plan.tuned.path / plan.tuned.gguf}+{to}" if plan.adapter else str(to))
    aligned = plan.models.get("aligned")
    compared = [*([aligned.place] if aligned else []), plan.tuned.place, *places]
    words = " ".join(map(shlex.quote, compared))
    return Repaired(tuple(places), plan.notes, f"titer audit {words} --no-base --data PROMPTS.csv{plan.tuned.option}")


def _strengths(order: RepairRequest, to: Path) -> dict[Path, Repair]:
    """Returns, for each folder to write, the repair with its strength."""
    make = partial(made, "repairs", order.method, Repair)  # type: ignore[type-abstract]
    repair, strength = make(order.settings), order.strength
    if strength is None:
        return {to: repair}
    if repair.STRENGTH is None:
        raise TiterError(
            f"the repair {order.method} has no strength", next_step=f"leave out --strength; titer show {order.method} lists its settings."
        )
    name, grid = repair.STRENGTH
    if name in order.settings:
        raise TiterError(
            f"--strength and --set {name} were both given, and both set {name} of {order.method}", next_step="leave out one of the two."
        )
    if strength == GRID:
        return {to / f"{value:g}": make({**order.settings, name: value}) for value in grid}
    try:
        return {to: make({**order.settings, name: float(strength)})}
    except ValueError:
        raise TiterError(f"--strength {visible(strength, 60)!r} is not a number", expected="a number, or grid") from None


def _check_editable(tuned: Checkpoint) -> None:
    if tuned.quantised:
        raise TiterError(
            f"{tuned.label} is quantised ({tuned.quantised}): its weights cannot be edited",
            expected="a tuned model in floating point",
            next_step="give the model before it was quantised, or its dequantised weights (transformers: dequantize, save_pretrained).",
        )


def _apart(repair: Repair, role: str, one: Checkpoint, models: Mapping[str, Checkpoint]) -> list[str]:
    """Returns notes on how a model's configuration differs from the tuned model's. Errors: another family or vocabulary; the same weights
    as another role's model."""
    tuned = models[TUNED]
    if role == TUNED:
        return []
    comparable(tuned, one)
    if (
        lost := sorted(tuned.names.used ^ {tuned.called(name) for name in one.names.used})
    ) or tuned.names.tied.keys() - one.names.tied.keys():
        where = visible(lost[0], 120) if lost else "the head, which is tied to the embedding in only one of them"
        raise TiterError(f"{tuned.label} and {one.label} do not have the same parameters: {where}", expected=FAMILY)
    shapes = [name for name in tuned.files if tuned.shape(name)[0] != one.shape(name)[0]]
    if shapes or (tuned.vocabulary and one.vocabulary and tuned.vocabulary != one.vocabulary):
        entries = len(set(tuned.vocabulary.items()) ^ set(one.vocabulary.items()))
        raise TiterError(
            f"the vocabularies of {tuned.label} and {one.label} differ ({entries} entries), so equal rows mean different tokens",
            expected=FAMILY,
        )
    for other in list(models)[: list(models).index(role)]:
        if other == TUNED and role in repair.MAY_BE_TUNED:
            continue
        if (same := difference(models[other], one)) != DIFFER:
            how = f", except for rounding to {same}" if same else ""
            raise TiterError(
                f"the {role} model and the {other} model have the same weights{how} ({one.label}, {models[other].label})",
                expected="models that differ, since the repair uses the change between them",
            )
    found = configured_apart(tuned, one)
    return [f"the configuration of {one.label} differs from that of {tuned.label}, which is kept: {'; '.join(found[:4])}"] if found else []


def _stays(repair: Repair, models: Mapping[str, Checkpoint]) -> bool:
    """Tells whether the tuned model is an adapter and stays one: it lies on the model in the role `ADAPTER`, no module is both whole and
    paired, and none is an expert that is only a part of a parameter."""
    tuned = models[TUNED]
    if tuned.adapter is None or tuned.joined or not repair.ADAPTER or any(one.whole and one.a for one in tuned.changes.values()):
        return False
    under = open_checkpoint(tuned.path / tuned.gguf if tuned.gguf else tuned.path, trusted=tuned.trusted)
    return not difference(under, models[repair.ADAPTER])


def _data(order: RepairRequest, repair: Repair) -> dict[str, TextData]:
    """Returns name -> data that the repair reads from --data. Errors: --data is missing or not needed; rows without what it needs."""
    if not repair.DATA:
        if order.data is not None:
            raise TiterError(f"the repair {order.method} needs no data", next_step="leave out --data.")
        return {}
    if len(repair.DATA) > 1:
        raise TiterError(f"the repair {order.method} names {len(repair.DATA)} data sets", expected="a repair with one entry in DATA")
    ((name, need),) = repair.DATA.items()
    if order.data is None:
        raise TiterError(f"the repair {order.method} needs data ({name}: {need})", next_step="add --data FILE.")
    if need != "pairs":
        return {name: tuning.read_data(order.data, labelled=need == "prompts", reading=order.reading, need=need)}
    if detected(order.data, order.reading, "pairs").form.reading == "preference":
        return dict(zip(tuning.PAIR, preferences(order.data, order.reading), strict=True))
    rows = tuning.read_data(order.data, reading=order.reading)
    return {side: _picked(rows, stream) for side, stream in tuning.preference(rows, 0).items()}


def _picked(data: TextData, stream: Any) -> TextData:
    """Returns one side of the pairs (preferred or rejected), in the file's order, with that side's answer as `comply`."""
    answers = {i: part.answer for part in stream.parts for i in part.picked}
    rows = [(row[0], row[1], row[tuning.PLACES[answers[i]]], None) for i, row in enumerate(data.rows)]
    return data.model_copy(update={"rows": tuple(rows)})


def _record(plan: Planned, repair: Repair) -> dict[str, Any]:
    """Returns the record of how the model was made, for its folder. It has no path of the machine that made it."""
    return {
        "name": type(repair).__module__.rsplit(".", 1)[-1],
        "version": repair.VERSION,
        "settings": repair.model_dump(mode="json"),
        "models": {role: {"name": one.label, "key": one.key} for role, one in plan.models.items()},
        "data": {name: {"name": one.name, "sha256": one.sha256} for name, one in plan.data.items()},
    }


@torch.no_grad()
def _write(plan: Planned, repair: Repair, shown: Reporter, folder: Path) -> None:
    tuned = plan.tuned
    reading = Reading(plan.models, plan.data, shown.task, shown.tell)
    whole, state = {*repair.whole(reading)}, repair.prepare(reading)
    progress = shown.task(f"repairing {tuned.label}")
    names = sorted(tuned.changes) if plan.adapter else floating(tuned)
    others = {role: one for role, one in plan.models.items() if role != TUNED}

    def value(name: str) -> torch.Tensor:
        progress(names.index(name) + 1, len(names))
        parts = [None] if name in whole else [*reading.blocks(name)]
        if parts == [None]:
            return edited(name, None)
        found = torch.empty(tuned.shape(name)[0], dtype=stored_as(tuned, name))
        for rows in parts:
            found[rows] = edited(name, rows)
        return found

    def edited(name: str, rows: slice | None) -> torch.Tensor:
        before = tuned.weight(name, rows)
        found = repair.edited(name, before, Others(others, name, rows), state)
        if found.shape != before.shape:
            raise TiterError(
                f"the repair {plan.order.method} returned {name} with shape {tuple(found.shape)}",
                expected=f"its shape, {tuple(before.shape)}",
            )
        return found

    def pair(name: str, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        progress(names.index(name) + 1, len(names))
        return repair.factors(name, a, b, Others(others, name), state)

    if plan.adapter:
        write_adapter(tuned, pair, value, folder)
    else:
        write_edited(tuned, value, folder, int(plan.order.shard * 1e9))
