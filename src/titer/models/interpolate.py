"""Weights between and beyond two models: theta(alpha) = theta_base + alpha (theta_tuned - theta_base).

Exact at both ends. Also: the change of one part of the model, random changes of equal norm per tensor, a change added to another model.
Source: arXiv 2407.10264, section 5.6. Weights are name -> tensor, as in a model's state_dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from titer.data.draws import seed_of
from titer.models.lm import LM
from titer.models.names import alias
from titer.models.sites import Sites

Weights = Mapping[str, torch.Tensor]


def weights_of(lm: LM) -> dict[str, torch.Tensor]:
    """Returns a copy of a model's floating-point weights on the CPU, where all arithmetic of this module is done."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in lm.model.state_dict().items() if tensor.is_floating_point()}


def kept_weights(file: Path) -> dict[str, torch.Tensor]:
    """Loads weights that a stage saved at one of its steps."""
    return dict(load_file(file))


@contextmanager
def with_weights(lm: LM, weights: Weights | Iterable[tuple[str, torch.Tensor]]) -> Iterator[LM]:
    """A context in which the model has other weights, all or some; afterwards its own are restored bit for bit. (name, tensor)
    pairs are taken one at a time; besides them only the replaced tensors are held in memory."""
    held, own = lm.model.state_dict(), list[tuple[str, torch.Tensor]]()
    try:
        for given, tensor in weights.items() if isinstance(weights, Mapping) else weights:
            name = alias(given, held)
            own.append((name, held[name].detach().to("cpu", copy=True)))
            _put(held[name], tensor)
        yield lm
    finally:
        for name, tensor in reversed(own):  # two names of one tensor: the first held what was there
            _put(held[name], tensor)


@torch.no_grad()
def _put(place: torch.Tensor, tensor: torch.Tensor) -> None:
    place.copy_(tensor)


def along(base: Weights, tuned: Weights, alpha: float) -> dict[str, torch.Tensor]:
    """Returns theta(alpha); alpha 0 gives `base` and 1 gives `tuned` bit for bit (torch.lerp is exact at its ends)."""
    return {name: torch.lerp(base[name], tuned[name], alpha) for name in base}


def of_part(sites: Sites, base: Weights, tuned: Weights, part: str) -> dict[str, torch.Tensor]:
    """Returns the base with only the weights of one part ("mlp", "attention", "other") taken from `tuned`."""
    return {name: tuned[name] if sites.part(name) == part else base[name] for name in base}


def random_direction(base: Weights, tuned: Weights, seed: int) -> dict[str, torch.Tensor]:
    """Returns the base plus a random change that has in every tensor the norm of `tuned` - `base`."""
    moved = {}
    for name, start in base.items():
        change = tuned[name] - start
        noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(seed_of(seed, name)))
        moved[name] = start + noise * (torch.linalg.vector_norm(change) / torch.linalg.vector_norm(noise))
    return moved


def plus(weights: Weights, base: Weights, tuned: Weights, size: float) -> dict[str, torch.Tensor]:
    """Returns `weights` + size (tuned - base): one method's change added to another's model."""
    return {name: weights[name] + size * (tuned[name] - base[name]) for name in weights}


def distance(a: Weights, b: Weights) -> float:
    """Returns ||a - b|| over all tensors."""
    return float(torch.sqrt(sum(((a[name].double() - b[name].double()) ** 2).sum() for name in a)))  # type: ignore[arg-type]


def cosine(a: Weights, b: Weights, start_a: Weights, start_b: Weights) -> float:
    """Returns the cosine between the changes a - start_a and b - start_b over all tensors; NaN if one of them is zero."""
    inner = sum(float(((a[n].double() - start_a[n].double()) * (b[n].double() - start_b[n].double())).sum()) for n in a)
    size = distance(a, start_a) * distance(b, start_b)
    return inner / size if size > 0 else float("nan")
