"""Booster: align so that one step of harmful fine-tuning would lower the harmful loss as little as may be.

min over w of f(w) + strength * (h(w) - h(w - alpha grad h(w) / ||grad h(w)||)); f is the CE on the stream `train`
(alignment data), h that on `harmful`, the norm over all weights in training. The update drops the Hessian:
    grad f(w) + strength * (grad h(w) - grad h(w')),   w' = w - alpha grad h(w) / ||grad h(w)||
so a step is three forward and backward passes. Source: arXiv 2409.01586. Every loss is the mean over
the step's tokens. A harmful gradient of norm zero, or one that is not finite, has no direction: the step is then
SFT's, and `booster_skipped` counts such steps from the start of the stage.
"""

from __future__ import annotations

import torch
from pydantic import Field

from titer.methods.base import Batches, Bundle, Context, Loss, Method, skip, token_nll


class Booster(Method):
    """Weight of the regulariser and the size of the simulated harmful step."""

    STREAMS = ("train", "harmful")
    SOURCE = "arXiv 2409.01586 (Booster)"
    VERSION = 1
    NEUTRAL = {"strength": 0.0}

    strength: float = Field(default=5.0, ge=0, description="lambda, the weight of the regulariser; the official scripts' 5")
    alpha: float = Field(default=0.1, ge=0, description="l2 length of the simulated harmful step; the official scripts' 0.1")

    def step(self, c: Context) -> None:
        if self.strength > 0 and self.alpha > 0:
            self._regularise(c)
            c.log("booster_skipped", c.state.get("skipped", torch.tensor(0.0)))
        for batch in c.micro("train"):
            c.backward(self.loss(c, batch))

    def _regularise(self, c: Context) -> None:
        """Add strength * (grad h(w) - grad h(w')) to the step's gradients."""

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
