"""Undo a part of the tuning: put the aligned model's weights back in one kind of module, in all layers or only in some.

In that part theta = theta_t + s (theta_0 - theta_t), with s = `share`, theta_t the tuned and theta_0 the aligned model; elsewhere it is
the tuned model, bit for bit. In an adapter on the aligned model, B is scaled in that part, and weights that were trained whole are put
back. `titer audit` says which part lost the refusals. Source: arXiv 2407.10264, section 5.2 (the model with only a part of a change).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from titer.core.errors import TiterError
from titer.repairs.base import Reading, Repair, State


class Restore(Repair):
    """Moves one part of the network back to the aligned model, in the chosen layers, by `share` of the change."""

    MODELS = ("aligned",)
    ADAPTER = "aligned"
    SOURCE = "arXiv 2407.10264, section 5.2 (parts of a change alone)"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"share": 0.0}
    STRENGTH = ("share", (0.25, 0.5, 0.75, 1.0))

    part: Literal["all", "mlp", "attention", "mixer", "block", "tower", "other"] = Field(
        default="mlp", description="the part that is put back; other: embedding, norms and head"
    )
    layers: tuple[int, ...] = Field(default=(), description="blocks to edit, from 0; none: all of them and what is outside of blocks")
    share: float = Field(default=1.0, ge=0, le=1, description="share of the change that is undone there")

    def check(self, r: Reading) -> None:
        if not self._names(r):
            where = f" in blocks {', '.join(map(str, self.layers))}" if self.layers else ""
            raise TiterError(f"{r.tuned.label} has no part {self.part}{where}", expected="a part that the model has")

    def prepare(self, r: Reading) -> State:
        return {"names": self._names(r)}

    def _names(self, r: Reading) -> set[str]:
        return {name for name in r.layered(self.layers) if self.part in ("all", r.sites.part(name))}

    def whole(self, r: Reading) -> Collection[str]:
        return ()

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        return torch.lerp(tuned, others["aligned"], self.share) if name in state["names"] else tuned

    def factors(
        self, name: str, a: torch.Tensor, b: torch.Tensor, others: Mapping[str, torch.Tensor], state: State
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return a, b * (1 - self.share) if name in state["names"] else b
