"""What a method sees of the loop at one optimiser step; implements `methods.base.Context`. L4.

Gradients of micro-batches are summed in the parameters and divided once, by the count over all
micro-batches and ranks, so 1 x 8 and 2 x 4 examples give the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

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
    """Draws each stream's next batch on another thread while a GPU computes; the same batches, for they are functions of the place."""

    def __init__(self, stage: Stage, lm: LM) -> None:
        self._stage, self._lm = stage, lm
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._coming: dict[str, tuple[int, Future[Batch]]] = {}

    def batch(self, stream: str, place: int, following: int) -> Batch:
        """The batch at `place`, drawn before if it was foreseen; the one at `following` is begun."""
        foreseen, future = self._coming.pop(stream, (-1, None))
        found = future.result() if future is not None and foreseen == place else self._draw(stream, place)
        self._coming[stream] = (following, self._worker.submit(self._draw, stream, following))
        return found

    def _draw(self, stream: str, place: int) -> Batch:
        drawn = self._stage.streams[stream].batch(place, self._stage.batch, self._lm.tokenizer)
        return drawn.pinned() if torch.cuda.is_available() else drawn


class Step:
    """One optimiser step's context. `model` is the prepared (perhaps wrapped) model, `lm` the bare one."""

    def __init__(self, stage: Stage, accelerator: Any, model: Any, lm: LM, loader: Loader) -> None:
        self._drawn = Ahead(stage, lm) if lm.device.type == "cuda" else None
        self.stage, self._accelerator, self._model, self.lm, self._loader = stage, accelerator, model, lm, loader
        self.state: dict[str, torch.Tensor] = {}
        self.rng = torch.Generator()
        self.number = 0
        self.logged: dict[str, torch.Tensor] = {}
        self.stopped = ""
        self.at_start = False  # in `setup`: the model in training is the reference itself
        self._loaded: dict[str, LM] = {}
        self.begin(0)

    def begin(self, number: int) -> None:
        """Forget the last step; seed this one's randomness from (seed, step), so a resumed run draws the same."""
        self.number = number
        self.rng.manual_seed(seed_of(self.stage.seed, "step", number, self._accelerator.process_index))
        self.count: torch.Tensor | int = 0
        self.total: torch.Tensor | float = 0.0
        self._micro = 0
        self._added: list[tuple[Bundle, float]] = []
        self.logged = {}

    @property
    def named(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The parameters in training, by name."""
        return [(name, p) for name, p in self.lm.model.named_parameters() if p.requires_grad]

    @property
    def sites(self) -> Sites:
        return self.lm.sites

    def forward(self, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self._model(**batch.inputs(), use_cache=False).logits
        return logits

    def micro(self, stream: str | None = None) -> Iterator[Batches]:
        names = list(self.stage.streams) if stream is None else [stream]
        ranks, rank = self._accelerator.num_processes, self._accelerator.process_index
        for turn in range(self.stage.accumulation):
            place = ((self.number * self.stage.accumulation + turn) * ranks + rank) * self.stage.batch
            self._last = turn == self.stage.accumulation - 1
            yield {n: self._batch(n, place, ranks).to(self.lm.device) for n in names}

    def _batch(self, stream: str, place: int, ranks: int) -> Batch:
        if self._drawn is not None:
            return self._drawn.batch(stream, place, place + ranks * self.stage.batch)
        return self.stage.streams[stream].batch(place, self.stage.batch, self.lm.tokenizer)

    def backward(self, loss: Loss) -> None:
        with nullcontext() if self._last else self._accelerator.no_sync(self._model):
            self._accelerator.backward(loss.total)
        self.count = self.count + loss.over
        self.total = self.total + loss.total.detach()

    def grad(self, loss: torch.Tensor, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with self._accelerator.no_sync(self._model):
            return torch.autograd.grad(loss, list(tensors))

    def gradients(self, loss: Callable[[Batches], Loss], stream: str | None = None) -> Bundle:
        named = self.named
        total = [torch.zeros_like(p) for _, p in named]
        count: torch.Tensor | int = 0
        for batch in self.micro(stream):
            one = loss(batch)
            with self._accelerator.no_sync(self._model):
                found = torch.autograd.grad(one.total, [p for _, p in named], allow_unused=True)
            total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
            count = count + one.over
        whole = self.sum(torch.as_tensor(count, device=self.lm.device))
        return {name: self.sum(t) / whole for (name, _), t in zip(named, total, strict=True)}

    def add(self, bundle: Bundle, weight: float) -> None:
        self._added.append((bundle, weight))

    @contextmanager
    def shifted(self, bundle: Bundle, size: float) -> Iterator[None]:
        norm = torch.sqrt(sum((t.double() ** 2).sum() for t in bundle.values()))  # type: ignore[arg-type]
        if not torch.isfinite(norm) or norm == 0:
            raise ValueError(f"a shift along a bundle of norm {norm}")
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
            if self.stage.adapter is None and not self.at_start:
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

    def settle(self) -> None:
        """Divide the summed gradients by the step's count and add the bundles: the loop's, after `method.step`."""
        grads = [(name, p) for name, p in self.named if p.grad is not None]
        if not grads and not self._added:
            raise TiterError(f"stage {self.stage.name}: step {self.number} produced no gradient", status=1)
        if grads:
            # DDP averages over ranks, so the sum over ranks is the average times their number
            whole = self.sum(torch.as_tensor(self.count, device=self.lm.device, dtype=torch.float32))
            scale = self._accelerator.num_processes / whole
            torch._foreach_mul_([p.grad for _, p in grads if p.grad is not None], scale)
        for bundle, weight in self._added:
            for name, p in self.named:
                if name in bundle:
                    step = bundle[name] * weight
                    p.grad = step if p.grad is None else p.grad + step
