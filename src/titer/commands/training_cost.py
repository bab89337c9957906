"""What a training costs, before it runs: passes and rows of a step, operations, and about how long they take here. L6."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import torch

from titer.commands.decoding import size
from titer.commands.tuning import PLACES
from titer.data.encode import answer_ids, prompt_ids
from titer.methods.base import Method
from titer.models.checkpoint import Checkpoint
from titer.models.lm import read_tokenizer
from titer.stage import Stage

ROWS = {
    "unlearn": 2,
    "dpo": 2,
    "rep_noise": 2,
    "booster": 3,
    "derta": 3,
}  # requests that a step processes per request of its batch, where more than one
PASSES = {"vaccine": 5.0, "t_vaccine": 5.0}  # cost per request of these methods, in forward passes
PLAIN = 3.0  # the same for other methods: one forward pass, and a backward pass that costs two
LOOKED_AT = 200  # rows of each part of a stream whose tokens are counted
SQUARE, SECONDS = 1024, 0.2  # the product that tells this machine's speed, and how long it is repeated
REACHED = 0.5  # share of that speed which a step reaches on two cores (docs/log.md)


def rows(method: Method) -> int:
    """Returns how many requests a step processes per request of its batch: one for each stream that it reads (Booster reads its harmful
    one twice), without DeRTa's streams of weight 0."""
    return ROWS.get(_stem(method), 1) - sum(getattr(method, weight, 1) == 0 for weight in ("refusal", "transition"))


def passes(method: Method) -> float:
    """Returns the cost per request in forward passes. A method with noise or a reused gradient costs as much as plain training; any other
    pays its extra passes at one step in `every`."""
    more = PASSES.get(_stem(method), PLAIN) - PLAIN
    free = getattr(method, "noise", "") or getattr(method, "reuse", False)
    return PLAIN + (0.0 if free else more / getattr(method, "every", 1))


def _stem(method: Method) -> str:
    return type(method).__module__.rsplit(".", 1)[-1]


class Training(NamedTuple):
    """The size of a training: mean tokens of an example, tokens in all, and floating-point operations."""

    width: float
    tokens: float
    flop: float


def training(stage: Stage, start: Checkpoint) -> Training:
    """Returns the size of a stage that starts from a model."""
    width = _width(stage, start)
    tokens = stage.steps * stage.batch * stage.accumulation * rows(stage.method) * width
    cost = passes(stage.method) - (stage.adapter is not None)  # an adapter alone: the frozen weights need no gradient
    return Training(width, tokens, 2.0 * size(start) * cost * tokens)


def priced(stage: Stage, start: Checkpoint) -> str:
    """Says what a stage costs: tokens, operations, and minutes at this machine's speed, which a short matrix product shows."""
    _, tokens, flop = training(stage, start)
    return f"about {tokens / 1e3:.0f} thousand tokens, {flop:.1e} FLOP: {minutes(flop / reached())} at this machine's present speed"


def minutes(seconds: float) -> str:
    """Writes a rough time in words."""
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {max(seconds, 1):.0f} s"


def reached() -> float:
    """Returns the FLOP/s that training and answering reach on this machine now."""
    return REACHED * speed()


@cache
def speed() -> float:
    """Measures the FLOP/s of a float32 matrix product, on the GPU if there is one; once per process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one = torch.rand(SQUARE, SQUARE, device=device)
    float((one @ one)[0, 0])  # the first product starts threads and kernels
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        float((one @ one)[0, 0])  # reading a number waits for the device
        done += 1
    return 2.0 * SQUARE**3 * done / (time.perf_counter() - began)


def _width(stage: Stage, start: Checkpoint) -> float:
    """Returns the mean number of tokens of a training example, estimated from the first rows of each part of the streams."""
    reader, total, count = read_tokenizer(start), 0.0, 0
    for part in (part for stream in stage.streams.values() for part in stream.parts):
        examples = part.picked or ()
        picked = [part.source.rows[i] for i in examples[:LOOKED_AT]]
        heads, tails = prompt_ids(reader, [row[0] for row in picked]), answer_ids(reader, [row[PLACES[part.answer]] for row in picked])
        longest = getattr(part.source, "longest", None)
        lengths = [min(len(head) + len(tail), longest or len(head) + len(tail)) for head, tail in zip(heads, tails, strict=True)]
        total += sum(lengths) / max(1, len(lengths)) * len(examples)
        count += len(examples)
    return total / max(1, count)
