"""The contract of a repair: an edit of a tuned model's weights, one parameter at a time, by what other models hold there.

A repair is a record of settings plus two hooks: `prepare` once, `edited` for every parameter; and, where an adapter can take the edit,
`factors` for every pair of it. Who calls them (commands/repair.py) writes what they return in shards, in the type the tuned model is
stored in, so a repair sees one parameter of each model at a time and no model is ever whole in memory, unless it loads one (`HOLDS`).
Parameters go by the model's names (`Checkpoint.weight`), float32 on the CPU.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from titer.core.config import Record
from titer.core.errors import TiterError
from titer.core.run import Tell, quiet
from titer.data.example import Batch
from titer.data.shapes import Need
from titer.data.sources import TextData
from titer.models.blocks import transposed
from titer.models.checkpoint import Checkpoint
from titer.models.edited import floating
from titer.models.lm import LM, load
from titer.models.sites import Sites, block_linears
from titer.models.weights import skeleton

State = Mapping[str, Any]
TUNED = "tuned"  # the role of the model that is repaired


class Others(dict[str, torch.Tensor]):
    """Role -> one parameter of the model in that role, read when it is asked for and not kept."""

    def __init__(self, models: Mapping[str, Checkpoint], name: str) -> None:
        super().__init__()
        self._models, self._name = models, name

    def __missing__(self, role: str) -> torch.Tensor:
        return self._models[role].weight(self._name)


@dataclass(frozen=True)
class Reading:
    """What `prepare` sees: the models by role (`TUNED` among them), the data by name, places of the weights, where to tell something."""

    models: Mapping[str, Checkpoint]
    data: Mapping[str, TextData] = field(default_factory=dict)
    task: Callable[[str], Callable[[int, int], None]] = lambda text: lambda done, total: None  # begins a piece of work, shows how far it is
    tell: Tell = quiet

    @property
    def tuned(self) -> Checkpoint:
        return self.models[TUNED]

    @cached_property
    def names(self) -> list[str]:
        """The parameters that are edited, in the order in which they are."""
        return floating(self.tuned)

    @cached_property
    def sites(self) -> Sites:
        """Which parameter stands where; no weight is in memory."""
        return skeleton(self.tuned)

    @cached_property
    def matrices(self) -> dict[str, bool]:
        """The weights of the blocks' Linears -> whether they are stored as (inputs, outputs). Errors: as `block_linears`."""
        return named_linears(self.sites)

    def layered(self, layers: Sequence[int]) -> list[str]:
        """The parameters of some blocks (from 0); every one where none is named. Errors: a block that there is not."""
        if not layers:
            return self.names
        blocks = self.sites.blocks
        if wrong := [i for i in layers if not 0 <= i < len(blocks)]:
            raise TiterError(f"layer {wrong[0]}: {self.tuned.label} has {len(blocks)}", expected=f"layers from 0 to {len(blocks) - 1}")
        inside = {id(p) for i in layers for p in blocks[i].whole.parameters()}
        named = {name for name, p in self.sites.model.named_parameters() if id(p) in inside}
        return [name for name in self.names if name in named]

    def weight(self, role: str, name: str) -> torch.Tensor:
        return self.models[role].weight(name)

    def others(self, name: str) -> Others:
        """One parameter of every model."""
        return Others(self.models, name)

    def batch(self, name: str, picked: np.ndarray, lm: LM) -> Batch:
        """Rows of the data, by their numbers, as tokens where the model is; that they fit its window was checked before."""
        return self.data[name].batch(picked, "comply", lm.tokenizer).to(lm.device)

    @contextmanager
    def loaded(self, role: str) -> Iterator[LM]:
        """A whole model, frozen, as long as it lasts; `HOLDS` counts it."""
        lm = load(self.models[role])
        lm.model.eval().requires_grad_(False)
        yield lm


def named_linears(sites: Sites) -> dict[str, bool]:
    """Parameter -> whether it is stored as (inputs, outputs), of every weight of the blocks' Linears, in `block_linears`' order."""
    named = {id(p): name for name, p in sites.model.named_parameters()}
    return {named[id(layer.weight)]: transposed(layer) for layer in block_linears(sites).values()}


class Repair(Record):
    """Settings as fields; the hooks below. Subclasses are final."""

    MODELS: ClassVar[tuple[str, ...]] = ()  # roles of the models that it reads beside the tuned one
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # further roles, which may be left out
    DATA: ClassVar[Mapping[str, Need]] = {}  # what --data is to it, and what its rows must hold: "pairs" give preferred and rejected
    HOLDS: ClassVar[int] = 0  # what `prepare` has in memory at once, in sizes of a whole model in float32
    MAY_BE_TUNED: ClassVar[tuple[str, ...]] = ()  # roles that the tuned model itself may fill; any other is an error there
    ADAPTER: ClassVar[str] = ""  # the role whose model must be what the adapter lies on, for `factors` to edit it; "": it is merged
    SOURCE: ClassVar[str]
    VERSION: ClassVar[int]
    NEUTRAL: ClassVar[Mapping[str, Any] | str]  # the settings that give the tuned model back bit for bit, or why none do
    STRENGTH: ClassVar[tuple[str, tuple[float, ...]] | None]  # the setting that --strength turns, and its grid; None: there is none

    def check(self, r: Reading) -> None:
        """Before anything is made; no weight is read. Errors: settings or models that it cannot work with."""

    def prepare(self, r: Reading) -> State:
        """What the edits need to know of the whole, made once. Errors: weights or data that it cannot work with."""
        return {}

    @abstractmethod
    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        """The parameter `name` repaired, of the shape of `tuned`; `others`: role -> the same parameter there."""

    def factors(
        self, name: str, a: torch.Tensor, b: torch.Tensor, others: Mapping[str, torch.Tensor], state: State
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The adapter's A (rank, inputs) and B (outputs, rank) at `name` repaired, where `ADAPTER` names a role."""
        raise TiterError(f"{type(self).__name__} names ADAPTER and does not define factors", next_step="define it, or leave ADAPTER out.")
