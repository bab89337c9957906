"""One optimiser step of a method on a tiny model, outside the loop: its context, its gradient, plain gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from tests.conftest import neox
from tests.methods.contract import WORLD, Maker, stage
from titer.context import Step
from titer.data.example import IGNORE, Batch
from titer.methods.base import Method
from titer.models.lm import LM
from titer.train import _prepare_for_training

Tensors = dict[str, torch.Tensor]


def step_of(method: Method, maker: Maker = neox, **changes: Any) -> Step:
    """A context whose stage has just begun: `setup` is done, the model is in training mode."""
    threads = torch.get_num_threads()
    lm = maker(WORLD)
    made = stage(method, **{"batch": 4, "accumulation": 2, **changes})
    _prepare_for_training(lm, made)
    c = Step(made, Accelerator(cpu=True), lm.model, lm, lambda _: maker(WORLD))
    torch.set_num_threads(threads)  # accelerate may change it
    c.at_start = True
    c.state = method.setup(c)
    c.at_start = False
    return c


def gradient(c: Step, number: int | None = None) -> Tensors:
    """The gradient that the optimiser would see at a step, by name."""
    for _, p in c.named:
        p.grad = None
    c.begin(c.number if number is None else number)
    c.stage.method.step(c)
    c.settle()
    return {name: p.grad.clone() for name, p in c.named if p.grad is not None}


def weights(c: Step) -> Tensors:
    return {name: p.detach().clone() for name, p in c.named}


def shift(c: Step, size: float = 0.05) -> None:
    """Move the weights, so that the model is no more the one that the stage began from."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in c.named:
            p.add_(torch.randn(p.shape, generator=generator), alpha=size)


def move(c: Step, along: Mapping[str, torch.Tensor], size: float) -> None:
    """w <- w + size * along."""
    with torch.no_grad():
        for name, p in c.named:
            p.add_(along[name], alpha=size)


def naive_mean(c: Step, stream: str = "train") -> torch.Tensor:
    """The mean cross-entropy over the trained tokens of all of a step's micro-batches, token by token."""
    logs = [torch.cat(token_logs(c.lm, batch[stream])) for batch in c.micro(stream)]
    return -torch.cat(logs).mean()


def autograd(c: Step, value: torch.Tensor) -> Tensors:
    found = torch.autograd.grad(value, [p for _, p in c.named], allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(c.named, found, strict=True)}


def rows_of(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each row's tokens and labels without padding."""
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    return [(batch.input_ids[i][mask[i] == 1], batch.labels[i][mask[i] == 1]) for i in range(len(batch))]


def answer_logits(lm: LM, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each row's logits (tokens, V) and labels at its trained tokens; the row alone, unpadded, without a mask."""
    found = []
    for tokens, labels in rows_of(batch):
        at = [t for t in range(1, len(tokens)) if int(labels[t]) != IGNORE]
        logits = lm.model(input_ids=tokens[None]).logits[0].double()
        found.append((logits[[t - 1 for t in at]], labels[at]))
    return found


def token_logs(lm: LM, batch: Batch) -> list[torch.Tensor]:
    """log p of each trained token, row by row."""
    rows = answer_logits(lm, batch)
    return [logits[range(len(wanted)), wanted] - torch.logsumexp(logits, 1) for logits, wanted in rows]


def close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], rtol: float = 1e-3) -> None:
    """Equal within `rtol` of the largest entry of all."""
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=rtol, atol=rtol * 1e-2 * largest + 1e-9)


def size(bundle: Mapping[str, torch.Tensor]) -> float:
    """l2 norm over all tensors."""
    return float(torch.sqrt(torch.stack([(value.double() ** 2).sum() for value in bundle.values()]).sum()))


def minus(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: a[name] - b[name] for name in a}
