"""SafeLoRA: after fine-tuning, project what training changed onto the direction of the alignment's change.

For each Linear of the blocks, V = W_aligned - W_unaligned is the alignment's change, dW = W - W_aligned the training's, and
C = V V^T / ||V||_F. Where cos(C dW, dW) <= threshold (Frobenius product), dW is replaced by C dW. A Linear that alignment or training
did not change (V = 0 or dW = 0) stays as it is. Source: arXiv 2405.16833. As published, C is not a true projector: its eigenvalues are
s_i^2 / ||s||, with s the singular values of V, so C dW is also scaled by about the size of V.

With a fresh adapter on the aligned weights, dW = scaling B A, and B is replaced by C B. An adapter that goes on from its parent's
(single-LoRA) holds both the alignment's and the user's change. In that case, and wherever the weight under the adapter is not the
aligned one, W is the merged weight: W_aligned + C dW becomes the weight under the adapter, and B becomes zero so that the merge adds
nothing.
Training itself is SFT. `titer repair --method safe_lora` does the same to a model that is already tuned.
Shapes: a weight is (outputs, inputs), C (outputs, outputs), A (rank, inputs), B (outputs, rank).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pydantic import Field

from titer.core.errors import TiterError
from titer.methods.base import Context, Method
from titer.models.blocks import transposed
from titer.models.edits import alignment_cosine, least_aligned, projected
from titer.models.sites import block_linears


class SafeLoRA(Method):
    """Trains as SFT does, then projects the change of some Linears: all with a low enough cosine, or the `layers` with the lowest."""

    MODELS = ("unaligned", "aligned")
    SOURCE = "arXiv 2405.16833 (SafeLoRA)"
    VERSION = 2
    NEUTRAL = {"threshold": -1.0}

    threshold: float = Field(default=0.5, ge=-1, le=1, description="project where the cosine is at most this; official code: 0.5")
    layers: int = Field(
        default=0,
        ge=0,
        description="project instead this many Linears, those with the lowest cosine (official code: 10); 0: use the threshold",
    )

    @torch.no_grad()
    def finish(self, c: Context) -> None:
        if self.layers == 0 and self.threshold < 0:  # C has no negative eigenvalue, so no cosine is below 0
            return
        found = list(layers_of(c))
        for i in least_aligned({i: layer.cosine() for i, layer in enumerate(found)}, self.threshold, self.layers):
            found[i].project()


class Layer(NamedTuple):
    """A Linear of the tuned model (perhaps inside an adapter), and the same Linear of the unaligned and the aligned model."""

    tuned: Any
    unaligned: Any
    aligned: Any

    def alignment(self) -> torch.Tensor:
        """Returns V = W_aligned - W_unaligned, (outputs, inputs)."""
        return self._rows(self.aligned.weight.float() - self.unaligned.weight.float())

    def fresh(self) -> bool:
        """Whether the adapter holds the whole difference between the tuned weight and the aligned one."""
        return hasattr(self.tuned, "base_layer") and torch.equal(self.tuned.base_layer.weight, self.aligned.weight)

    def change(self) -> torch.Tensor:
        """Returns dW = W - W_aligned, (outputs, inputs), with the adapter merged into W."""
        found = self._under().weight.float() - self.aligned.weight.float()  # zeros where the adapter is fresh
        for name in self.tuned.active_adapters if hasattr(self.tuned, "base_layer") else ():
            found = found + self.tuned.get_delta_weight(name).float()
        return self._rows(found)

    def cosine(self) -> float | None:
        """Returns cos(C dW, dW), or None if V or dW is zero."""
        return alignment_cosine(self.alignment(), self.change())

    def project(self) -> None:
        """Replaces dW by C dW. If a fresh adapter holds all of dW, only B is changed: the later merge then adds scaling C B A."""
        adapters = [self.tuned.lora_B[name].weight for name in self.tuned.active_adapters] if hasattr(self.tuned, "base_layer") else []
        if self.fresh():
            for b in adapters:
                b.copy_(projected(self.alignment(), b.float()))
            return
        after = self._rows(self.aligned.weight).float() + projected(self.alignment(), self.change())
        self._rows(self._under().weight).copy_(after)
        for b in adapters:
            b.zero_()

    def _under(self) -> Any:
        """Returns the Linear itself, without an adapter around it."""
        return getattr(self.tuned, "base_layer", self.tuned)

    def _rows(self, stored: torch.Tensor) -> torch.Tensor:
        """Returns the stored weight as (outputs, inputs): a view, not a copy."""
        return stored.T if transposed(self.tuned) else stored


def layers_of(c: Context) -> Iterator[Layer]:
    """Yields each Linear of the blocks, together with the same Linear of the unaligned and the aligned model.

    Errors: the models' shapes differ; experts that are not Linears, whose change could not be projected.
    """
    tuned, unaligned, aligned = (block_linears(sites) for sites in (c.sites, c.model("unaligned").sites, c.model("aligned").sites))
    if not tuned.keys() == unaligned.keys() == aligned.keys():
        raise TiterError("the tuned, aligned and unaligned models differ in their blocks", expected="three models of one architecture")
    for name, layer in tuned.items():
        shapes = [tuple(m.weight.shape) for m in (getattr(layer, "base_layer", layer), unaligned[name], aligned[name])]
        if len(set(shapes)) != 1:
            raise TiterError(
                f"{name}: {shapes[0]} in the tuned model, {shapes[1]} in the unaligned, {shapes[2]} in the aligned one",
                expected="three models of one architecture",
            )
        yield Layer(layer, unaligned[name], aligned[name])
