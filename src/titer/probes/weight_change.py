"""How much did tuning change the weights, and with what rank? Every matrix, one at a time from disk.

relative_norm ||dW|| / ||W||, stable rank ||dW||_F^2 / ||dW||_2^2. Source: arXiv 2407.10264 ("minimally transforms
MLP weights"). Shapes: W (m, d); other tensors than matrices are left out.
"""

from __future__ import annotations

import pandas as pd
import torch

from titer.models.checkpoint import Checkpoint
from titer.models.sites import Sites
from titer.models.weights import delta
from titer.probes.base import stable_rank

VERSION = 1


def weight_change(base: Checkpoint, tuned: Checkpoint, sites: Sites) -> pd.DataFrame:
    """Per matrix: tensor, part (mlp, attention, other), norm, weight_norm, relative_norm, stable_rank (NaN where nothing changed)."""
    rows = []
    for tensor in sorted(set(base.files) & set(tuned.files)):
        weight, change = delta(base, tuned, tensor)
        if weight.ndim == 2:
            size = torch.linalg.norm(change)
            rows.append(
                {
                    "tensor": tensor,
                    "part": sites.part(tensor),
                    "norm": float(size),
                    "weight_norm": float(torch.linalg.norm(weight)),
                    "relative_norm": float(size / torch.linalg.norm(weight)),
                    "stable_rank": stable_rank(change) if size > 0 else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def overall(table: pd.DataFrame, part: str) -> float:
    """||dW|| / ||W|| over all matrices of a part together; NaN where the model has none."""
    mine = table[table.part == part]
    return float(((mine.norm**2).sum() / (mine.weight_norm**2).sum()) ** 0.5) if len(mine) else float("nan")
