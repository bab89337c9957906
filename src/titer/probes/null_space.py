"""Does a weight change write in directions that the base weight never uses (its left null space)? Checked direction by direction.

The change dW writes along its left singular vectors u_i; those are taken that hold `DELTA` of its squared singular values. A_r are the
left singular vectors of the base weight that hold 90 %, 99 % or all of its energy, and P_N = I - A_r A_r^T keeps what they miss. So
||P_N u_i|| is 1 for a direction that the base weight never uses, and 0 for one that it does. Where rows outnumber columns most directions
are unused, and a random one scores high too: its ||P_N u||^2 follows Beta((m - r)/2, r/2). A value says something only beside that
distribution's mean and 99th percentile, which are given with it. Source: arXiv 2407.10264, section 5.2 (figure 4). Shapes: W (m, d).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from scipy import stats

from titer.models.checkpoint import Checkpoint
from titer.models.sites import Sites
from titer.models.weights import changes_at
from titer.probes.base import rank_at, squares, thin_svd

VERSION = 2
ENERGIES = (0.9, 0.99, 1.0)
DELTA = 0.9
KINDS = ("mlp_up", "mlp_down")


def null_space(base: Checkpoint, tuned: Checkpoint, sites: Sites, kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """Measures each vector, per site, layer (from 1) and energy: value ||P_N u||, weight (its share of dW's kept energy), rank,
    random_mean (root mean square of a random vector) and random_99. Sites whose weights did not change are left out.
    """
    rows: list[pd.DataFrame] = []
    for kind in kinds:
        for i in sites.having(kind):
            moved = [(weight, change) for weight, change in changes_at(base, tuned, sites, f"{kind}[{i}]") if bool((change != 0).any())]
            energy = sum(squares(change) for _, change in moved)
            for weight, change in moved:
                share = squares(change) / energy
                rows += [one.assign(site=kind, layer=i + 1, weight=one.weight * share) for one in vectors(weight, change)]
    columns = ["site", "layer", "energy", "vector", "value", "weight", "rank", "random_mean", "random_99"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def vectors(weight: torch.Tensor, change: torch.Tensor) -> list[pd.DataFrame]:
    """Measures the kept singular vectors of `change` against the left null space of `weight`; returns one table for each energy."""
    left, values, _ = thin_svd(weight)
    moved, sizes, _ = thin_svd(change)
    kept = rank_at(sizes, DELTA)
    share = (sizes[:kept] ** 2 / (sizes[:kept] ** 2).sum()).numpy()
    tables = []
    for energy in ENERGIES:
        rank = rank_at(values, energy)
        inside = left[:, :rank].T @ moved[:, :kept]
        value = torch.sqrt((1 - (inside**2).sum(0)).clamp(min=0)).numpy()
        mean, high = random_band(weight.shape[0], rank)
        table = {"energy": energy, "vector": range(kept), "value": value, "weight": share, "rank": rank}
        tables.append(pd.DataFrame({**table, "random_mean": mean, "random_99": high}))
    return tables


def random_band(m: int, rank: int) -> tuple[float, float]:
    """Returns (root mean square, 99th percentile) of ||P_N u|| for a random unit vector u in m dimensions."""
    if rank >= m:
        return 0.0, 0.0
    return math.sqrt((m - rank) / m), math.sqrt(float(stats.beta.ppf(0.99, (m - rank) / 2, rank / 2)))


def weighted(table: pd.DataFrame) -> pd.DataFrame:
    """Averages ||P_N u||, weighted by energy, per site, layer and energy, and adds the values for random vectors."""
    keys = ["site", "layer", "energy"]
    mean = (table.value * table.weight).groupby([table[key] for key in keys]).sum().rename("value")
    band = table.groupby(keys)[["rank", "random_mean", "random_99"]].first()
    return band.join(mean).reset_index()
