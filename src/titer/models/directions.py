"""Directions in the space of a model's weights: random ones, and the one towards another checkpoint; none is ever whole in memory.

Random: in each tensor d ~ N(0, 1), scaled so that ||d||_F = ||W||_F; norm layers do not move. With `against`, another direction, d is
made orthogonal to it in every tensor before it is scaled, so the norm is kept and the cosine over all tensors is 0 (the
official code prints a cosine and orthogonalises nothing). Towards: theta' - theta. d is drawn in blocks from (seed, name of the
tensor), and only two scalars per tensor are kept, so a direction needs the memory of one block, not of a tensor.
Source: arXiv 2405.17374, section 3 and its code (norm_type "layer"). Shapes: a tensor is read flat, in blocks of BLOCK values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch

from titer.data.draws import seed_of
from titer.models.checkpoint import Checkpoint

BLOCK = 2**20  # values; part of what a seed means, for a generator's stream depends on how much is drawn at once
PARALLEL = 1e-12  # share of a draw's square that must be left beside the other direction, else a tensor has no room for it


@dataclass(frozen=True)
class Random:
    """A random direction; if `against` is given, orthogonal to that direction in every tensor."""

    seed: int
    against: Direction | None = None


@dataclass(frozen=True)
class Towards:
    """The direction from the model to another checkpoint of the same architecture; a step of 1 reaches that checkpoint."""

    checkpoint: Checkpoint


Direction = Random | Towards
Weight = Callable[[str], torch.Tensor]
Other = Callable[[Checkpoint, str], torch.Tensor]


def still(model: Any) -> set[str]:
    """Returns the names of the tensors that no random direction moves: norm layers, by name or class, and modules with only vectors."""
    found = set()
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(prefix=prefix, recurse=False, remove_duplicate=False))
        norm = type(module).__name__.lower().endswith("norm") or all(tensor.ndim < 2 for tensor in own.values())
        found |= {name for name in own if norm or "norm" in name.lower()}
    return found


def pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields a tensor's values as flat float32 blocks of at most BLOCK values."""
    return (piece.float() for piece in tensor.reshape(-1).split(BLOCK))


def noise(seed: int, name: str, count: int) -> Iterator[torch.Tensor]:
    """Yields `count` standard normal values in blocks, determined by (seed, name). Drawn on the CPU, so the same with a GPU."""
    generator = torch.Generator().manual_seed(seed_of("direction", seed, name))
    for start in range(0, count, BLOCK):
        yield torch.randn(min(BLOCK, count - start), generator=generator)


def inner(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]) -> float:
    """Returns the inner product of two sequences of blocks, computed in float64."""
    return math.fsum(float(a.double() @ b.double()) for a, b in zip(first, second, strict=True))


def square(blocks: Iterable[torch.Tensor]) -> float:
    """Returns the squared norm of a sequence of blocks, computed in float64."""
    return math.fsum(float(b @ b) for b in (block.double() for block in blocks))


class Directions:
    """Computes directions for one model: `weight(name)` gives its tensor W, `other(checkpoint, name)` that tensor in another checkpoint."""

    def __init__(self, weight: Weight, other: Other, fixed: Collection[str]) -> None:
        self._weight, self._other, self._fixed = weight, other, fixed
        self._scalars: dict[tuple[Direction, str], tuple[float, float]] = {}

    def moves(self, direction: Direction, name: str) -> bool:
        """Whether a direction can change a tensor: a random one leaves norm layers as they are."""
        return isinstance(direction, Towards) or name not in self._fixed

    def blocks(self, direction: Direction, name: str, weight: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        """Yields the direction in one tensor as flat float32 blocks; `weight` (W), if it is given, is not read again."""
        own = self._weight(name) if weight is None else weight
        if isinstance(direction, Towards):
            there = self._other(direction.checkpoint, name)
            yield from (b - a for a, b in zip(pieces(own), pieces(there), strict=True))
            return
        if name in self._fixed:
            yield from (torch.zeros_like(piece) for piece in pieces(own))
            return
        scale, share = self._drawn(direction, name, own)
        others = repeat(None) if direction.against is None else self.blocks(direction.against, name, own)
        for drawn, along in zip(noise(direction.seed, name, own.numel()), others, strict=False):
            yield drawn.mul_(scale) if along is None else ((drawn.double() - share * along.double()) * scale).float()

    def cosine(self, first: Direction, second: Direction, names: Iterable[str]) -> float:
        """Returns the cosine between two directions over the tensors `names`; NaN if one direction is zero there."""
        sums = [0.0, 0.0, 0.0]
        for name in names:
            for k, (a, b) in enumerate(((first, second), (first, first), (second, second))):
                sums[k] += inner(self.blocks(a, name), self.blocks(b, name))
        return sums[0] / math.sqrt(sums[1] * sums[2]) if sums[1] * sums[2] > 0 else math.nan

    def _drawn(self, direction: Random, name: str, own: torch.Tensor) -> tuple[float, float]:
        """Returns (scale, share) with d = scale (n - share * other direction), so that d has W's norm; cached, as each point needs it."""
        key = (direction, name)
        if key not in self._scalars:
            count = own.numel()
            whole = left = square(noise(direction.seed, name, count))
            share = 0.0
            if direction.against is not None and (across := square(self.blocks(direction.against, name, own))) > 0:
                shared = inner(noise(direction.seed, name, count), self.blocks(direction.against, name, own))
                share, left = shared / across, whole - shared**2 / across
            roomy = left > PARALLEL * whole  # a tensor of one value has no second direction
            self._scalars[key] = (math.sqrt(square(pieces(own)) / left) if roomy else 0.0, share)
        return self._scalars[key]
