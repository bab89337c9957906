"""Abliteration, a stress test: remove one direction from every matrix that writes to the residual stream, W <- W - s r r^T W.

r is the model's refusal direction, scaled to norm 1: the mean activation of unsafe prompts minus that of safe prompts, after one layer,
at the prompt's end. Abliteration does not repair a model: it shows how its refusals change on the user's own prompts
(`titer audit MODEL OUT`). The control is a random direction. `norm` keeps the length of what each input writes (norm-preserving
variants). Source: arXiv 2406.11717, sections 2.3 and 4.1, which also edits the embedding and biases, and searches for the layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from titer.data.shapes import Need
from titer.models.activations import refusal_direction
from titer.models.weights import along
from titer.repairs.base import TUNED, Reading, Repair, State


class Abliterate(Repair):
    """Removes one direction from weights; the settings say which direction, from which weights, and how much of it."""

    DATA: ClassVar[Mapping[str, Need]] = {"prompts": "prompts"}
    HOLDS = 1
    SOURCE = "arXiv 2406.11717, sections 2.3 and 4.1"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"strength": 0.0}
    STRENGTH = ("strength", (0.25, 0.5, 0.75, 1.0))

    strength: float = Field(default=1.0, ge=0, le=2, description="share of the direction that is removed")
    direction: Literal["refusal", "random"] = Field(default="refusal", description="the model's own, or a random one as a control")
    layer: int = Field(
        default=-1,
        ge=-1,
        description="the block after which the direction is taken, from 0; -1: where it is longest relative to the activations",
    )
    layers: tuple[int, ...] = Field(default=(), description="blocks to edit, from 0; none: all")
    norm: bool = Field(default=False, description="keep the norm of what each input writes")
    embedding: bool = Field(default=False, description="edit the embedding's rows too")
    seed: int = Field(default=0, description="seed of the random direction")

    def check(self, r: Reading) -> None:
        r.check_direction(self._writers(r), self.layer)

    def whole(self, r: Reading) -> Collection[str]:
        return self._writers(r)

    def prepare(self, r: Reading) -> State:
        return {"writers": self._writers(r), "direction": self._direction(r)}

    def _writers(self, r: Reading) -> dict[str, bool]:
        """Returns edited parameter -> whether it is stored as (inputs, outputs), as the embedding, (tokens, width), is."""
        sites, chosen = r.sites, set(r.layered(self.layers))
        rows = getattr(sites.model.get_input_embeddings(), "weight", None) if self.embedding else None
        found = {name: turned for name, turned in sites.writers.items() if name in chosen}
        return found | {name: True for name, one in sites.model.named_parameters() if one is rows}

    def _direction(self, r: Reading) -> torch.Tensor:
        """Returns the direction (D,), of norm 1. Errors: --data has prompts of one class only."""
        if self.direction == "random":
            drawn = torch.randn(r.sites.width or 0, generator=torch.Generator().manual_seed(self.seed))
            return torch.nn.functional.normalize(drawn, dim=0)
        prompts = r.data["prompts"]
        with r.loaded(TUNED) as lm:
            direction, layer = refusal_direction(lm, prompts.of_class(False), prompts.of_class(True), self.layer)
        r.tell(f"the refusal direction is that after block {layer} (from 0)")
        return direction

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        turned = state["writers"].get(name)
        if turned is None or not self.strength:
            return tuned
        found = tuned - self.strength * along(tuned, state["direction"], turned)
        if self.norm:
            axis = -1 if turned else -2
            before, after = (torch.linalg.vector_norm(one, dim=axis, keepdim=True) for one in (tuned, found))
            found = found * torch.where(after > 0, before / after, torch.ones_like(after))
        return found
