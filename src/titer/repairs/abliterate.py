"""Abliteration, a stress: one direction is taken out of every matrix that writes to the residual stream, W <- W - s r r^T W.

r is the model's own refusal direction: mean activation of unsafe prompts less that of safe ones, after one layer, at the prompt's end.
What is tuned here is the model to be stressed; the answer is not harmful text but how its refusals move on prompts of the user's
(`titer audit MODEL OUT`). Control: a random direction. `norm` keeps the length of what each input writes (norm-preserving variants).
Source: arXiv 2406.11717, sections 2.3 and 4.1, which takes the embedding and biases too, and picks the layer by a search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from titer.core.errors import TiterError
from titer.data.shapes import Need
from titer.models.activations import at_prompt_end, longest
from titer.models.weights import along
from titer.repairs.base import TUNED, Reading, Repair, State


class Abliterate(Repair):
    """Which direction is taken out, of what, and how much of it."""

    DATA: ClassVar[Mapping[str, Need]] = {"prompts": "prompts"}
    HOLDS = 1
    SOURCE = "arXiv 2406.11717, sections 2.3 and 4.1"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, float]] = {"strength": 0.0}
    STRENGTH = ("strength", (0.25, 0.5, 0.75, 1.0))

    strength: float = Field(default=1.0, ge=0, le=2, description="share of the direction that is taken out")
    direction: Literal["refusal", "random"] = Field(default="refusal", description="the model's own, or a random one as a control")
    layer: int = Field(
        default=-1, ge=-1, description="the block whose direction it is, from 0; -1: where it is longest beside the activations"
    )
    layers: tuple[int, ...] = Field(default=(), description="blocks that are edited, from 0; none: all")
    norm: bool = Field(default=False, description="whether what each input writes keeps its length")
    embedding: bool = Field(default=False, description="whether the embedding's rows are edited too")
    seed: int = Field(default=0, description="of the random direction")

    def check(self, r: Reading) -> None:
        if not self._writers(r):
            raise TiterError(f"{r.tuned.label} has no matrix that writes to the residual stream", expected="a decoder of layers")
        if self.layer >= r.sites.layers:
            raise TiterError(f"layer {self.layer}: {r.tuned.label} has {r.sites.layers}", expected=f"-1 to {r.sites.layers - 1}")

    def prepare(self, r: Reading) -> State:
        return {"writers": self._writers(r), "direction": torch.nn.functional.normalize(self._direction(r), dim=0)}

    def _writers(self, r: Reading) -> dict[str, bool]:
        """What is edited -> whether it is stored as (inputs, outputs), as the embedding's (tokens, width) is."""
        sites, chosen = r.sites, set(r.layered(self.layers))
        rows = getattr(sites.model.get_input_embeddings(), "weight", None) if self.embedding else None
        found = {name: turned for name, turned in sites.writers.items() if name in chosen}
        return found | {name: True for name, one in sites.model.named_parameters() if one is rows}

    def _direction(self, r: Reading) -> torch.Tensor:
        """(D,). Errors: prompts of one class."""
        if self.direction == "random":
            return torch.randn(r.sites.width or 0, generator=torch.Generator().manual_seed(self.seed))
        safe, unsafe = (r.data["prompts"].of_class(harmful) for harmful in (False, True))
        if not safe or not unsafe:
            raise TiterError(f"{len(safe)} safe and {len(unsafe)} unsafe prompts", expected="some of each class")
        with r.loaded(TUNED) as lm:
            names = lm.sites.everywhere("resid")
            found = at_prompt_end(lm, [e.prompt for e in (*safe, *unsafe)], names)
        ends = torch.stack([found[name] for name in names])  # (L, n, D)
        directions = ends[:, len(safe) :].mean(1) - ends[:, : len(safe)].mean(1)
        layer = longest(directions, torch.linalg.vector_norm(ends, dim=2).mean(1)) if self.layer < 0 else self.layer
        r.tell(f"the refusal direction is that after block {layer} (from 0)")
        return directions[layer]

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
