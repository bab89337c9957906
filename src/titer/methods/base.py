"""The contract of a training method: a record of hyper-parameters with hooks that the training loop calls, each with a context `c`.

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
    """A summed loss (scalar tensor), and the number of tokens or examples in it. The loop divides a step's sum by its count."""

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
        """The parameters that are trained, as (name, parameter)."""

    @property
    def replay(self) -> int:
        """How many steps in a row train on the same batches. New batches come when `number` is a multiple of it."""

    @property
    def sites(self) -> Sites:
        """The named places in the trained model whose activations can be read, added to or replaced (`models/hooks.py`)."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the logits (B, T, V) of the model that is trained."""

    def micro(self, stream: str | None = None) -> Iterator[Batches]:
        """Yields this step's micro-batches, of all streams or of one. Every call in a step yields the same ones."""

    def backward(self, loss: Loss) -> None:
        """Adds the gradients of a micro-batch's loss. The loop later divides them by the total count over micro-batches and ranks."""

    def grad(self, loss: torch.Tensor, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the gradients of `loss` by `tensors`, without a sum over ranks. The parameters' own gradients stay as they are."""

    def gradients(self, loss: Callable[[Batches], Loss], stream: str | None = None) -> Bundle:
        """Returns the gradient of the mean `loss` over this step's micro-batches and ranks, by parameter.

        The parameters' own gradients stay as they are."""

    def add(self, bundle: Bundle, weight: float) -> None:
        """Adds weight * bundle to the step's gradients, after these were divided by the count."""

    def shifted(self, bundle: Bundle, size: float) -> AbstractContextManager[None]:
        """Returns a context manager in which the parameters are moved along the bundle, by l2 length `size` over all of them together.

        Afterwards they are restored bit for bit."""

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the sum of `value` over all ranks."""

    def pool(self) -> Iterator[Batches]:
        """Yields every example of the streams' pools once, in batches, in the order of their indices; nothing if a stream is endless."""

    def first(self, stream: str, count: int) -> Iterator[Batches]:
        """Yields the first `count` examples of one stream (all of a smaller pool), in batches. Every call yields the same ones."""

    def reference(self) -> AbstractContextManager[Callable[[Batch], torch.Tensor]]:
        """Returns a context manager that gives a function `batch -> logits` of the model as it was when the stage began.

        That model is the trained one with its adapter off, or a frozen copy."""

    def model(self, name: str) -> Any:
        """Returns, loaded and frozen, the model that the stage reads in this role; "base" is the model that the stage began from."""

    def log(self, name: str, value: float | torch.Tensor) -> None:
        """Records a number for this step's log."""

    def stop(self, reason: str) -> None:
        """Ends the stage after this step. `reason` is stored with the result."""


class Method(Record):
    """Base class of training methods: its fields are the hyper-parameters, its methods the hooks. A subclass is not subclassed again."""

    STREAMS: ClassVar[tuple[str, ...]] = ("train",)  # the data sets that it trains on
    MODELS: ClassVar[tuple[str, ...]] = ()  # roles of other models that it reads
    SOURCE: ClassVar[str]  # the paper and the place in it
    VERSION: ClassVar[int]  # raised when results may change
    NEUTRAL: ClassVar[Mapping[str, Any] | str]  # the settings that equal plain SFT bit for bit, or a sentence why there are none
    COUPLED: ClassVar[Mapping[str, Any]] = {}  # if the loss couples the examples of a batch: the settings at which it does not

    def check_steps(self, steps: int) -> None:
        """Checks the settings before a run of `steps` steps. Errors: the run is too short for them; the message names some that fit."""

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """Returns tensors that are made once, before the first step. They are saved with each checkpoint, and not made again on resume."""
        return {}

    def loss(self, c: Context, batch: Batches) -> Loss:
        """Returns a micro-batch's summed loss and its count. By default plain SFT's: cross-entropy on the stream `train`."""
        return token_nll(c.forward(batch["train"]), batch["train"].labels)

    def step(self, c: Context) -> None:
        """Computes the gradients of one optimiser step. A method that needs more than one loss per step overrides this."""
        for batch in c.micro():
            c.backward(self.loss(c, batch))

    def finish(self, c: Context) -> None:
        """Edits the weights after the last step; by default does nothing."""


def skip(c: Context, lost: torch.Tensor) -> None:
    """Adds `lost` to `c.state["skipped"]`, the number of steps (or balls) without a direction since the stage began."""
    c.state["skipped"] = c.state.get("skipped", torch.tensor(0.0)).to(lost.device) + lost


def predicted(labels: torch.Tensor) -> torch.Tensor:
    """Returns the labels (B, T) at the places that predict them: label t moves to place t - 1."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORE)


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> Loss:
    """Returns the summed negative log-likelihood of the labelled tokens, and the number of these tokens.

    logits (B, T, V), labels (B, T) with -100 where not trained; label t is predicted at t - 1.
    """
    wanted = predicted(labels)
    flat = logits.reshape(-1, logits.shape[-1]).float()
    total = functional.cross_entropy(flat, wanted.reshape(-1), ignore_index=IGNORE, reduction="sum")
    return Loss(total, (wanted != IGNORE).sum())
