"""The contract of a repair: it edits a tuned model's weights one parameter at a time, given the same parameter of other models.

A repair is a record of settings plus two hooks: `prepare`, called once, and `edited`, called for each parameter. If an adapter can take
the edit, a third hook, `factors`, is called for each of its pairs. The caller (commands/repair.py) writes the results in shards, in the
type in which the tuned model is stored. So a repair sees one parameter of each model at a time, and no whole model is in memory unless
the repair loads one (`HOLDS`). Parameters are named as in the model (`Checkpoint.weight`) and are float32 on the CPU.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from titer.models import weights
from titer.models.blocks import transposed
from titer.models.checkpoint import Checkpoint
from titer.models.edited import floating
from titer.models.lm import LM, load
from titer.models.sites import Sites, block_linears
from titer.models.weights import skeleton

State = Mapping[str, Any]
TUNED = "tuned"  # the role of the model that is repaired


class Others(dict[str, torch.Tensor]):
    """A mapping of role -> one parameter of the model in that role. The parameter, or its `rows` alone, is read from disk on
    each access and not kept."""

    def __init__(self, models: Mapping[str, Checkpoint], name: str, rows: slice | None = None) -> None:
        super().__init__()
        self._models, self._name, self.rows = models, name, rows

    def __missing__(self, role: str) -> torch.Tensor:
        return self._models[role].weight(self._name, self.rows)


@dataclass(frozen=True)
class Reading:
    """The argument of `prepare`: the models by role (`TUNED` included), the data by name, and how to report progress.

    `task` begins a piece of work and returns a function (done, total) that shows its progress; `tell` prints a line.
    """

    models: Mapping[str, Checkpoint]
    data: Mapping[str, TextData] = field(default_factory=dict)
    task: Callable[[str], Callable[[int, int], None]] = lambda text: lambda done, total: None
    tell: Tell = quiet

    @property
    def tuned(self) -> Checkpoint:
        return self.models[TUNED]

    @cached_property
    def names(self) -> list[str]:
        """The parameters to edit, in the order in which they are edited."""
        return floating(self.tuned)

    @cached_property
    def sites(self) -> Sites:
        """The tuned model's structure, which tells where each parameter is. No weight is in memory."""
        return skeleton(self.tuned)

    @cached_property
    def matrices(self) -> dict[str, bool]:
        """A dictionary: weight of a block's Linear -> whether it is stored as (inputs, outputs). Errors: as `block_linears`."""
        return named_linears(self.sites)

    def layered(self, layers: Sequence[int]) -> list[str]:
        """Returns the parameters of the given blocks (from 0), or all parameters if none is given. Errors: a block that does not exist."""
        if not layers:
            return self.names
        blocks = self.sites.blocks
        if wrong := [i for i in layers if not 0 <= i < len(blocks)]:
            raise TiterError(
                f"there is no layer {wrong[0]}: {self.tuned.label} has {len(blocks)} layers", expected=f"layers from 0 to {len(blocks) - 1}"
            )
        inside = {id(p) for i in layers for p in blocks[i].whole.parameters()}
        named = {name for name, p in self.sites.model.named_parameters() if id(p) in inside}
        return [name for name in self.names if name in named]

    def check_direction(self, writers: Collection[str], layer: int) -> None:
        """Errors: there is no parameter to edit along a direction, or no block `layer` (-1: any) after which to take it."""
        if not writers:
            raise TiterError(
                f"{self.tuned.label} has no matrix that writes to the residual stream", expected="a decoder made of blocks of layers"
            )
        if layer >= self.sites.layers:
            raise TiterError(
                f"there is no layer {layer}: {self.tuned.label} has {self.sites.layers} layers", expected=f"-1 to {self.sites.layers - 1}"
            )

    def weight(self, role: str, name: str, rows: slice | None = None) -> torch.Tensor:
        return self.models[role].weight(name, rows)

    def blocks(self, name: str) -> Iterator[slice | None]:
        """Yields the rows of a parameter that are edited at once, if it need not be edited whole; None for all (see `weights.blocks`)."""
        return weights.blocks((self.tuned, *self.models.values()), name)

    def others(self, name: str) -> Others:
        """Returns the parameter `name` of every model, by role."""
        return Others(self.models, name)

    def batch(self, name: str, picked: np.ndarray, lm: LM) -> Batch:
        """Returns the data's rows `picked` as tokens on the model's device. It was checked before that they fit the model's window."""
        return self.data[name].batch(picked, "comply", lm.tokenizer).to(lm.device)

    @contextmanager
    def loaded(self, role: str) -> Iterator[LM]:
        """A context in which a whole model is loaded and frozen. `HOLDS` must count that model."""
        lm = load(self.models[role])
        lm.model.eval().requires_grad_(False)
        yield lm


def named_linears(sites: Sites) -> dict[str, bool]:
    """Returns name of each weight of the blocks' Linears -> whether it is stored as (inputs, outputs), in `block_linears`' order."""
    named = {id(p): name for name, p in sites.model.named_parameters()}
    return {named[id(layer.weight)]: transposed(layer) for layer in block_linears(sites).values()}


class Repair(Record):
    """The base class of repairs; its fields are its settings, its methods the hooks. A subclass is not subclassed again."""

    MODELS: ClassVar[tuple[str, ...]] = ()  # roles of the models that it reads, besides the tuned one
    OPTIONAL: ClassVar[tuple[str, ...]] = ()  # further roles, which may be left out
    DATA: ClassVar[Mapping[str, Need]] = {}  # the name that --data gets -> what its rows must hold; "pairs" become preferred and rejected
    HOLDS: ClassVar[int] = 0  # the most that `prepare` holds in memory, in sizes of a whole float32 model
    MAY_BE_TUNED: ClassVar[tuple[str, ...]] = ()  # roles in which the tuned model itself may be given; in any other it is an error
    ADAPTER: ClassVar[str] = ""  # `factors` is used if the adapter lies on the model in this role; "": always merge
    SOURCE: ClassVar[str]
    VERSION: ClassVar[int]
    NEUTRAL: ClassVar[Mapping[str, Any] | str]  # the settings that return the tuned model bit for bit, or a sentence why there are none
    STRENGTH: ClassVar[tuple[str, tuple[float, ...]] | None]  # the setting that --strength sets, and its grid; None: no --strength

    def check(self, r: Reading) -> None:
        """Called before anything is made, without reading a weight. Errors: settings or models that the repair cannot work with."""

    def prepare(self, r: Reading) -> State:
        """Called once; returns what the edits need to know about the whole model. Errors: weights or data that it cannot work with."""
        return {}

    def whole(self, r: Reading) -> Collection[str]:
        """Returns the parameters to be edited whole. In the others, rows follow from the same rows of the models alone; if large, these are
        edited a few rows at a time, in little memory. Called before `prepare`; reads no weight."""
        return r.names

    @abstractmethod
    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        """Returns the repaired parameter `name`, with the shape of `tuned`. `others`: role -> the same parameter of that model."""

    def factors(
        self, name: str, a: torch.Tensor, b: torch.Tensor, others: Mapping[str, torch.Tensor], state: State
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the repaired factors A (rank, inputs) and B (outputs, rank) of an adapter at `name`. Needed if `ADAPTER` names a role."""
        raise TiterError(
            f"the repair {type(self).__name__} sets ADAPTER and does not define factors", next_step="define factors, or leave ADAPTER out."
        )
