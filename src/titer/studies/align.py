"""An align stage from the command line: a method, its settings and a data file. L6."""

from __future__ import annotations

from titer.core.config import build
from titer.data.sources import TextData
from titer.stage import Stage
from titer.studies.tuning import How, all_streams, data_streams


def align_stage(data: TextData | None, how: How, steps: int) -> Stage:
    """An align stage. Of `data`, every row's answer is trained, `refuse` where a row has one, else `comply`; a method of
    preferences learns to prefer the one answer to the other. Further streams come with `how`.

    Errors: rows without an answer, an unknown method, setting or stream, a stream that is missing, a value out of range.
    """
    values = how.stage_values(min(20, steps // 10))
    method = values["method"]
    streams = all_streams(method, how, data_streams(method, how.method, data, how.seed), how.seed)
    name = f"{how.method} on {data.name}" if data else f"{how.method} on {', '.join(streams) or 'weights alone'}"
    return build(Stage, {"name": name, "kind": "align", "streams": streams, "steps": steps, **values}, "stage")
