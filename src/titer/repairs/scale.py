"""Scaling: keep a share c of what the tuning changed, theta_0 + c (theta_t - theta_0). The control that a repair must beat.

theta_0 is the aligned model, theta_t the tuned one. c = 1 gives the tuned model and c = 0 the aligned one, both bit for bit. In an adapter
on the aligned model, B is scaled. Source: interpolation of weights, arXiv 2203.05482 (model soups) and 2109.01903 (WiSE-FT).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from pydantic import Field

from titer.repairs.base import Reading, Repair, State


class Scale(Repair):
    """Keeps a share `c` of the tuning's change."""

    MODELS = ("aligned",)
    ADAPTER = "aligned"
    SOURCE = "arXiv 2109.01903 (WiSE-FT), 2203.05482 (model soups)"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"c": 1.0}
    STRENGTH = ("c", (0.0, 0.25, 0.5, 0.75))

    c: float = Field(default=0.5, ge=0, le=2, description="share of the change that is kept; above 1 it is extrapolated")

    def whole(self, r: Reading) -> Collection[str]:
        return ()

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        return torch.lerp(others["aligned"], tuned, self.c)

    def factors(
        self, name: str, a: torch.Tensor, b: torch.Tensor, others: Mapping[str, torch.Tensor], state: State
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return a, b * self.c
