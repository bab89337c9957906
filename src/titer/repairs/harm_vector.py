"""Harm Direction Removal: subtract from a tuned model the largest changes that harmful training makes.

tau = theta_H - theta_b, where theta_b is the aligned model and theta_H the same model after harmful training. The ceil(k P) largest of
tau's P coordinates are kept, the others become 0; theta = theta_t - lambda tau. k = 1 is the dense vector. The largest are chosen over all
parameters together (`scope` global, as TIES trims) or in each parameter (`scope` tensor). With `layers`, only these blocks are edited (in
the paper: those around an edit), and P counts their coordinates only. lambda = 1, k = 1 and theta_t = theta_H give theta_b.
Source: arXiv 2406.11801 (Safety Arithmetic), equations 1 to 6; trimming: arXiv 2306.01708.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from titer.models.directions import BLOCK
from titer.models.edits import cut, kept, magnitudes
from titer.repairs.base import Reading, Repair, State


class HarmVector(Repair):
    """Subtracts `strength` times the harmful change, of which only the largest share `k` of coordinates is kept."""

    MODELS = ("aligned", "harmful")
    MAY_BE_TUNED = ("harmful",)
    SOURCE = "arXiv 2406.11801 (Safety Arithmetic, HDR)"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"strength": 0.0}
    STRENGTH = ("strength", (0.5, 1.0, 2.0, 3.0))

    strength: float = Field(default=2.0, ge=0, le=10, description="lambda; paper: 2 to 3, and 0.1 to 6 for its dense vector")
    k: float = Field(default=0.1, gt=0, le=1, description="share of tau's coordinates that are kept; paper: 0.1; 1 keeps all")
    scope: Literal["global", "tensor"] = Field(default="global", description="choose the largest over all parameters together, or in each")
    layers: tuple[int, ...] = Field(default=(), description="blocks to edit, from 0; none: every parameter")

    def check(self, r: Reading) -> None:
        r.layered(self.layers)

    def whole(self, r: Reading) -> Collection[str]:
        return r.layered(self.layers) if self.scope == "tensor" and self.k < 1 else ()

    def prepare(self, r: Reading) -> State:
        chosen = r.layered(self.layers)
        if self.scope == "tensor" or self.k == 1:
            return {"chosen": frozenset(chosen)}
        places = [(name, rows) for name in chosen for rows in r.blocks(name)]

        def changes() -> Iterator[torch.Tensor]:
            return (r.weight("harmful", *place) - r.weight("aligned", *place) for place in places)

        # the threshold over all parameters; if some coordinates exactly at it are dropped, how many are kept, by parameter and first row
        total = sum(math.prod(r.tuned.shape(name)[0]) for name in chosen)
        bits, left, there = cut(changes, math.ceil(self.k * total))
        ties: dict[str, dict[int, int]] = {}
        for (name, rows), change in zip(places, changes() if left < there else (), strict=False):
            taken = min(left, int((magnitudes(change) == bits).sum()))
            ties.setdefault(name, {})[rows.start if rows else 0] = taken
            left -= taken
        return {"chosen": frozenset(chosen), "bits": bits, "ties": ties}

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        if name not in state["chosen"]:
            return tuned
        harmful, aligned = others["harmful"], others["aligned"]
        mask = torch.ones_like(tuned, dtype=torch.bool)
        if "bits" in state:
            rows: slice | None = getattr(others, "rows", None)
            ties = state["ties"].get(name, {0: tuned.numel()})
            mask = kept(harmful - aligned, state["bits"], ties[rows.start] if rows and len(ties) > 1 else sum(ties.values()))
        elif self.k < 1:
            change = harmful - aligned
            mask = kept(change, *cut(lambda: [change], math.ceil(self.k * change.numel()))[:2])
        found = tuned.flatten().clone()
        parts = (one.flatten().split(BLOCK) for one in (harmful, aligned, mask))
        for piece, h, a, chosen in zip(
            found.split(BLOCK), *parts, strict=True
        ):  # in float64, so that lambda = 1 gives theta_b to within 1e-16
            piece.copy_(piece.double() - self.strength * (h.double() - a.double()) * chosen)
        return found.view_as(tuned)
