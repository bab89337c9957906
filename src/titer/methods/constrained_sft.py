"""Constrained SFT: fine-tune with a limit on how far each answer token may drift, tightest at the first tokens.

L = sum over answer tokens of (2 / beta_t) softplus(beta_t (log p_ref - log p_w)). t counts the answer's tokens from 1; the reference is
the model that the stage began from. The gradient is that of cross-entropy with each token weighted by
2 (1 - sigmoid(beta_t (log p_w - log p_ref))), between 0 and 2. The weight is 1 at the start and falls towards 0 as a token becomes
likelier than it is under the reference. A larger beta therefore allows less drift.

Source: arXiv 2406.05946 (constrained fine-tuning), with beta_1 = 0.5, beta_2 to beta_5 = 2.0, and 0.1 after that.
beta = 0 stands for the limit beta -> 0: plain cross-entropy, weight 1 (the loss without the constant 2 log 2 / beta).
Shapes: B examples, T tokens.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn import functional

from titer.data.example import IGNORE, Batch
from titer.methods.base import Batches, Context, Loss, Method, predicted


class ConstrainedSFT(Method):
    """Fine-tunes with a limit on the drift of each token; the settings are beta by the token's place. A large beta allows little drift."""

    SOURCE = "arXiv 2406.05946 (constrained fine-tuning)"
    VERSION = 1
    NEUTRAL = {"beta": 0.0, "first": 0.0, "early": 0.0}

    beta: float = Field(default=0.1, ge=0, description="beta after the early tokens; official code: 0.1")
    first: float = Field(default=0.5, ge=0, description="beta of an answer's first token; official code: 0.5")
    early: float = Field(default=2.0, ge=0, description="beta of the early tokens after the first; official code: 2.0")
    early_tokens: int = Field(default=5, ge=0, description="number of early tokens, the first included; official code: 5")

    def loss(self, c: Context, batch: Batches) -> Loss:
        train = batch["train"]
        with c.reference() as forward:
            before_BT = _nll(forward(train), train)
        drift_BT = _nll(c.forward(train), train) - before_BT  # log p_ref - log p_w
        trained = predicted(train.labels) != IGNORE
        beta_BT = self.betas(train.labels).to(drift_BT.dtype)
        some = torch.where(beta_BT > 0, beta_BT, 1)  # no division by zero, also in the branch that is not taken
        term = torch.where(beta_BT > 0, 2 / some * functional.softplus(some * drift_BT), drift_BT)
        over = trained.sum()
        c.log("token_weight", (self.weights(drift_BT.detach(), beta_BT) * trained).sum() / over)
        return Loss(torch.where(trained, term, 0).sum(), over)

    def betas(self, labels: torch.Tensor) -> torch.Tensor:
        """Returns beta_t (B, T) at the places that predict a labelled token; values elsewhere have no meaning."""
        place = (predicted(labels) != IGNORE).cumsum(1)
        later = torch.where(place <= self.early_tokens, self.early, self.beta)
        return torch.where(place == 1, self.first, later) if self.early_tokens else later

    @staticmethod
    def weights(drift: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        """Returns the factor on each token's cross-entropy gradient; drift = log p_ref - log p_w."""
        return 2 * torch.sigmoid(beta * drift)


def _nll(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Returns the negative log-likelihood of each predicted label, (B, T); 0 where nothing is trained."""
    flat = logits.reshape(-1, logits.shape[-1]).float()
    found = functional.cross_entropy(flat, predicted(batch.labels).reshape(-1), ignore_index=IGNORE, reduction="none")
    return found.reshape(batch.labels.shape)
