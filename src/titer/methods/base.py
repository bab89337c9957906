"""The training contract: a Method is a record of hyper-parameters plus four hooks, given a context `c`.

A method never calls zero_grad, clip or the optimiser: those are the loop's (`train.py`).
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
    """A summed loss (scalar tensor) and what to divide it by over the whole step (tokens, or examples)."""

    total: torch.Tensor
    over: torch.Tensor | int


class Context(Protocol):
    """What a method sees of the loop, at one optimiser step."""

    state: dict[str, torch.Tensor]
    rng: torch.Generator
    number: int

    @property
    def named(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The parameters in training, by name."""

    @property
    def sites(self) -> Sites:
        """The places of the model in training, to be read, added to or replaced (`models/hooks.py`)."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (B, T, V) of the model in training."""

    def micro(self, stream: str | None = None) -> Iterator[Batches]:
        """This step's micro-batches: of every stream, or of one; asked again, the same ones."""

    def backward(self, loss: Loss) -> None:
        """Add a micro-batch's gradients; the loop divides by the count over micro-batches and ranks."""

    def grad(self, loss: torch.Tensor, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Gradients to `tensors`; no parameter gradient is touched, nothing is synchronised."""

    def gradients(self, loss: Callable[[Batches], Loss], stream: str | None = None) -> Bundle:
        """Mean gradients of `loss` over this step's micro-batches and ranks, parameter gradients untouched."""

    def add(self, bundle: Bundle, weight: float) -> None:
        """Add weight * bundle to the step's gradients, after the division by the count."""

    def shifted(self, bundle: Bundle, size: float) -> AbstractContextManager[None]:
        """The parameters moved by `size` (l2, over all of them) along the bundle; restored bit for bit."""

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over ranks."""

    def pool(self) -> Iterator[Batches]:
        """Every example of the streams' fixed pools once, in the order of their indices; nothing where one is endless."""

    def first(self, stream: str, count: int) -> Iterator[Batches]:
        """The first `count` examples of one stream, or all of a smaller pool, in batches; the same ones whenever asked."""

    def reference(self) -> AbstractContextManager[Callable[[Batch], torch.Tensor]]:
        """The model as the stage began: adapter off, or a frozen copy; yields batch -> logits."""

    def model(self, name: str) -> Any:
        """A model that the stage reads ("base" is where it began), loaded and frozen."""

    def log(self, name: str, value: float | torch.Tensor) -> None:
        """Record a number of this step."""

    def stop(self, reason: str) -> None:
        """End the stage after this step and say why."""


class Method(Record):
    """Hyper-parameters as fields; the hooks below. Subclasses are final."""

    STREAMS: ClassVar[tuple[str, ...]] = ("train",)
    MODELS: ClassVar[tuple[str, ...]] = ()
    SOURCE: ClassVar[str]
    VERSION: ClassVar[int]
    NEUTRAL: ClassVar[Mapping[str, Any] | str]  # the setting that equals plain SFT bit for bit, or why none does
    COUPLED: ClassVar[Mapping[str, Any]] = {}  # the setting at which a loss that couples the examples of a batch does not

    def check_steps(self, steps: int) -> None:
        """Before a run of so many steps is begun. Errors: one that could not do what the method is for, with the settings that could."""

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """Tensors made once, saved with every checkpoint, never rebuilt on resume."""
        return {}

    def loss(self, c: Context, batch: Batches) -> Loss:
        """The micro-batch's summed loss and its count: plain SFT's, cross-entropy on the stream `train`, unless a method has its own."""
        return token_nll(c.forward(batch["train"]), batch["train"].labels)

    def step(self, c: Context) -> None:
        """One optimiser step; step-level algorithms replace it."""
        for batch in c.micro():
            c.backward(self.loss(c, batch))

    def finish(self, c: Context) -> None:
        """Edits of the weights after the last step."""


def skip(c: Context, lost: torch.Tensor) -> None:
    """Count steps or balls that had no direction, from the start of the stage."""
    c.state["skipped"] = c.state.get("skipped", torch.tensor(0.0)).to(lost.device) + lost


def predicted(labels: torch.Tensor) -> torch.Tensor:
    """Each label (B, T) at the place that predicts it: that of label t is t - 1."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORE)


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> Loss:
    """Summed next-token negative log-likelihood of the labelled tokens, and their number.

    logits (B, T, V), labels (B, T) with -100 where not trained; label t is predicted at t - 1.
    """
    wanted = predicted(labels)
    flat = logits.reshape(-1, logits.shape[-1]).float()
    total = functional.cross_entropy(flat, wanted.reshape(-1), ignore_index=IGNORE, reduction="sum")
    return Loss(total, (wanted != IGNORE).sum())
