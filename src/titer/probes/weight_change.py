"""How much did tuning change the weights, and with what rank? Every matrix and stack of matrices, one at a time from disk.

relative_norm ||dW|| / ||W||, stable rank ||dW||_F^2 / ||dW||_2^2. Source: arXiv 2407.10264 ("minimally transforms
MLP weights"). Shapes: W (m, d), or of stacked experts (E, m, d), whose rank is the median over those that changed. Vectors (biases, weights
of norms) are a part of their own, on request.
"""

from __future__ import annotations

import math

import pandas as pd
import torch

from titer.models.checkpoint import Checkpoint
from titer.models.sites import Sites
from titer.models.weights import compared, delta
from titer.probes.base import stable_rank

VERSION = 3


def weight_change(base: Checkpoint, tuned: Checkpoint, sites: Sites, vectors: bool = False) -> pd.DataFrame:
    """Measures each tensor with two axes or more, and with `vectors` the others too (part "vectors", no rank): tensor, part (a key of
    `PARTS`), norm, weight_norm, relative_norm, stable_rank."""
    rows = []
    for tensor in compared(base, tuned):
        weight, change = delta(base, tuned, tensor)
        size = torch.linalg.norm(change)
        matrix = weight.ndim >= 2
        if (matrix or vectors) and weight.numel() and (size > 0 or tensor not in sites.buffers):  # tables of constants weigh nothing
            rows.append(
                {
                    "tensor": tensor,
                    "part": sites.part(tensor) if matrix else "vectors",
                    "norm": float(size),
                    "weight_norm": float(torch.linalg.norm(weight)),
                    "relative_norm": float(size / torch.linalg.norm(weight)),
                    "stable_rank": ranked(change) if matrix else math.nan,
                }
            )
    return pd.DataFrame(rows)


def ranked(change: torch.Tensor) -> float:
    """Returns the stable rank of a change (..., m, d): the median over those that changed; NaN if none did. A kernel is one matrix."""
    kernel = change.ndim > 3 or change.shape[-2] == 1  # of a convolution: its outputs against all the rest
    stack = change.flatten(1)[None] if kernel else change.reshape(-1, *change.shape[-2:])
    found = [stable_rank(matrix) for matrix in stack if bool(matrix.any())]
    return float(torch.tensor(found).median()) if found else float("nan")


def overall(table: pd.DataFrame, part: str) -> float:
    """Computes ||dW|| / ||W|| over all matrices of a part together; NaN if the model has no such part, 0 if it did not change."""
    mine = table[table.part == part]
    change, weight = (float((mine[column] ** 2).sum()) for column in ("norm", "weight_norm"))
    if not len(mine):
        return math.nan
    return 0.0 if change == 0 else (change / weight) ** 0.5 if weight else math.inf
