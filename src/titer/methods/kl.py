"""KL: fine-tune, and hold each predicted distribution near that of the model that the stage began from.

L = CE + strength * mean over answer tokens of KL(reference || current), each KL over the vocabulary. The reference is the model that the
stage began from. Source: arXiv 2402.01109, appendix B.2 (strength 1e-3). The official code takes the softmax over positions, including
prompt and padding; here it is over the vocabulary, and only trained tokens count.
Shapes: B examples, T tokens, V vocabulary, N trained tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn import functional

from titer.data.example import IGNORE
from titer.methods.base import Batches, Context, Loss, Method, predicted, token_nll


class KL(Method):
    """Fine-tunes and holds the predictions near the first model's; the setting says how strongly."""

    SOURCE = "arXiv 2402.01109, appendix B.2 (KL)"
    VERSION = 1
    NEUTRAL = {"strength": 0.0}

    strength: float = Field(default=1e-3, ge=0, description="lambda, the weight of the divergence; paper: 1e-3")

    def loss(self, c: Context, batch: Batches) -> Loss:
        train = batch["train"]
        if self.strength == 0:
            return token_nll(c.forward(train), train.labels)
        with c.reference() as forward:
            before = forward(train)
        logits = c.forward(train)
        nll, divergence = token_nll(logits, train.labels), token_kl(before, logits, train.labels)
        c.log("kl", divergence / nll.over)
        return Loss(nll.total + self.strength * divergence, nll.over)


def token_kl(before: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns KL(before || logits) over the vocabulary, summed over the places that predict a labelled token.

    before, logits (B, T, V); labels (B, T) with -100 where not trained; label t is predicted at t - 1.
    """
    trained = predicted(labels) != IGNORE
    reference_NV, current_NV = (functional.log_softmax(one[trained].float(), dim=-1) for one in (before, logits))
    return functional.kl_div(current_NV, reference_NV, reduction="sum", log_target=True)
