"""What recipes are made of: a model's node, parts of a stream over the world, fine-tunings on exact counts of examples. L5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from titer.data.example import Answer, Part, Source
from titer.data.mix import mix
from titer.data.world import World, WorldSource
from titer.methods.sft import SFT
from titer.stage import Optimiser, Stage

Kind = Literal["pretrain", "safe", "unsafe", "user", "sham_safe", "sham_refused"]
Rows = Sequence[tuple[Source, Answer, int]]  # what is trained, with which answer, how many examples


class Node(NamedTuple):
    """A model of a recipe: its name, the stage that makes it, the model that this stage starts from, and the models that its method reads.

    `told`: further columns for tables (its defence, its learning rate, ...); it is in no key.
    """

    name: str
    stage: Stage
    parent: str | None
    reads: Mapping[str, str] = MappingProxyType({})  # the method's name for a model -> the recipe's
    told: Mapping[str, object] = MappingProxyType({})

    def __reduce__(self) -> tuple[object, ...]:
        """Returns how the node is sent to another process, because views of mappings cannot be pickled."""
        return Node, (self.name, self.stage, self.parent, dict(self.reads), dict(self.told))


def part(world: World, kind: Kind, answer: Answer, share: float = 1.0) -> Part:
    """Returns training requests of one kind with one answer, and their share of a stream."""
    return Part(source=WorldSource(world=world, kind=kind), answer=answer, share=share)


def tune(
    name: str,
    rows: Rows,
    drawn: int,
    batch: int,
    epochs: int,
    rate: float,
    seed: int,
    schedule: Literal["cosine", "constant"] = "constant",
    warmup: int = 0,
    without: Iterable[str] = (),
) -> Stage:
    """Returns a fine-tuning on the rows, with as many steps as the epochs take. The seed `drawn` draws the examples, none of them a prompt
    in `without`. `warmup`: its steps, at most a quarter of all."""
    steps = -(-sum(count for *_, count in rows) * epochs // batch)
    return Stage(
        name=name,
        kind="finetune",
        method=SFT(),
        streams={"train": mix(rows, drawn, without)},
        steps=steps,
        batch=batch,
        optimiser=Optimiser(rate=rate, warmup=min(warmup, steps // 4), schedule=schedule),
        seed=seed,
    )
