"""Perturbations of activations: the gradient of the loss at sites, scaled to a given l2 norm (the radius of a ball).

Source: arXiv 2402.01109, equation 3: eps = rho g / ||g||, with ||g|| over all sites of one ball. Padding tokens are left out.
A ball is what shares one norm: the whole batch, one example, one layer or one token (`Scope`).
Shapes: B examples, T tokens, D width; a site's perturbation is (B, T, D), a mask (B, T) or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch

from titer.models.hooks import replacing
from titer.models.sites import Sites

Deltas = dict[str, torch.Tensor]
Grad = Callable[[torch.Tensor, Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
Sum = Callable[[torch.Tensor], torch.Tensor]
Scope = Literal["batch", "example", "layer", "token"]


def gradients_at(
    sites: Sites, names: Sequence[str], loss: Callable[[], torch.Tensor], grad: Grad, start: Mapping[str, torch.Tensor] | None = None
) -> Deltas:
    """Returns the gradient of `loss()` with respect to a perturbation added at each named site, at `start` (zero where there is none).

    `grad` is the `grad` of a training context, which leaves the parameters' own gradients as they are.
    """
    made: Deltas = {}

    def moved(name: str, activation: torch.Tensor) -> torch.Tensor:
        if name not in made:  # once: a checkpointed block that is computed again meets the same delta
            made[name] = (start or {}).get(name, torch.zeros_like(activation)).detach().requires_grad_(True)
        return activation + made[name]

    with replacing(sites, {name: partial(moved, name) for name in names}):
        total = loss()
        found = grad(total, [made[name] for name in names])
    return dict(zip(names, found, strict=True))


class Scaled(NamedTuple):
    """Perturbations that have the same norm in every ball; a ball without a direction (its norm is zero or not finite) is all zeros.

    `norm` is the norm over all balls before the scaling, over all ranks; None where no ball on any rank has a direction: then `deltas`
    is empty. `live` says for each site which balls have a direction, in a shape that broadcasts to (B, T, 1). `lost` counts over all
    ranks the balls that have none: the batch, layers or examples. For tokens it counts the examples with no direction at all or
    with a token that is not finite, because the last token of an answer never has a direction.
    """

    deltas: Deltas
    norm: torch.Tensor | None
    live: Deltas
    lost: torch.Tensor


def scaled(deltas: Deltas, radius: float, mask: torch.Tensor | None, total: Sum, scope: Scope = "batch") -> Scaled:
    """Returns the deltas scaled to norm `radius` in every ball.

    `total` sums over ranks. A batch or a layer is one ball across all ranks. The ranks decide together whether to skip, because a
    rank that left out a pass would keep the others waiting.
    """
    kept = {name: unmasked(delta, mask).float() for name, delta in deltas.items()}
    norms = _norms(kept, total, scope)
    live = {name: _alive(norm) for name, norm in norms.items()}
    energy, some, lost = _counted(norms, total, scope).unbind()
    if not bool(some > 0):
        return Scaled({}, None, live, lost)
    found = {name: (radius * delta / norms[name].clamp(min=1e-30)).where(live[name], 0.0) for name, delta in kept.items()}
    return Scaled({name: one.to(deltas[name].dtype) for name, one in found.items()}, energy.sqrt(), live, lost)


def projected(deltas: Deltas, radius: float, total: Sum, scope: Scope = "batch") -> Deltas:
    """Returns the deltas, with every ball whose norm exceeds `radius` scaled down to it."""
    norms = _norms({name: delta.float() for name, delta in deltas.items()}, total, scope)
    return {name: (delta * (radius / norms[name].clamp(min=1e-30)).clamp(max=1)).to(delta.dtype) for name, delta in deltas.items()}


def unmasked(delta: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns the delta with zeros where the mask is 0, even if it was not finite there."""
    return delta if mask is None else delta.masked_fill(mask[:, :, None] == 0, 0.0)


def _alive(norm: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(norm) & (norm > 0)


def _norms(deltas: Deltas, total: Sum, scope: Scope) -> Deltas:
    """Returns, for each site, the norm of the ball that each entry belongs to, in a shape that broadcasts to (B, T, 1)."""
    squares = {name: (delta**2).sum(-1) for name, delta in deltas.items()}  # (B, T)
    if scope == "token":
        return {name: square.sqrt()[:, :, None] for name, square in squares.items()}
    if scope == "layer":
        return {name: total(square.sum()).sqrt() for name, square in squares.items()}
    if scope == "example":
        together = torch.stack([square.sum(1) for square in squares.values()]).sum(0).sqrt()[:, None, None]
    else:
        together = total(torch.stack([square.sum() for square in squares.values()]).sum()).sqrt()
    return dict.fromkeys(squares, together)


def _counted(norms: Deltas, total: Sum, scope: Scope) -> torch.Tensor:
    """Returns three numbers, over all ranks: the squared norm of the balls with a direction, how many have one, and `lost`."""
    apart = scope in ("layer", "token")  # else the sites share a ball
    stacked = torch.stack(list(norms.values()) if apart else [next(iter(norms.values()))])
    live = _alive(stacked)
    energy, some, lost = (stacked.where(live, 0.0) ** 2).sum(), live.sum(), (~live).sum()
    if scope == "token":  # (L, B, T, 1)
        lost = (~torch.isfinite(stacked).all(2).all(0) | ~live.any(2).any(0)).sum()
    found = torch.stack([energy, some.float(), lost.float()])
    return total(found) if scope in ("example", "token") else found
