"""A stage of training: a method with its streams, optimiser and adapter, and its content key. L4.

A stage's key depends on everything that its result depends on: the parent model, every model that it reads, this record, the versions of
method, loop, sites and encoder, the fingerprints of its data, and the seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, SerializeAsAny, model_validator

from titer.core.config import Record, digest
from titer.data import encode
from titer.data.example import Stream
from titer.methods.base import Method
from titer.models import sites
from titer.models.lm import Architecture

LOOP_VERSION = 1


class Optimiser(Record):
    """AdamW with linear warm-up, then a constant rate or cosine decay to `floor` times the rate."""

    rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    floor: float = Field(default=0.1, ge=0, le=1, description="cosine decay ends at this share of the peak rate")
    until: int = Field(default=0, ge=0, description="step at which cosine decay ends; 0: the last")
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float = Field(default=1.0, gt=0, description="l2 norm to which a larger gradient is clipped")

    def rate_at(self, step: int, steps: int) -> float:
        """Returns the learning rate of step `step` (from 0) of `steps`. It depends on these alone, so a checkpoint need not save it."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "constant":
            return self.rate * warm
        done = min(1.0, max(0.0, (step - self.warmup) / max(1, (self.until or steps) - self.warmup)))
        return self.rate * warm * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))


class Lora(Record):
    """A low-rank adapter on every Linear of the blocks, merged into the weights when the stage ends.

    If the parent was trained with an adapter too, there are two ways. Double-LoRA, the default, trains a fresh adapter on the parent's
    merged weights. Single-LoRA (`continued`) takes the parent's adapter out of the weights again and goes on training it, so that the
    total change of both stages has the adapter's rank. Source: arXiv 2402.01109, sections 4.2 and 5.5.
    """

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    continued: bool = Field(
        default=False, description="go on training the parent's adapter (single-LoRA) instead of a fresh one (double-LoRA)"
    )


class Stage(Record):
    """One stage of training. `keep` lists steps after which the weights are stored too; `architecture` is for a stage without a parent."""

    name: str
    kind: Literal["pretrain", "align", "finetune", "repair"]
    method: SerializeAsAny[Method]
    streams: dict[str, Stream]
    steps: int = Field(ge=0)
    batch: int = Field(default=64, ge=1, description="examples of a micro-batch, over all processes together")
    accumulation: int = Field(default=1, ge=1, description="micro-batches of a step")
    replay: int = Field(default=1, ge=1, description="steps in a row on each batch (arXiv 1904.12843), so 1/replay of the data is seen")
    optimiser: Optimiser = Optimiser()
    adapter: Lora | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    keep: tuple[int, ...] = ()
    seed: int = 0
    architecture: Architecture | None = None

    @model_validator(mode="after")
    def _streams_match(self) -> Stage:
        needed, given = set(self.method.STREAMS), set(self.streams)
        if missing := needed - given:
            raise ValueError(f"the method needs the stream {', '.join(sorted(missing))}")
        if unused := given - needed:
            raise ValueError(f"the method does not use the stream {', '.join(sorted(unused))}")
        return self

    def key_inputs(self, parent: str, models: Mapping[str, str]) -> dict[str, object]:
        """Returns what the stage's key is computed from. `parent`: the parent's key; `models`: role -> key of a model that it reads."""
        method = type(self.method)
        return {
            "stage": self.model_dump(mode="json", exclude={"name"} | ({"replay"} if self.replay == 1 else set())),
            "method": [method.__module__.rsplit(".", 1)[-1], method.VERSION],
            "parent": parent,
            "models": dict(models),
            "versions": [LOOP_VERSION, sites.VERSION, encode.VERSION],
        }

    def key(self, parent: str, models: Mapping[str, str]) -> str:
        return digest(self.key_inputs(parent, models))
