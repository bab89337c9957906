"""Unlearning: learn the preferred answer, and unlearn the rejected one by gradient ascent on its likelihood.

L = mean over requests of (w_s nll(preferred) - w_u nll(rejected)) / window, each nll summed over its own
answer's tokens. Source: arXiv 2407.10264, section 4 (w_u 0.1 at the learning rate eta_M, 0.05 at eta_S; window 159). The loss
has no lower bound: if a run diverges, the loop stops it and keeps the last finite weights.
"""

from __future__ import annotations

from pydantic import Field

from titer.methods.base import Batches, Context, Loss, Method
from titer.models.likelihood import pair_nll


class Unlearn(Method):
    """Learns preferred answers and unlearns rejected ones; the settings are a weight for each, and the number of tokens to divide by."""

    STREAMS = ("preferred", "rejected")
    SOURCE = "arXiv 2407.10264, section 4 (unlearning)"
    VERSION = 1
    NEUTRAL = "none bit for bit; with w_u = 0 the loss is SFT's divided by the window (a parity test)"

    w_s: float = Field(default=1.0, ge=0, description="weight of the preferred answer; paper: 1")
    w_u: float = Field(default=0.1, ge=0, description="weight of the rejected answer; paper: 0.1 (0.05 at the small rate)")
    window: int = Field(default=159, ge=1, description="tokens to divide by; paper: 159")

    def loss(self, c: Context, batch: Batches) -> Loss:
        preferred, rejected = pair_nll(c.forward, batch)
        c.log("nll_rejected", rejected.mean())
        return Loss((self.w_s * preferred - self.w_u * rejected).sum() / self.window, len(preferred))
