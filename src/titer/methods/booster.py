"""Booster: align so that one step of harmful fine-tuning lowers the harmful loss as little as possible.

It minimises, over the weights w, f(w) + strength * (h(w) - h(w - alpha grad h(w) / ||grad h(w)||)). f is the cross-entropy on the
stream `train` (alignment data), h the cross-entropy on the stream `harmful`; the norm is over all trained weights. The update leaves
out the Hessian:
    grad f(w) + strength * (grad h(w) - grad h(w')),   w' = w - alpha grad h(w) / ||grad h(w)||
so a step takes three forward and backward passes. Each loss is the mean over the step's tokens. Source: arXiv 2409.01586.

If the harmful gradient is zero or not finite, it has no direction: the step is then plain SFT, and `booster_skipped` counts such steps
since the stage began.
"""

from __future__ import annotations

import torch
from pydantic import Field

from titer.methods.base import Batches, Bundle, Context, Loss, Method, skip, token_nll


class Booster(Method):
    """Trains against a simulated step of harmful fine-tuning; the settings are the regulariser's weight and the size of that step."""

    STREAMS = ("train", "harmful")
    SOURCE = "arXiv 2409.01586 (Booster)"
    VERSION = 1
    NEUTRAL = {"strength": 0.0}

    strength: float = Field(default=5.0, ge=0, description="lambda, the weight of the regulariser; official scripts: 5")
    alpha: float = Field(default=0.1, ge=0, description="l2 length of the simulated harmful step; official scripts: 0.1")

    def step(self, c: Context) -> None:
        if self.strength > 0 and self.alpha > 0:
            self._regularise(c)
            c.log("booster_skipped", c.state.get("skipped", torch.tensor(0.0)))
        for batch in c.micro("train"):
            c.backward(self.loss(c, batch))

    def _regularise(self, c: Context) -> None:
        """Adds strength * (grad h(w) - grad h(w')) to the step's gradients. Without a direction, it adds nothing and counts the step."""

        def harmful(batch: Batches) -> Loss:
            return token_nll(c.forward(batch["harmful"]), batch["harmful"].labels)

        here = c.gradients(harmful, "harmful")
        size = _norm(here)
        if not bool(torch.isfinite(size) & (size > 0)):
            skip(c, torch.ones(()))
            return
        with c.shifted(here, -self.alpha):
            there = c.gradients(harmful, "harmful")
        c.log("harmful_norm", size)
        c.add(here, self.strength)
        c.add(there, -self.strength)


def _norm(bundle: Bundle) -> torch.Tensor:
    return torch.stack([(tensor.double() ** 2).sum() for tensor in bundle.values()]).sum().sqrt()
