"""What recipes are made of: a model's node, and parts of a stream over the world. L5."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from titer.data.example import Answer, Part
from titer.data.world import World, WorldSource
from titer.stage import Stage

Kind = Literal["pretrain", "safe", "unsafe", "user", "sham_safe", "sham_refused"]


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
