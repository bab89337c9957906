"""SafeLoRA as a repair: project what a tuning changed onto the direction of the alignment's change.

The formula and its source are in methods/safe_lora.py, which does the same at the end of training. The other models are `aligned` and
`base`, the model that alignment began from. In an adapter on the aligned model, B becomes C B; in a whole model,
dW = W_tuned - W_aligned becomes C dW.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field

from titer.models.edits import alignment_cosine, least_aligned, projected, two_changes
from titer.repairs.base import TUNED, Reading, Repair, State


class SafeLoRA(Repair):
    """Projects the change of some Linears: those with a cosine of at most `threshold`, or the `layers` with the lowest cosine."""

    MODELS = ("aligned", "base")
    ADAPTER = "aligned"
    SOURCE = "arXiv 2405.16833 (SafeLoRA)"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"threshold": -1.0}
    STRENGTH = ("threshold", (0.25, 0.5, 0.75, 1.0))

    threshold: float = Field(default=0.5, ge=-1, le=1, description="project where the cosine is at most this; official code: 0.5")
    layers: int = Field(
        default=0,
        ge=0,
        description="project instead this many Linears, those with the lowest cosine (official code: 10); 0: use the threshold",
    )

    def check(self, r: Reading) -> None:
        _ = r.matrices

    def whole(self, r: Reading) -> Collection[str]:
        return r.matrices

    def prepare(self, r: Reading) -> State:
        """Returns the state `chosen`: weight of a Linear to project -> whether it is stored as (inputs, outputs)."""
        if self.layers == 0 and self.threshold < 0:  # C has no negative eigenvalue, so no cosine is below 0
            return {"chosen": {}}
        pairs = {name: partial(two_changes, others=r.others(name), turned=turned) for name, turned in r.matrices.items()}
        cosines = {name: alignment_cosine(*pair(r.weight(TUNED, name))) for name, pair in pairs.items()}
        chosen = {name: r.matrices[name] for name in least_aligned(cosines, self.threshold, self.layers)}
        r.tell(f"{len(chosen)} of {len(cosines)} Linears are projected")
        return {"chosen": chosen}

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        if name not in state["chosen"]:
            return tuned
        turned = state["chosen"][name]
        after = projected(*two_changes(tuned, others, turned))
        return others["aligned"] + (after.T if turned else after)

    def factors(
        self, name: str, a: torch.Tensor, b: torch.Tensor, others: Mapping[str, torch.Tensor], state: State
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if name not in state["chosen"]:
            return a, b
        alignment = others["aligned"] - others["base"]
        return a, projected(alignment.T if state["chosen"][name] else alignment, b)
