"""Perturbations of activations: the loss's gradient at sites, and its scaling into balls of one l2 radius.

Source: arXiv 2402.01109, equation 3: eps = rho g / ||g||, ||g|| over every site of the ball. Padding takes no part.
Shapes: B examples, T tokens, D width; a site's perturbation is (B, T, D), a mask (B, T) or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from titer.models.hooks import Edit, replacing
from titer.models.sites import Sites

Deltas = dict[str, torch.Tensor]
Grad = Callable[[torch.Tensor, Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
Sum = Callable[[torch.Tensor], torch.Tensor]
Scope = Literal["batch", "example", "layer", "token"]


def gradients_at(
    sites: Sites, names: Sequence[str], loss: Callable[[], torch.Tensor], grad: Grad, start: Mapping[str, torch.Tensor] | None = None
) -> Deltas:
    """The gradient of `loss()` to a perturbation of each named site, taken at `start` (zero where there is none).

    `grad` is a context's: it touches no parameter gradient.
    """
    made: Deltas = {}

    def edit(name: str) -> Edit:
        def moved(activation: torch.Tensor) -> torch.Tensor:
            if name not in made:  # once: a checkpointed block that is computed again meets the same delta
                made[name] = (start or {}).get(name, torch.zeros_like(activation)).detach().requires_grad_(True)
            return activation + made[name]

        return moved

    with replacing(sites, {name: edit(name) for name in names}):
        total = loss()
        found = grad(total, [made[name] for name in names])
    return dict(zip(names, found, strict=True))


def scaled(
    deltas: Deltas, radius: float, mask: torch.Tensor | None, total: Sum, scope: Scope = "batch"
) -> tuple[Deltas, torch.Tensor | None]:
    """The deltas with norm `radius` in every ball, and the norm over all of them before; ({}, None) where there is no direction.

    `total` sums over ranks: a batch or a layer is one ball over all of them.
    """
    kept = {name: (delta if mask is None else delta * mask[:, :, None]).float() for name, delta in deltas.items()}
    squares = {name: (delta**2).sum(-1) for name, delta in kept.items()}  # (B, T)
    norms = _norms(squares, total, scope)
    whole = torch.stack([norm.sum() for norm in norms.values()]).sum()
    if not bool(torch.isfinite(whole) & (whole > 0)):
        return {}, None
    found = {name: (radius * delta / norms[name].clamp(min=1e-30)).to(deltas[name].dtype) for name, delta in kept.items()}
    return found, torch.sqrt(torch.stack([square.sum() for square in squares.values()]).sum())


def _norms(squares: Deltas, total: Sum, scope: Scope) -> Deltas:
    """The norm of the ball that each entry belongs to, broadcast to (B, T, 1) or less."""
    if scope == "token":
        return {name: square.sqrt()[:, :, None] for name, square in squares.items()}
    if scope == "layer":
        return {name: total(square.sum()).sqrt() for name, square in squares.items()}
    if scope == "example":
        together = torch.stack([square.sum(1) for square in squares.values()]).sum(0).sqrt()[:, None, None]
        return dict.fromkeys(squares, together)
    together = total(torch.stack([square.sum() for square in squares.values()]).sum()).sqrt()
    return dict.fromkeys(squares, together)
