"""Emulated disalignment: scale or reverse what alignment added to a base model, at every token, without training.

log p(token) = (1 + alpha) log p_base - alpha log p_aligned, up to a constant. alpha = -1 is the aligned model, alpha = 0 its base;
values between them mix the two. Above 0 alignment is reversed, which shows the risk of publishing both sets of weights; below -1 it is
amplified. The model that decodes is the aligned one. Source: arXiv 2402.12343, equations 1 to 6. Its code combines raw logits, which is
the same after the softmax, and drops answers shorter than 8 tokens, which Titer does not.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from titer.decoders.base import Decoder, State, Step


class Emulated(Decoder):
    """Combines base and aligned model by `alpha`. The base sees the prompt in its own chat template, or the aligned model's tokens."""

    MODELS = ("base",)
    SOURCE = "arXiv 2402.12343, equations 1 to 6"
    VERSION = 1
    NEUTRAL = {"alpha": -1.0}
    SHOWN = False

    alpha: float = Field(default=0.3, description="-1: the aligned model, 0: the base; paper: 0.3 to 2, official code: 0.6")
    base_sees: Literal["own", "same"] = Field(
        default="own", description="own: the prompt in the base's own chat template; same: the aligned model's tokens"
    )

    def view(self, role: str, prompt: str) -> str | None:
        return prompt if self.base_sees == "own" else None

    def logits(self, step: Step, state: State) -> torch.Tensor:
        return combined(step.others["base"], step.logits, self.alpha)


def combined(base: torch.Tensor, aligned: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns (1 + alpha) log p_base - alpha log p_aligned, (B, V). At alpha -1 or 0: the aligned model's or the base's own logits."""
    if alpha in (-1.0, 0.0):
        return aligned if alpha else base
    one, other = base.log_softmax(-1), aligned.log_softmax(-1)
    never = one.isneginf() & other.isneginf()  # both models rule the token out: -inf, not NaN
    return ((1 + alpha) * one - alpha * other).masked_fill(never, -torch.inf)
