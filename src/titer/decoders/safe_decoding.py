"""SafeDecoding: the first tokens are chosen by what a safety-tuned expert would rather say, among candidates that both models have.

p = p_own + alpha (p_expert - p_own), over the candidates alone: of both models the k likeliest tokens, k the smallest at which `candidates`
are among the likeliest of both. After `first` tokens the model goes on alone. Source: arXiv 2402.08983, section 4, and its code, whose
floor of 1e-8 for what is no probability this keeps. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from pydantic import Field

from titer.decoders.base import Decoder, State, Step

FLOOR = 1e-8


class SafeDecoding(Decoder):
    """The model that decodes is the one to be guarded; `expert` was tuned from it to refuse."""

    MODELS = ("expert",)
    SOURCE = "arXiv 2402.08983, section 4"
    VERSION = 1
    NEUTRAL = {"first": 0}

    alpha: float = Field(default=3.0, ge=0, description="how far beyond the expert; 1 is the expert, on the candidates")
    first: int = Field(default=2, ge=0, description="tokens of an answer that are chosen so")
    candidates: int = Field(default=5, ge=1, description="tokens that both models have among their likeliest")

    def logits(self, step: Step, state: State) -> torch.Tensor:
        early = step.before + step.new.shape[1] < self.first
        if not bool(early.any()):
            return step.logits
        return torch.where(early[:, None], steered(step.logits, step.others["expert"], self.alpha, self.candidates), step.logits)


def steered(own: torch.Tensor, expert: torch.Tensor, alpha: float, candidates: int) -> torch.Tensor:
    """Log-probabilities up to a constant (B, V), -inf beyond the candidates."""
    p, q = own.softmax(-1), expert.softmax(-1)
    ranks = [one.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) for one in (p, q)]
    worse = torch.maximum(*ranks)
    least = worse.kthvalue(min(candidates, worse.shape[-1]), dim=-1, keepdim=True).values
    return (p + alpha * (q - p)).clamp(min=FLOOR).log().masked_fill(worse > least, -torch.inf)
