"""A stage of `titer align`: a method with its settings, a data file, and perhaps a canary that the model learns to refuse. L6."""

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
    """The training data with a canary: all rows; the marked rows among them; how many rows of --data were left out."""

    rows: TextData
    marked: TextData
    left_out: int


def with_canary(data: TextData | None, file: TextData, how: TrainConfig, count: int | None) -> Taught:
    """Joins --data with the canary file's first share: `count` marked instructions to refuse and as many unmarked ones to answer.

    Rows of --data that the canary file has too are left out and counted. For a method that learns from preferences, the unmarked
    instructions also get a refusal, as the answer that is not preferred. Errors: the canary file is too short.
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
    """Makes a stage of kind align.

    `data`: each row's answer is trained, `refuse` where the row has one, else `comply`. A method that learns from preferences learns to
    prefer one answer over the other. `pairs`: the streams of a preference file, instead of those made from `data`. `harmful`: the marked
    rows of a canary with their answers, used as the method's stream `harmful` if it has one and `how` names no other file for it. Further
    streams are named in `how`. `canary`: the whole canary file; no stream may hold prompts of its test share.

    Errors: rows without an answer; an unknown method, setting or stream; a missing stream; a value out of range.
    """
    values = stage_values(how, min(20, steps // 10))
    method = values["method"]
    own = pairs or data_streams(method, how.method, data, how.seed)
    if harmful is not None and HARMFUL in method.STREAMS and HARMFUL not in how.streams:
        own[HARMFUL] = text_stream(harmful, seed_of(how.seed, HARMFUL), "comply")
    streams = all_streams(method, how, own, canary)
    name = f"{how.method} on {data.name}" if data else f"{how.method} on {', '.join(streams) or 'weights alone'}"
    return build(Stage, {"name": name, "kind": "align", "streams": streams, "steps": steps, **values}, "stage")
