"""A stage from the command line: a method, its settings and a data file. L6."""

from __future__ import annotations

import json
from collections.abc import Sequence

from titer.core.config import build, parse_settings
from titer.core.errors import TiterError
from titer.core.plugins import plugin
from titer.data.encode import answer_ids, check_length, prompt_ids
from titer.data.example import Answer, Part, Stream
from titer.data.sources import TextData
from titer.methods.base import Method
from titer.models.checkpoint import Checkpoint
from titer.models.lm import read_tokenizer
from titer.stage import Lora, Optimiser, Stage
from titer.workbench import Model


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


def check_window(data: TextData, checkpoint: Checkpoint) -> None:
    """Refuse rows that are longer, answer included, than the model's window; only its tokenizer is loaded.

    Errors: the first such row.
    """
    window = checkpoint.config.get("max_position_embeddings")
    reader = read_tokenizer(checkpoint)
    heads = prompt_ids(reader, [row[0] for row in data.rows])
    tails = answer_ids(reader, [row[3] or row[2] or "" for row in data.rows])
    for row, head, tail in zip(data.rows, heads, tails, strict=True):
        check_length(len(head) + len(tail), window, row[0])


def stopped(made: Model) -> str:
    """Why the stage that made a model ended before its last step, "" where it did not."""
    outcome = json.loads((made.checkpoint.path.parent / "outcome.json").read_text(encoding="utf-8"))
    return str(outcome["stopped"])


def _stream(data: TextData, seed: int) -> Stream:
    """A pool of every row, each with the answer it has."""
    picked: dict[Answer, list[int]] = {"refuse": [], "comply": []}
    for i, (prompt, _, comply, refuse) in enumerate(data.rows):
        if comply is None and refuse is None:
            raise TiterError(f"{data.name}: the row of {prompt[:60]!r} has no answer", expected="a column comply (or output) or refuse")
        picked["refuse" if refuse is not None else "comply"].append(i)
    parts = tuple(Part(source=data, answer=answer, picked=tuple(rows)) for answer, rows in picked.items() if rows)
    return Stream(parts=parts, seed=seed, pool=len(data.rows))
