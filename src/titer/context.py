"""The context that the training loop gives to a method during one optimiser step; it implements `methods.base.Context`. L4.

Gradients of micro-batches are summed in the parameters and divided once, by the count over all micro-batches and ranks. So 1 x 8 and
2 x 4 examples give the same step, on one rank or several. `stage.batch` is the micro-batch of all ranks together, and each rank draws
its slice of it. Ranks hold copies of the parameters (DDP) or parts of them (FSDP2); in parts, the parameters, their gradients and
bundles are DTensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from titer.core.errors import TiterError, unknown
from titer.data.draws import seed_of
from titer.data.example import Batch
from titer.methods.base import Batches, Bundle, Loss
from titer.models.lm import LM
from titer.models.modes import evaluating
from titer.models.sites import Sites
from titer.stage import Stage

Loader = Callable[[str], LM]
POOL_BATCH = 128


class Ahead:
    """Draws each stream's next batch in another thread while a GPU computes. No batch changes, since a batch depends only on its place."""

    def __init__(self, stage: Stage, lm: LM, size: int | None = None) -> None:
        self._stage, self._lm, self._size = stage, lm, size or stage.batch
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._coming: dict[str, tuple[int, Future[Batch]]] = {}

    def batch(self, stream: str, place: int, following: int) -> Batch:
        """Returns the batch at `place` (drawn already, if it was the expected one), and begins to draw the one at `following`."""
        foreseen, future = self._coming.pop(stream, (-1, None))
        found = future.result() if future is not None and foreseen == place else self._draw(stream, place)
        self._coming[stream] = (following, self._worker.submit(self._draw, stream, following))
        return found

    def _draw(self, stream: str, place: int) -> Batch:
        drawn = self._stage.streams[stream].batch(place, self._size, self._lm.tokenizer)
        return drawn.pinned() if torch.cuda.is_available() else drawn


class Step:
    """The context of one optimiser step. `model` is the prepared (perhaps wrapped) model, `lm` the same model unwrapped.

    The methods without a docstring are explained in `methods.base.Context`. Errors: a batch that the ranks cannot share evenly.
    """

    def __init__(self, stage: Stage, accelerator: Any, model: Any, lm: LM, loader: Loader) -> None:
        self._size = _share(stage, accelerator.num_processes)
        self._drawn = Ahead(stage, lm, self._size) if lm.device.type == "cuda" else None
        self.stage, self._accelerator, self._model, self.lm, self._loader = stage, accelerator, model, lm, loader
        self.state: dict[str, torch.Tensor] = {}
        self.rng = torch.Generator()
        self.number = 0
        self.logged: dict[str, torch.Tensor] = {}
        self.stopped = ""
        self.at_start = False  # true in `setup`, where the trained model still is the reference
        self._loaded: dict[str, LM] = {}
        self.begin(0)

    def begin(self, number: int) -> None:
        """Starts a new step. Its generator is seeded from the stage's seed, the step and the rank, so a resumed run draws the same."""
        self.number = number
        self.rng.manual_seed(seed_of(self.stage.seed, "step", number, self._accelerator.process_index))
        self.count: torch.Tensor | int = 0
        self.total: torch.Tensor | float = 0.0
        self._last = True
        self._forwards = 0
        self._added: list[tuple[Bundle, float]] = []
        self.logged = {}

    @property
    def named(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The parameters that are trained, as (name, parameter)."""
        return [(name, p) for name, p in self.lm.model.named_parameters() if p.requires_grad]

    @property
    def other_rank(self) -> tuple[int, ...]:
        """The part of the dropout's seed that differs between ranks; empty on rank 0, which draws as a single process does."""
        rank = self._accelerator.process_index
        return (rank,) if rank else ()

    @property
    def alone(self) -> bool:
        """Whether this is the only process. Several have no common clock."""
        return bool(self._accelerator.num_processes == 1)

    @property
    def writes(self) -> bool:
        """Whether this rank writes the files."""
        return bool(self._accelerator.is_main_process)

    @property
    def sites(self) -> Sites:
        return self.lm.sites

    @property
    def replay(self) -> int:
        return self.stage.replay

    def forward(self, batch: Batch) -> torch.Tensor:
        self._forwards += torch.is_grad_enabled()
        if not self._in_parts:
            logits: torch.Tensor = self._model(**batch.inputs(), use_cache=False).logits
            return logits
        with self._accelerator.autocast():  # accelerate's `prepare` does this for a model that is not in parts
            found: torch.Tensor = self._model(**batch.inputs(), use_cache=False).logits
        return found if self.stage.precision == "no" else found.float()

    @property
    def _in_parts(self) -> bool:
        return isinstance(self._model, FSDPModule)

    def whole(self, lm: LM) -> None:
        """Continues with a model that every rank holds whole, for `method.finish`."""
        self.lm, self._model = lm, lm.model

    def micro(self, stream: str | None = None) -> Iterator[Batches]:
        names = list(self.stage.streams) if stream is None else [stream]
        for turn in range(self.stage.accumulation):
            start = (self.number // self.replay * self.stage.accumulation + turn) * self.stage.batch
            place = start + self._accelerator.process_index * self._size
            self._last = turn == self.stage.accumulation - 1
            if isinstance(self._model, DistributedDataParallel):  # as DDP's no_sync does, which would have to cover the forward pass too
                self._model.require_backward_grad_sync = self._last
            yield {n: self._batch(n, place).to(self.lm.device) for n in names}

    def _batch(self, stream: str, place: int) -> Batch:
        if self._drawn is not None:
            return self._drawn.batch(stream, place, place + self.stage.batch)
        return self.stage.streams[stream].batch(place, self._size, self.lm.tokenizer)

    def backward(self, loss: Loss) -> None:
        if self._last and not self._forwards and isinstance(self._model, DistributedDataParallel):
            # DDP sums gradients over ranks only in the first backward pass after a forward pass
            raise TiterError(
                f"stage {self.stage.name}: with several processes, the method made a second backward pass without a forward pass before it",
                next_step="in the method, add the losses and call c.backward once.",
                status=1,
            )
        self._forwards = 0
        self._accelerator.backward(loss.total)
        self.count = self.count + loss.over
        self.total = self.total + loss.total.detach()

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """A context manager in which gradients are not summed over ranks."""
        if self._in_parts:
            self._model.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                self._model.set_requires_gradient_sync(True)
            return
        with self._accelerator.no_sync(self._model):
            yield

    def grad(self, loss: torch.Tensor, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if any(isinstance(tensor, DTensor) for tensor in tensors):  # autograd's graph has the gathered weights, not the parts
            raise TiterError(
                f"stage {self.stage.name}: the method takes gradients with respect to sharded parameters, which is not possible",
                next_step="train without sharding (FSDP); or, in the method's code, use c.gradients.",
                status=1,
            )
        with self._apart():
            return torch.autograd.grad(loss, list(tensors))

    def gradients(self, loss: Callable[[Batches], Loss], stream: str | None = None) -> Bundle:
        if self._in_parts:
            return self._gradients_in_parts(loss, stream)
        named = self.named
        total = [torch.zeros_like(p) for _, p in named]
        count: torch.Tensor | int = 0
        for batch in self.micro(stream):
            with self._apart():
                one = loss(batch)
                found = torch.autograd.grad(one.total, [p for _, p in named], allow_unused=True)
            total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
            count = count + one.over
        whole = self.sum(torch.as_tensor(count, device=self.lm.device))
        return {name: self.sum(t) / whole for (name, _), t in zip(named, total, strict=True)}

    def _gradients_in_parts(self, loss: Callable[[Batches], Loss], stream: str | None) -> Bundle:
        """Computes `gradients` of sharded parameters through their own .grad, which is then restored.

        `torch.autograd.grad` cannot be used, since autograd's graph has only the gathered weights."""
        named = self.named
        kept = [p.grad for _, p in named]
        for _, p in named:
            p.grad = None
        count: torch.Tensor | int = 0
        try:
            for batch in self.micro(stream):
                one = loss(batch)
                one.total.backward()
                count = count + one.over
            ranks = self._accelerator.num_processes
            scale = float(ranks / self.sum(torch.as_tensor(count, device=self.lm.device)))
            return {name: torch.zeros_like(p) if p.grad is None else p.grad * scale for name, p in named}
        finally:
            for (_, p), before in zip(named, kept, strict=True):
                p.grad = before

    def add(self, bundle: Bundle, weight: float) -> None:
        self._added.append((bundle, weight))

    @contextmanager
    def shifted(self, bundle: Bundle, size: float) -> Iterator[None]:
        norm = torch.sqrt(sum(gathered((t.double() ** 2).sum()) for t in bundle.values()))  # type: ignore[arg-type]
        if not torch.isfinite(norm) or norm == 0:
            raise ValueError(f"cannot shift the weights along a bundle of norm {norm}: it has no direction")
        chosen = [(p, bundle[name]) for name, p in self.named if name in bundle]
        kept = [p.detach().clone() for p, _ in chosen]
        try:
            with torch.no_grad():
                for p, direction in chosen:
                    p.add_(direction, alpha=float(size / norm))
            yield
        finally:
            with torch.no_grad():
                for (p, _), before in zip(chosen, kept, strict=True):
                    p.copy_(before)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed

    def pool(self) -> Iterator[Batches]:
        streams = self.stage.streams
        sizes = {stream.pool for stream in streams.values()}
        if None in sizes or len(sizes) != 1:
            return
        for first in range(0, sizes.pop() or 0, POOL_BATCH):
            numbers = np.arange(first, min(first + POOL_BATCH, next(iter(streams.values())).pool or 0))
            yield {name: stream.chosen(numbers, self.lm.tokenizer).to(self.lm.device) for name, stream in streams.items()}

    def first(self, stream: str, count: int) -> Iterator[Batches]:
        chosen = self.stage.streams[stream]
        numbers = chosen.numbers(0, min(count, chosen.pool or count))
        for start in range(0, len(numbers), POOL_BATCH):
            yield {stream: chosen.chosen(numbers[start : start + POOL_BATCH], self.lm.tokenizer).to(self.lm.device)}

    @contextmanager
    def reference(self) -> Iterator[Callable[[Batch], torch.Tensor]]:
        with torch.no_grad():
            adapter = self.stage.adapter
            if (adapter is None or adapter.continued) and not self.at_start:  # a continued adapter was part of the model as the stage began
                frozen = self.model("base").model
                yield lambda batch: frozen(**batch.inputs(), use_cache=False).logits
                return
            with evaluating(self.lm.model), nullcontext() if self.at_start else self.lm.model.disable_adapter():
                yield self.forward

    def model(self, name: str) -> LM:
        if name != "base" and name not in self.stage.method.MODELS:
            unknown("model", name, ["base", *self.stage.method.MODELS])
        if name not in self._loaded:
            loaded = self._loader(name)
            loaded.model.to(self.lm.device).eval().requires_grad_(False)
            self._loaded[name] = loaded
        return self._loaded[name]

    def log(self, name: str, value: float | torch.Tensor) -> None:
        self.logged[name] = torch.as_tensor(value).detach()

    def stop(self, reason: str) -> None:
        self.stopped = reason

    def agree_to_stop(self) -> bool:
        """Whether any rank has stopped the stage. The loop calls this on all ranks, since they must end together."""
        if self.alone:
            return bool(self.stopped)
        if not bool(self.sum(torch.tensor(int(bool(self.stopped)), device=self.lm.device))):
            return False
        self.stopped = self.stopped or "another process stopped the stage"
        return True

    def settle(self) -> None:
        """Divides the summed gradients by the step's count, then adds the bundles. The loop calls this after `method.step`."""
        grads = [(name, p) for name, p in self.named if p.grad is not None]
        if not grads and not self._added:
            raise TiterError(
                f"stage {self.stage.name}: step {self.number} produced no gradient",
                next_step="check that its loss depends on the weights that it trains.",
                status=1,
            )
        if grads:
            # DDP and FSDP2 average over ranks, so the sum over ranks is the average times their number
            whole = self.sum(torch.as_tensor(self.count, device=self.lm.device, dtype=torch.float32))
            scale = self._accelerator.num_processes / whole
            held = [p.grad for _, p in grads if p.grad is not None]  # of a sharded tensor, this rank's part
            torch._foreach_mul_([grad.to_local() if isinstance(grad, DTensor) else grad for grad in held], scale)
        for bundle, weight in self._added:
            for name, p in self.named:
                if name in bundle:
                    step = bundle[name] * weight
                    p.grad = step if p.grad is None else p.grad + step


def _share(stage: Stage, ranks: int) -> int:
    """Returns how many of a micro-batch's examples each rank draws. Errors: they cannot be shared evenly."""
    if stage.batch % ranks:
        raise TiterError(
            f"stage {stage.name}: a batch of {stage.batch} cannot be shared evenly by {ranks} processes",
            expected="a batch (of all processes together) that is a multiple of the number of processes",
            next_step=f"set the batch to {math.ceil(stage.batch / ranks) * ranks}, or start fewer processes.",
        )
    return stage.batch // ranks


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a sharded tensor made whole (all ranks must call this); any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
