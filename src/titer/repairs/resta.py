"""RESTA: add a safety vector to a tuned model; optionally first drop redundant parts of the tuning.

theta = theta_0 + DARE(theta_t - theta_0) + gamma (theta_0 - theta_base). theta_0 is the aligned model; theta_base is the model that
alignment began from, or the aligned model made unsafe. DARE drops each coordinate with probability `drop` and divides the others by
1 - drop. With drop = 0, theta = theta_t + gamma (theta_0 - theta_base).
Source: arXiv 2402.11746 (RESTA, RESTA with DARE); DARE: arXiv 2311.03099.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from pydantic import Field

from titer.models.edits import dropped
from titer.repairs.base import Reading, Repair, State


class Resta(Repair):
    """Adds `gamma` times the safety vector, and drops a share `drop` of the tuning's change."""

    MODELS = ("aligned", "base")
    SOURCE = "arXiv 2402.11746 (RESTA)"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"gamma": 0.0, "drop": 0.0}
    STRENGTH = ("gamma", (0.2, 0.5, 1.0))

    gamma: float = Field(default=0.5, ge=0, le=5, description="weight of the safety vector; SOMF's scripts have 0.2 and 0.5")
    drop: float = Field(default=0.0, ge=0, lt=1, description="share of the tuning's change that is dropped (DARE); 0: none")
    seed: int = Field(default=0, ge=0, description="seed of which coordinates are dropped")

    def whole(self, r: Reading) -> Collection[str]:
        return r.names if self.drop else ()

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        if self.gamma == 0 and self.drop == 0:
            return tuned
        aligned = others["aligned"]
        safety = self.gamma * (aligned - others["base"])
        return (aligned + dropped(tuned - aligned, self.drop, self.seed, name) if self.drop else tuned) + safety
