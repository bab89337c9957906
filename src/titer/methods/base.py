"""The contract of a training method: a record of hyper-parameters with four hooks, each given a context `c`.

A method never calls zero_grad, clips gradients or steps the optimiser: the loop (`train.py`) does.
Shapes: B examples, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch.nn import functional

from titer.core.config import Record
from titer.data.example import IGNORE, Batch
from titer.models.sites import Sites

Batches = Mapping[str, Batch]
Bundle = dict[str, torch.Tensor]


class Loss(NamedTuple):
    """A summed loss (scalar tensor), and its count of tokens or examples; the loop divides the step's sum by the step's count."""

    total: torch.Tensor
    over: torch.Tensor | int


class Context(Protocol):
    """What a method sees of the training loop during one optimiser step.

    `state`: the tensors of `setup`, saved with checkpoints; `rng`: this step's random generator; `number`: the step, from 0.
    """

    state: dict[str, torch.Tensor]
    rng: torch.Generator
    number: int

    @property
    def named(self) -> list[tuple[str, torch.nn.Parameter]]:
        """(name, parameter) of all parameters that are trained."""

    @property
    def replay(self) -> int:
        """How many steps in a row train on the same batches; a new one comes where `number` is a multiple of it."""

    @property
    def sites(self) -> Sites:
        """The named places in the trained model whose activations can be read, added to or replaced (`models/hooks.py`)."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (B, T, V) of the model that is trained."""

    def micro(self, stream: str | None = None) -> Iterator[Batches]:
        """This step's micro-batches, of every stream or of one. Each call gives the same ones."""

    def backward(self, loss: Loss) -> None:
        """Add a micro-batch's gradients. The loop later divides by the total count over micro-batches and ranks."""

    def grad(self, loss: torch.Tensor, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Gradients of `loss` with respect to `tensors`. Parameters' own gradients stay as they are; ranks are not synchronised."""

    def gradients(self, loss: Callable[[Batches], Loss], stream: str | None = None) -> Bundle:
        """Mean gradients of `loss` over this step's micro-batches and ranks, by parameter. Parameters' own gradients stay as they are."""

    def add(self, bundle: Bundle, weight: float) -> None:
        """Add weight * bundle to the step's gradients, after they were divided by the count."""

    def shifted(self, bundle: Bundle, size: float) -> AbstractContextManager[None]:
        """A context in which the parameters are moved along the bundle, by l2 length `size` over all of them; then restored bit for bit."""

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of `value` over all ranks."""

    def pool(self) -> Iterator[Batches]:
        """Every example of the streams' pools once, in the order of their indices. Nothing, if a stream is endless."""

    def first(self, stream: str, count: int) -> Iterator[Batches]:
        """The first `count` examples of one stream (all of a smaller pool), in batches. Each call gives the same ones."""

    def reference(self) -> AbstractContextManager[Callable[[Batch], torch.Tensor]]:
        """A context that yields `batch -> logits` of the model as it was when the stage began (adapter off, or a frozen copy)."""

    def model(self, name: str) -> Any:
        """A model that the stage reads, by its role, loaded and frozen; "base" is the model that the stage began from."""

    def log(self, name: str, value: float | torch.Tensor) -> None:
        """Record a number for this step's log."""

    def stop(self, reason: str) -> None:
        """End the stage after this step, for this reason."""


class Method(Record):
    """Hyper-parameters are fields; the hooks are the methods below. A subclass is not subclassed again."""

    STREAMS: ClassVar[tuple[str, ...]] = ("train",)  # the data sets that it trains on
    MODELS: ClassVar[tuple[str, ...]] = ()  # roles of other models that it reads
    SOURCE: ClassVar[str]  # the paper and the place in it
    VERSION: ClassVar[int]  # raised when results may change
    NEUTRAL: ClassVar[Mapping[str, Any] | str]  # the settings that equal plain SFT bit for bit, or a sentence why there are none
    COUPLED: ClassVar[Mapping[str, Any]] = {}  # if the loss couples the examples of a batch: the settings at which it does not

    def check_steps(self, steps: int) -> None:
        """Called before a run of `steps` steps. Errors: it is too short for the method's settings; the message names settings that fit."""

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """Tensors made once, before the first step. They are saved with each checkpoint, and not made again on resume."""
        return {}

    def loss(self, c: Context, batch: Batches) -> Loss:
        """The micro-batch's summed loss and its count. By default plain SFT's: cross-entropy on the stream `train`."""
        return token_nll(c.forward(batch["train"]), batch["train"].labels)

    def step(self, c: Context) -> None:
        """Compute the gradients of one optimiser step. A method that does more than one loss a step replaces this."""
        for batch in c.micro():
            c.backward(self.loss(c, batch))

    def finish(self, c: Context) -> None:
        """Edit the weights after the last step; by default nothing."""


def skip(c: Context, lost: torch.Tensor) -> None:
    """Add `lost` to the count of steps (or balls) without a direction, in the state key `skipped`, since the stage began."""
    c.state["skipped"] = c.state.get("skipped", torch.tensor(0.0)).to(lost.device) + lost


def predicted(labels: torch.Tensor) -> torch.Tensor:
    """Labels (B, T) moved to the places that predict them: label t moves to place t - 1."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORE)


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> Loss:
    """The negative log-likelihood of the labelled tokens, summed, and the number of these tokens.

    logits (B, T, V), labels (B, T) with -100 where not trained; label t is predicted at t - 1.
    """
    wanted = predicted(labels)
    flat = logits.reshape(-1, logits.shape[-1]).float()
    total = functional.cross_entropy(flat, wanted.reshape(-1), ignore_index=IGNORE, reduction="sum")
    return Loss(total, (wanted != IGNORE).sum())
