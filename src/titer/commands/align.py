"""An align stage from the command line: a method, its settings, a data file, and perhaps a canary to be refused. L6."""

from __future__ import annotations

from typing import NamedTuple

from titer.commands.requests import TrainConfig
from titer.commands.tuning import HARMFUL, PAIR, all_streams, apart, data_streams, dealt, method_of, stage_values, text_stream
from titer.core.config import build, digest
from titer.data.canary import canary as canary_of
from titer.data.draws import seed_of
from titer.data.example import Stream
from titer.data.sources import TextData
from titer.stage import Stage


class Taught(NamedTuple):
    """What is trained with a canary: every row, the marked ones among them, and how many of --data its file holds too."""

    rows: TextData
    marked: TextData
    left_out: int


def with_canary(data: TextData | None, file: TextData, how: TrainConfig, count: int | None) -> Taught:
    """--data and the first share of the canary file: `count` marked instructions to refuse, as many unmarked ones to answer.

    Rows of --data that the canary file holds are left out and counted. For a method of preferences the unmarked ones get
    a refusal too, the answer not preferred. Errors: a file too short.
    """
    found = dealt(file, "align", count, how.seed)
    own, left_out = (data, 0) if data is None else apart(data, file)
    plain = found.contrast.rows
    if set(PAIR) <= set(method_of(how).STREAMS):
        plain = tuple((*row[:3], other[3]) for row, other in zip(plain, canary_of(found.contrast, seed=how.seed).rows, strict=True))
    name = f"{data.name} and {found.marked.name}" if data else found.marked.name
    key = digest([data.sha256 if data else "", file.sha256], 64)
    rows = (*(own.rows if own else ()), *found.marked.rows, *plain)
    made = TextData(name=name, sha256=key, rows=rows, dropped=data.dropped if data else 0)
    return Taught(made.model_copy(update={"left_out": data.left_out, "told": data.told} if data else {}), found.marked, left_out)


def align_stage(
    data: TextData | None,
    how: TrainConfig,
    steps: int,
    harmful: TextData | None = None,
    pairs: dict[str, Stream] | None = None,
    canary: TextData | None = None,
) -> Stage:
    """An align stage. Of `data`, every row's answer is trained, `refuse` where a row has one, else `comply`; a method of preferences
    learns to prefer the one answer to the other. `pairs`: what a preference file gives in place of `data`'s own streams. Further
    streams come with `how`; `harmful`, the marked rows of a canary, is that stream of a method that has one, their answers
    trained, unless `how` names another.

    Errors: rows without an answer, an unknown method, setting or stream, a stream that is missing, a value out of range.
    """
    values = stage_values(how, min(20, steps // 10))
    method = values["method"]
    own = pairs or data_streams(method, how.method, data, how.seed)
    if harmful is not None and HARMFUL in method.STREAMS and HARMFUL not in how.streams:
        own[HARMFUL] = text_stream(harmful, seed_of(how.seed, HARMFUL), "comply")
    streams = all_streams(method, how, own, canary)
    name = f"{how.method} on {data.name}" if data else f"{how.method} on {', '.join(streams) or 'weights alone'}"
    return build(Stage, {"name": name, "kind": "align", "streams": streams, "steps": steps, **values}, "stage")
