"""What an attack does: rewrite harmful requests, or prefill their answers. Nothing here trains a model.

Harmful fine-tuning is not an attack but a finetune stage on a poisoned Mix.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch

from titer.core.config import Record
from titer.core.errors import TiterError
from titer.data.example import Example
from titer.data.world import World
from titer.models.lm import LM

State = Mapping[str, Any]


class Attempt(NamedTuple):
    """A request as the model receives it: the (rewritten) example, the start of the answer if prefilled, and
    embeddings (n, D) inserted into the prompt (`models/suffix.py`) if any."""

    example: Example
    prefix: str = ""
    suffix: torch.Tensor | None = None


class Attack(Record):
    """Settings as fields. Subclasses are final; WORLD attacks exist on the synthetic world alone."""

    SOURCE: ClassVar[str]
    VERSION: ClassVar[int]
    WORLD: ClassVar[bool] = False

    seed: int = 0

    def fit(self, lm: LM, examples: Sequence[Example]) -> State:
        """What the attack learns from training examples; most learn nothing."""
        return {}

    @abstractmethod
    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        """One attempt for each harmful example, in order."""


def on_the_world(attack: Attack, world: World | None) -> World:
    """The world, or a clear refusal to run a world's attack on real text."""
    if world is None:
        name = type(attack).__module__.rsplit(".", 1)[-1]
        raise TiterError(f"the attack {name} exists on the synthetic world only", next_step="use --attack prefill on real text.")
    return world
