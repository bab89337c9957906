"""EWC: fine-tune while each weight is held near where it began, the harder the more the alignment depends on it.

L = CE(train) + strength * sum_i F_i (w_i - w_i*)^2; w* are the weights in training as the stage began, F the diagonal
Fisher information of the stream `alignment` at w*. Source: arXiv 1612.00796 (there with strength / 2);
arXiv 2402.01109, appendix B.2 (strength 1e9).
fisher "example": F_i = mean over examples of (d log p(answer) / d w_i)^2. A group's gradient is taken once, with a
random sign before each example: the square's mean over signs is the sum of the examples' squares, so F is unbiased at
the cost of one pass a group, and exact at group 1. "batch", the official code's: F_i = sum over groups of the squared
gradient of the group's mean token loss, not normalised; the published strength belongs to this one, so it is the default.
Under an adapter w are its weights. A fresh adapter's A has no gradient and so no Fisher: then only B is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import Field

from titer.data.example import Batch
from titer.methods.base import Bundle, Context, Method, token_nll
from titer.models.likelihood import example_nll


class EWC(Method):
    """How hard the weights are held, and how the Fisher information is estimated."""

    STREAMS = ("train", "alignment")
    SOURCE = "arXiv 1612.00796; arXiv 2402.01109, appendix B.2"
    VERSION = 1
    NEUTRAL = {"strength": 0.0}

    strength: float = Field(default=1e9, ge=0, description="lambda; the paper's 1e9 (arXiv 2402.01109)")
    examples: int = Field(default=2000, ge=1, description="examples the Fisher is estimated from; the official code's 2000")
    group: int = Field(default=5, ge=1, description="examples that share one gradient; the official code's 5")
    fisher: Literal["example", "batch"] = Field(default="batch", description="the official code's batch means, or per example")

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """anchor/NAME and fisher/NAME for every parameter in training; nothing where nothing is held."""
        if self.strength == 0:
            return {}
        anchors = {f"anchor/{name}": p.detach().clone() for name, p in c.named}
        return anchors | {f"fisher/{name}": value for name, value in self._fisher(c).items()}

    def step(self, c: Context) -> None:
        for batch in c.micro("train"):
            c.backward(self.loss(c, batch))
        if self.strength > 0:
            c.add(self.pull(c), self.strength)

    def pull(self, c: Context) -> Bundle:
        """The gradient of sum_i F_i (w_i - w_i*)^2."""
        found, penalty = {}, torch.zeros(())
        for name, p in c.named:
            for key in (f"anchor/{name}", f"fisher/{name}"):
                c.state[key] = c.state[key].to(p.device)  # after a resume they are on the CPU
            moved = (p.detach() - c.state[f"anchor/{name}"]).float()
            held = c.state[f"fisher/{name}"] * moved
            penalty = penalty.to(p.device) + (held * moved).sum()
            found[name] = (2 * held).to(p.dtype)
        c.log("ewc_penalty", self.strength * penalty)
        return found

    def _fisher(self, c: Context) -> Bundle:
        """The diagonal Fisher information, by name, without dropout."""
        named = c.named
        total = [torch.zeros_like(p, dtype=torch.float32) for _, p in named]
        seen = 0
        with c.reference() as forward, torch.enable_grad():  # as the stage begins the reference is the model itself
            for batch in self._groups(c):
                found = c.grad(self._value(c, forward, batch), [p for _, p in named])
                total = [t + g.float() ** 2 for t, g in zip(total, found, strict=True)]
                seen += len(batch)
        ranks = c.sum(torch.ones((), device=total[0].device))  # every rank's signs are its own, the Fisher is one
        over = ranks * (seen if self.fisher == "example" else 1)
        return {name: c.sum(t) / over for (name, _), t in zip(named, total, strict=True)}

    def _groups(self, c: Context) -> Iterator[Batch]:
        for batches in c.first("alignment", self.examples):
            batch = batches["alignment"]
            for start in range(0, len(batch), self.group):
                yield batch.rows(start, min(start + self.group, len(batch)))

    def _value(self, c: Context, forward: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """What is differentiated and squared for one group."""
        logits = forward(batch)
        if self.fisher == "batch":
            mean = token_nll(logits, batch.labels)
            return mean.total / mean.over
        signs = 2 * torch.randint(2, (len(batch),), generator=c.rng) - 1
        return (signs.to(logits.device) * example_nll(logits, batch.labels)).sum()
