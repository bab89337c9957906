"""Undo what the tuning changed along one direction: theta = theta_t + s r r^T (theta_0 - theta_t), in matrices that write to the residual.

r is the refusal direction of the aligned model theta_0, as in `abliterate`; s is `share`. Elsewhere, and across the direction, the tuned
model theta_t stays as it is. `titer audit` says whether a tuning lost its refusals along this direction. Sources: arXiv 2407.10264, section
5.2 (a part of a change alone); arXiv 2406.11717, section 2.3 (the direction).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from pydantic import Field

from titer.data.shapes import Need
from titer.models.activations import refusal_direction
from titer.models.weights import along
from titer.repairs.base import Reading, Repair, State


class RestoreDirection(Repair):
    """Moves what the weights write along the aligned model's refusal direction back to the aligned model, by `share` of the change."""

    MODELS = ("aligned",)
    DATA: ClassVar[Mapping[str, Need]] = {"prompts": "prompts"}
    HOLDS = 1
    SOURCE = "arXiv 2407.10264, section 5.2, and arXiv 2406.11717, section 2.3"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"share": 0.0}
    STRENGTH = ("share", (0.25, 0.5, 0.75, 1.0))

    share: float = Field(default=1.0, ge=0, le=1, description="share of the change along the direction that is undone")
    layer: int = Field(
        default=-1,
        ge=-1,
        description="the block after which the direction is taken, from 0; -1: where it is longest relative to the activations",
    )
    layers: tuple[int, ...] = Field(default=(), description="blocks to edit, from 0; none: all")

    def check(self, r: Reading) -> None:
        r.check_direction(r.sites.writers, self.layer)

    def whole(self, r: Reading) -> Collection[str]:
        return r.sites.writers

    def prepare(self, r: Reading) -> State:
        chosen = set(r.layered(self.layers))
        prompts = r.data["prompts"]
        with r.loaded("aligned") as lm:
            direction, layer = refusal_direction(lm, prompts.of_class(False), prompts.of_class(True), self.layer)
        r.tell(f"the refusal direction is that after block {layer} (from 0)")
        return {"writers": {name: turned for name, turned in r.sites.writers.items() if name in chosen}, "direction": direction}

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        turned = state["writers"].get(name)
        if turned is None or not self.share:
            return tuned
        return tuned + self.share * along(others["aligned"] - tuned, state["direction"], turned)
