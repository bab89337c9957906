"""Put a part of a change back: the aligned model's weights in one kind of modules, of some layers.

theta_t + s (theta_0 - theta_t) in that part, s = `share`; elsewhere the tuned model, bit for bit. Of an adapter on the aligned model B is
scaled there, and what was trained whole is put back. Which part lost the refusals: `titer audit`. Source: the model with a part of a
change alone, arXiv 2407.10264, section 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from titer.core.errors import TiterError
from titer.repairs.base import Reading, Repair, State


class Restore(Repair):
    """What is put back: of a part of the network, of some layers."""

    MODELS = ("aligned",)
    ADAPTER = "aligned"
    SOURCE = "arXiv 2407.10264, section 5.2 (parts of a change alone)"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"share": 0.0}
    STRENGTH = ("share", (0.25, 0.5, 0.75, 1.0))

    part: Literal["all", "mlp", "attention", "mixer", "block", "tower", "other"] = Field(
        default="mlp", description="the part that is put back; other: embedding, norms and head"
    )
    layers: tuple[int, ...] = Field(default=(), description="its blocks, from 0; none: all, and what stands outside them")
    share: float = Field(default=1.0, ge=0, le=1, description="share of the change that is put back there")

    def check(self, r: Reading) -> None:
        if not self._names(r):
            where = f" in blocks {', '.join(map(str, self.layers))}" if self.layers else ""
            raise TiterError(f"{r.tuned.label} has no {self.part}{where}", expected="a part that the model has")

    def prepare(self, r: Reading) -> State:
        return {"names": self._names(r)}

    def _names(self, r: Reading) -> set[str]:
        return {name for name in r.layered(self.layers) if self.part in ("all", r.sites.part(name))}

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        return torch.lerp(tuned, others["aligned"], self.share) if name in state["names"] else tuned

    def factors(
        self, name: str, a: torch.Tensor, b: torch.Tensor, others: Mapping[str, torch.Tensor], state: State
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return a, b * (1 - self.share) if name in state["names"] else b
