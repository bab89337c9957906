"""The contract of an attack: it rewrites harmful requests, or begins their answers. It never trains a model.

Harmful fine-tuning is not an attack in this sense: it is a stage of `titer finetune`, on data with harmful examples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

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
    """A request as the model receives it.

    `example`: the request, perhaps rewritten. `prefix`: the beginning of the answer, already written. `suffix`: embeddings (n, D) that
    are inserted into the prompt (`models/suffix.py`). `decoder`: chooses the answer's tokens instead of the model alone. `raw`: the
    prompt is plain text to continue, without the chat template. `decoder` and `raw` are the same for all attempts of a set.
    """

    example: Example
    prefix: str = ""
    suffix: torch.Tensor | None = None
    decoder: Guided | None = None
    raw: bool = False


class Attack(Record):
    """The base class of attacks; its fields are its settings. A subclass is not subclassed again. WORLD: for the synthetic world only."""

    SOURCE: ClassVar[str]
    VERSION: ClassVar[int]
    WORLD: ClassVar[bool] = False

    seed: int = Field(default=0, description="seed of all its random choices")

    @property
    def further_setting(self) -> str:
        """The setting that must be added to use what `fit` learns on other requests; "" if none is needed."""
        return ""

    def fit(self, lm: LM, examples: Sequence[Example]) -> State:
        """Returns what the attack learns about `lm` from training examples (tensors and JSON values). Most attacks learn nothing."""
        return {}

    @abstractmethod
    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        """Returns one attempt for each harmful example, in the same order. `state`: what `fit` returned; `world`: None on real text."""


def named(attempts: Sequence[Attempt], kind: str) -> list[Attempt]:
    """Returns the same attempts with `kind` as the name of their kind."""
    return [one._replace(example=replace(one.example, kind=kind)) for one in attempts]


def reworded(examples: Sequence[Example], change: Callable[[str], str]) -> list[Attempt]:
    """Returns attempts in which the text of each request is changed; in a conversation, the text of the last turn."""
    return [Attempt(replace(e, prompt=changed(e.prompt, change))) for e in examples]


def on_the_world(attack: Attack, world: World | None) -> World:
    """Returns the world. Errors: it is None, so an attack of the synthetic world is used on real text."""
    if world is None:
        name = type(attack).__module__.rsplit(".", 1)[-1]
        raise TiterError(f"the attack {name} exists on the synthetic world only", next_step="use --attack prefill on real text.")
    return world


class Texts(Protocol):
    """A function that makes one text for each index: `mixed_text` and `novel_text` of the world."""

    def __call__(
        self, world: World, split: Split, indices: NDArray[np.int64], purpose: str, *, grammar: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Returns the texts as letters (n, L)."""


def on_other_texts(kind: str, attack: Attack, examples: Sequence[Example], world: World | None, texts: Texts) -> list[Attempt]:
    """Returns the requests with new held-out texts, and each operator but the identity replaced by a contextual one, drawn by the seed."""
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
