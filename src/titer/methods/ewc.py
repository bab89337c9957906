"""EWC: fine-tune, and hold each weight near its start, more strongly the more the alignment depends on it.

L = CE(train) + strength * sum_i F_i (w_i - w_i*)^2. w* are the trained weights as the stage began; F is the diagonal Fisher information
at w*, estimated on the stream `alignment`. Source: arXiv 1612.00796 (there with strength / 2); arXiv 2402.01109, appendix B.2
(strength 1e9).
- fisher "example": F_i = mean over examples of (d log p(answer) / d w_i)^2. One backward pass serves a whole group: each example's
  gradient gets a random sign before the sum is squared. On average over the signs, that square is the sum of the examples' squares, so
  the estimate of F is unbiased; with group 1 it is exact.
- fisher "batch" (the official code's): F_i = sum over groups of the squared gradient of the group's mean token loss, not normalised.
  The published strength belongs to this form, so it is the default.
With an adapter, w are the adapter's weights. In a fresh adapter, A has no gradient at the start, so its Fisher information is zero and
only B is held.
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
    """Fine-tunes and holds the weights; the settings say how strongly, and how the Fisher information is estimated."""

    STREAMS = ("train", "alignment")
    SOURCE = "arXiv 1612.00796; arXiv 2402.01109, appendix B.2"
    VERSION = 1
    NEUTRAL = {"strength": 0.0}

    strength: float = Field(default=1e9, ge=0, description="lambda; paper: 1e9 (arXiv 2402.01109)")
    examples: int = Field(default=2000, ge=1, description="examples the Fisher is estimated from; official code: 2000")
    group: int = Field(default=5, ge=1, description="examples that share one gradient; official code: 5")
    fisher: Literal["example", "batch"] = Field(
        default="batch", description="Fisher from each batch's mean gradient (official code), or from each example's"
    )

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """Returns `anchor/NAME` (w*) and `fisher/NAME` (F) for each trained parameter; nothing at strength 0."""
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
        """Returns the gradient of sum_i F_i (w_i - w_i*)^2, by parameter."""
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
        """Returns the diagonal Fisher information by parameter, computed without dropout."""
        named = c.named
        total = [torch.zeros_like(p, dtype=torch.float32) for _, p in named]
        seen = 0
        with c.reference() as forward, torch.enable_grad():  # when the stage begins, the reference is the model itself
            for batch in self._groups(c):
                found = c.grad(self._value(c, forward, batch), [p for _, p in named])
                total = [t + g.float() ** 2 for t, g in zip(total, found, strict=True)]
                seen += len(batch)
        ranks = c.sum(torch.ones((), device=total[0].device))  # each rank draws its own signs; F is the mean over ranks
        over = ranks * (seen if self.fisher == "example" else 1)
        return {name: c.sum(t) / over for (name, _), t in zip(named, total, strict=True)}

    def _groups(self, c: Context) -> Iterator[Batch]:
        for batches in c.first("alignment", self.examples):
            batch = batches["alignment"]
            for start in range(0, len(batch), self.group):
                yield batch.rows(start, min(start + self.group, len(batch)))

    def _value(self, c: Context, forward: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
        """Returns the scalar whose gradient is squared for one group of examples."""
        logits = forward(batch)
        if self.fisher == "batch":
            mean = token_nll(logits, batch.labels)
            return mean.total / mean.over
        signs = 2 * torch.randint(2, (len(batch),), generator=c.rng) - 1
        return (signs.to(logits.device) * example_nll(logits, batch.labels)).sum()
