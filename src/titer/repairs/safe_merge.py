"""SafeMERGE: merge a tuned model with a safety-tuned one, only in the layers that turned away from alignment.

dW is what the tuning changed in a Linear, dW_safe what the safety-tuned model changed there; both are differences from the aligned model.
If the cosine between dW and its projection (SafeLoRA's, methods/safe_lora.py) is below tau, dW becomes (1 - alpha) dW + alpha dW_safe.
All other parameters stay as they are.
Source: arXiv 2503.17239 (SafeMERGE) and its official code (linear merge, tau 0.35, weights 0.8 and 0.2).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from pydantic import Field

from titer.models.edits import alignment_cosine, two_changes
from titer.repairs.base import TUNED, Reading, Repair, State


class SafeMerge(Repair):
    """Merges the Linears with a cosine below `threshold` with the safety-tuned model, whose weight is `alpha`."""

    MODELS = ("aligned", "base", "safe")
    SOURCE = "arXiv 2503.17239 (SafeMERGE)"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"alpha": 0.0}
    STRENGTH = ("alpha", (0.2, 0.5, 1.0))

    alpha: float = Field(default=0.2, ge=0, le=1, description="weight of the safety-tuned model; official code: 0.2")
    threshold: float = Field(default=0.35, ge=-1, le=1, description="tau: merge where the cosine is below it; official code: 0.35")

    def check(self, r: Reading) -> None:
        _ = r.matrices

    def whole(self, r: Reading) -> Collection[str]:
        return r.matrices  # `prepare` reads them whole

    def prepare(self, r: Reading) -> State:
        chosen = set()
        for name, turned in r.matrices.items():
            cosine = alignment_cosine(*two_changes(r.weight(TUNED, name), r.others(name), turned))
            chosen |= {name} if cosine is not None and cosine < self.threshold else set()
        r.tell(f"{len(chosen)} of {len(r.matrices)} Linears are merged")
        return {"chosen": chosen}

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        return torch.lerp(tuned, others["safe"], self.alpha) if name in state["chosen"] else tuned
