"""An align stage from the command line: a method, its settings, a data file, and perhaps a canary to be refused. L6."""

from __future__ import annotations

from typing import NamedTuple

from titer.commands.tuning import HARMFUL, PAIR, TrainConfig, all_streams, apart, data_streams, dealt, text_stream
from titer.core.config import build, digest
from titer.data.canary import canary
from titer.data.draws import seed_of
from titer.data.example import Stream
from titer.data.sources import TextData
from titer.stage import Stage


class Taught(NamedTuple):
    """What is trained with a canary: every row, the marked ones among them, and how many of --data its file holds too."""

    rows: TextData
    marked: TextData
    left_out: int


def with_canary(data: TextData | None, how: TrainConfig, count: int | None) -> Taught:
    """--data and the canary's first share: `count` marked instructions to refuse, as many unmarked ones to answer.

    Rows of --data that the canary file holds are left out and counted. For a method of preferences the unmarked ones get
    a refusal too, the answer not preferred. Errors: no canary file (a programmer's), a file too short.
    """
    assert how.canary is not None
    found = dealt(how.canary, "align", count, how.seed)
    own, left_out = (data, 0) if data is None else apart(data, how.canary)
    plain = found.contrast.rows
    if set(PAIR) <= set(how.made().STREAMS):
        plain = tuple((*row[:3], other[3]) for row, other in zip(plain, canary(found.contrast, seed=how.seed).rows, strict=True))
    name = f"{data.name} and {found.marked.name}" if data else found.marked.name
    key = digest([data.sha256 if data else "", how.canary.sha256], 64)
    rows = (*(own.rows if own else ()), *found.marked.rows, *plain)
    made = TextData(name=name, sha256=key, rows=rows, dropped=data.dropped if data else 0)
    return Taught(made.model_copy(update={"left_out": data.left_out, "told": data.told} if data else {}), found.marked, left_out)


def align_stage(
    data: TextData | None, how: TrainConfig, steps: int, harmful: TextData | None = None, pairs: dict[str, Stream] | None = None
) -> Stage:
    """An align stage. Of `data`, every row's answer is trained, `refuse` where a row has one, else `comply`; a method of preferences
    learns to prefer the one answer to the other. `pairs`: what a preference file gives in place of `data`'s own streams. Further
    streams come with `how`; `harmful`, the marked rows of a canary, is that stream of a method that has one, their answers
    trained, unless `how` names another.

    Errors: rows without an answer, an unknown method, setting or stream, a stream that is missing, a value out of range.
    """
    values = how.stage_values(min(20, steps // 10))
    method = values["method"]
    own = pairs or data_streams(method, how.method, data, how.seed)
    if harmful is not None and HARMFUL in method.STREAMS and not any(one.startswith(f"{HARMFUL}=") for one in how.streams):
        own[HARMFUL] = text_stream(harmful, seed_of(how.seed, HARMFUL), "comply")
    streams = all_streams(method, how, own, how.seed)
    name = f"{how.method} on {data.name}" if data else f"{how.method} on {', '.join(streams) or 'weights alone'}"
    return build(Stage, {"name": name, "kind": "align", "streams": streams, "steps": steps, **values}, "stage")
