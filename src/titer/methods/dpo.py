"""Direct preference optimisation on (preferred, rejected) answers of one request.

L = -mean log sigmoid(b_s (ref(preferred) - nll(preferred)) - b_u (ref(rejected) - nll(rejected))).
nll is an answer's negative log-likelihood under the trained model, ref the same under the reference: the model that the stage began
from. On pools of fixed size the reference's values are computed once.
- normalise "window": each nll is divided by `window` (arXiv 2407.10264, section 4: 159; b_s 0.1; b_u 0.01, or 0.002 at the small
  learning rate). The first gradient is then parallel to that of the method `unlearn` with w_u = b_u / b_s.
- normalise "sum": summed log-probabilities. With b_s = b_u this is DPO as published (arXiv 2305.18290, equation 7).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn import functional

from titer.methods.base import Batches, Context, Loss, Method
from titer.models.likelihood import pair_nll


class DPO(Method):
    """Trains on pairs of answers; the settings are a beta for each answer and how log-probabilities are normalised."""

    STREAMS = ("preferred", "rejected")
    SOURCE = "arXiv 2407.10264, section 4 (DPO); arXiv 2305.18290, equation 7"
    VERSION = 1
    NEUTRAL = "none, for a preference loss is cross-entropy at no setting (parity tests)"

    b_s: float = Field(default=0.1, ge=0, description="beta of the preferred answer; paper: 0.1")
    b_u: float = Field(default=0.01, ge=0, description="beta of the rejected answer; paper: 0.01 (0.002 at the small rate)")
    normalise: Literal["window", "sum"] = Field(default="window", description="divide the loss by the window, or not at all")
    window: int = Field(default=159, ge=1, description="tokens to divide by; paper: 159")

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """Returns `reference` (pool, 2), the reference's nll of both answers of each pair in the pool; nothing on endless streams."""
        with c.reference() as forward:
            found = [torch.stack(pair_nll(forward, batch), dim=1) for batch in c.pool()]
        return {"reference": torch.cat(found)} if found else {}

    def loss(self, c: Context, batch: Batches) -> Loss:
        preferred, rejected = pair_nll(c.forward, batch)
        before = self._reference(c, batch)
        size = self.window if self.normalise == "window" else 1
        margin = (self.b_s * (before[:, 0] - preferred) - self.b_u * (before[:, 1] - rejected)) / size
        c.log("margin", margin.mean())
        return Loss(-functional.logsigmoid(margin).sum(), len(preferred))

    def _reference(self, c: Context, batch: Batches) -> torch.Tensor:
        if "reference" in c.state:
            return c.state["reference"].to(batch["preferred"].indices.device)[batch["preferred"].indices]
        with c.reference() as forward:
            return torch.stack(pair_nll(forward, batch), dim=1)
