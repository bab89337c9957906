"""What studies price their runs with: tokens of a world's request, operations of a token. L7."""

from __future__ import annotations

import numpy as np

from titer.data.world import World, WorldSource
from titer.models.lm import Architecture


def used_width(world: World) -> float:
    """Mean tokens of a request with its answer."""
    batch = WorldSource(world=world, kind="safe").batch(np.arange(256), "comply", None)
    return float(batch.input_ids.shape[1] if batch.attention_mask is None else batch.attention_mask.sum(1).float().mean())


def forward_flop(a: Architecture, vocabulary: int, width: float) -> float:
    """Floating-point operations of one token's forward pass: 2 a weight, and attention over half of the row on average."""
    weights = 12 * a.layers * a.width**2 + a.width * vocabulary
    return 2.0 * weights + 2 * a.layers * a.width * width
