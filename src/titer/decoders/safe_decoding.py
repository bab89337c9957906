"""SafeDecoding: choose the first tokens by what a safety-tuned expert prefers, among tokens that both models find likely.

p = p_own + alpha (p_expert - p_own), over the candidates only. Candidates are the tokens that are among the k likeliest of both models,
with the smallest k that gives at least `candidates`. After the `first` tokens the model decodes alone. Source: arXiv 2402.08983,
section 4, and its code, from which the floor of 1e-8 is kept (p as defined can be negative). Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from pydantic import Field

from titer.decoders.base import Decoder, State, Step

FLOOR = 1e-8


class SafeDecoding(Decoder):
    """Steers the model that decodes, the one to be guarded, by an `expert`: the same model, fine-tuned to refuse."""

    MODELS = ("expert",)
    SOURCE = "arXiv 2402.08983, section 4"
    VERSION = 1
    NEUTRAL = {"first": 0}

    alpha: float = Field(default=3.0, ge=0, description="weight of the difference; 1 is the expert's own choice among the candidates")
    first: int = Field(default=2, ge=0, description="how many first tokens of an answer are chosen this way")
    candidates: int = Field(default=5, ge=1, description="how many candidate tokens there are, at least")

    def logits(self, step: Step, state: State) -> torch.Tensor:
        early = step.before + step.new.shape[1] < self.first
        if not bool(early.any()):
            return step.logits
        return torch.where(early[:, None], steered(step.logits, step.others["expert"], self.alpha, self.candidates), step.logits)


def steered(own: torch.Tensor, expert: torch.Tensor, alpha: float, candidates: int) -> torch.Tensor:
    """Returns log-probabilities (B, V) up to a constant; -inf for tokens that are not candidates."""
    p, q = own.softmax(-1), expert.softmax(-1)
    ranks = [one.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) for one in (p, q)]
    worse = torch.maximum(*ranks)
    least = worse.kthvalue(min(candidates, worse.shape[-1]), dim=-1, keepdim=True).values
    return (p + alpha * (q - p)).clamp(min=FLOOR).log().masked_fill(worse > least, -torch.inf)
