"""A stage from the command line: a method, its settings and a data file. L6."""

from __future__ import annotations

from collections.abc import Sequence

from titer.core.config import build, parse_settings
from titer.core.errors import TiterError
from titer.core.plugins import plugin
from titer.data.example import Answer, Part, Stream
from titer.data.sources import TextData
from titer.methods.base import Method
from titer.stage import Lora, Optimiser, Stage


def align_stage(data: TextData, method: str, settings: Sequence[str], steps: int, batch: int, rate: float, lora: int, seed: int) -> Stage:
    """An align stage: every row's answer is trained, `refuse` where a row has one, else `comply`.

    Errors: rows without an answer, an unknown method or setting, a value out of range.
    """
    made = build(plugin("methods", method, Method), parse_settings(settings), f"method {method}")  # type: ignore[type-abstract]
    if made.STREAMS != ("train",):
        raise TiterError(f"method {method} needs the streams {', '.join(made.STREAMS)}", expected="a method with the one stream `train`")
    values = {
        "name": f"{method} on {data.name}",
        "kind": "align",
        "method": made,
        "streams": {"train": _stream(data, seed)},
        "steps": steps,
        "batch": batch,
        "optimiser": build(Optimiser, {"rate": rate, "warmup": min(20, steps // 10)}, "optimiser"),
        "adapter": Lora(rank=lora) if lora else None,
        "seed": seed,
    }
    return build(Stage, values, "stage")


def _stream(data: TextData, seed: int) -> Stream:
    """A pool of every row, each with the answer it has."""
    picked: dict[Answer, list[int]] = {"refuse": [], "comply": []}
    for i, (prompt, _, comply, refuse) in enumerate(data.rows):
        if comply is None and refuse is None:
            raise TiterError(f"{data.name}: the row of {prompt[:60]!r} has no answer", expected="a column comply (or output) or refuse")
        picked["refuse" if refuse is not None else "comply"].append(i)
    parts = tuple(Part(source=data, answer=answer, picked=tuple(rows)) for answer, rows in picked.items() if rows)
    return Stream(parts=parts, seed=seed, pool=len(data.rows))
