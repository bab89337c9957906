"""What an attack does: rewrite harmful requests, or prefill their answers. Nothing here trains a model.

Harmful fine-tuning is not an attack but a finetune stage on a poisoned Mix.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from titer.core.config import Record
from titer.core.errors import TiterError
from titer.data.draws import Draws
from titer.data.example import Example
from titer.data.turns import changed
from titer.data.world import Split, World, parse, render
from titer.decoders.base import Guided
from titer.models.lm import LM

State = Mapping[str, Any]


class Attempt(NamedTuple):
    """A request as the model receives it: the (rewritten) example, the start of the answer if prefilled, and
    embeddings (n, D) inserted into the prompt (`models/suffix.py`) if any.

    `decoder`: what chooses the answer's tokens, where not the model alone; `raw`: the prompt is a text to go on from, without the chat
    template. Both are the same for all of a set.
    """

    example: Example
    prefix: str = ""
    suffix: torch.Tensor | None = None
    decoder: Guided | None = None
    raw: bool = False


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


def reworded(examples: Sequence[Example], change: Callable[[str], str]) -> list[Attempt]:
    """The requests with the text of each changed, a conversation's in its last turn."""
    return [Attempt(replace(e, prompt=changed(e.prompt, change))) for e in examples]


def on_the_world(attack: Attack, world: World | None) -> World:
    """The world, or a clear refusal to run a world's attack on real text."""
    if world is None:
        name = type(attack).__module__.rsplit(".", 1)[-1]
        raise TiterError(f"the attack {name} exists on the synthetic world only", next_step="use --attack prefill on real text.")
    return world


class Texts(Protocol):
    """Texts of some kind, one an index: `mixed_text` and `novel_text` of the world."""

    def __call__(
        self, world: World, split: Split, indices: NDArray[np.int64], purpose: str, *, grammar: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """(n, L) letters."""


def on_other_texts(kind: str, attack: Attack, examples: Sequence[Example], world: World | None, texts: Texts) -> list[Attempt]:
    """The requests on fresh held-out texts, every operator but the identity a contextual one, drawn by seed."""
    w = on_the_world(attack, world)
    requests = parse(w, list(examples))
    places = np.arange(len(requests))
    contextual = w.safe + w.unsafe + Draws(attack.seed, kind, places).below(w.contextual, np.arange(w.slots))
    rewritten = requests.with_(
        operators=np.where(requests.operators == 0, 0, w.ops.named(contextual, requests.grammar)),
        text=texts(w, "test", places, f"{kind} {attack.seed}", grammar=requests.grammar),
        kind=kind,
    )
    return [Attempt(example) for example in render(w, rewritten)]
