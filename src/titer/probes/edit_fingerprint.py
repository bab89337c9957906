"""Was a direction removed from the matrices that write to the residual stream? Rank 1 of each change, one matrix at a time from disk.

Abliteration (arXiv 2406.11717, section 4.1) is W <- W - s r r^T W in attention's output, the MLP's down matrix, the embedding. So each
dW (m, d) gets: `share`, its energy in rank 1, s_1^2 / ||dW||^2, with left vector u; `removed`, 1 - ||u^T W'|| / ||u^T W||; `own`,
-cos(u^T dW, u^T W), which is 1 if dW removes what W wrote along u, whatever the strength; `rest`, the same outside u, where scaling and
pruning remove something too. A tune, even of rank 1, has no reason to have `own` near 1. Random changes of the same shape are the null.
Singular vectors: a randomised SVD (torch.svd_lowrank) of `WIDE` columns. Titer's own measure; docs/deviations.md says where it is blind.
Shapes: W (m, d), m the stream's width; N matrices; L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from titer.models.checkpoint import Checkpoint
from titer.models.sites import WRITING, Sites
from titer.models.weights import changes_at, compared, delta
from titer.probes.base import squares

VERSION = 1
WIDE, PASSES = 8, 4  # columns and power iterations of the randomised SVD
DRAWS = 1000  # random directions; a level of 0.001 a matrix
HALF = 0.5  # of a squared cosine
ROUNDING = 1e-6  # of a change's energy


class Prints(NamedTuple):
    """The result of `edit_fingerprint`: its table, and the left vectors (N, m) of the matrices that changed, in their order."""

    table: pd.DataFrame
    left: torch.Tensor


def edit_fingerprint(base: Checkpoint, tuned: Checkpoint, sites: Sites) -> Prints:
    """Tests each matrix: site, layer (0: the embedding), relative_norm, share, share_random, removed, own, own_random, rest, edited.

    `edited`: whether a direction was removed. It needs all of: `share` and `own` each exceed what random changes show; the square of
    `own` exceeds a half; `rest` is at most half of `own`. An unchanged matrix has NaN and False. Errors: no layer has such a matrix.
    """
    rows, left = [], []
    for site, layer, weight, change in _writing(base, tuned, sites):
        size, whole = (float(torch.linalg.norm(one)) for one in (change, weight))
        row: dict[str, object] = {"site": site, "layer": layer, "relative_norm": size / whole if whole else np.nan, "edited": False}
        if size and np.isfinite(size):
            u, share = leading(change)
            share_random, own_random = by_chance(*change.shape)
            row |= {"share": share, "share_random": share_random, **_taken(u, weight, change), "own_random": own_random}
            row["edited"] = bool(
                share > share_random and row["own"] > max(own_random, HALF**0.5) and row["rest"] <= row["own"] / 2  # type: ignore[operator]
            )
            left.append(u)
        rows.append(row)
    columns = ["site", "layer", "relative_norm", "share", "share_random", "removed", "own", "own_random", "rest", "edited"]
    return Prints(pd.DataFrame(rows, columns=columns), torch.stack(left) if left else torch.empty(0, 0))


def _writing(base: Checkpoint, tuned: Checkpoint, sites: Sites) -> Iterator[tuple[str, int, torch.Tensor, torch.Tensor]]:
    """Yields (site, layer, W, dW) of each matrix that writes to the stream, whose width is its first axis; a changed embedding: layer 0."""
    if all(sites.lacks(kind) == sites.layers for kind in WRITING):
        sites.having(*WRITING)
    for i, block in enumerate(sites.blocks):
        for kind in WRITING:
            for weight, change in changes_at(base, tuned, sites, f"{kind}[{i}]") if kind in block.weights else ():
                yield f"{kind}[{i}]", i + 1, weight, change
    embedding = getattr(sites.model.get_input_embeddings(), "weight", None)
    for name, parameter in sites.model.named_parameters() if embedding is not None else ():
        if parameter is embedding and base.called(name) in compared(base, tuned) and tuple(embedding.shape[1:]) == (sites.width,):
            weight, change = delta(base, tuned, name)
            if bool(change.any()):
                yield "embed", 0, weight.T, change.T


def leading(change: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Returns the leading left vector u (m,) of a change that is not 0, and the share of its energy in rank 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, _ = torch.svd_lowrank(change, q=min(WIDE, *change.shape), niter=PASSES)
    return left[:, 0], float((values[0] / torch.linalg.norm(change)) ** 2)


def _taken(u: torch.Tensor, weight: torch.Tensor, change: torch.Tensor) -> dict[str, float]:
    """Computes `removed`, `own` and `rest` (see the module's text) of one matrix."""
    wrote, moved = (u @ one for one in (weight, change))
    before, after, along = (float(torch.linalg.norm(one)) for one in (wrote, wrote + moved, moved))
    inner = float(torch.dot(change.flatten(), weight.flatten())) - float(moved @ wrote)
    left, outside = squares(change) - along**2, squares(weight) - before**2
    exact = left <= ROUNDING * along**2 or outside <= 0  # nothing but rounding is left outside u
    return {
        "removed": 1 - after / before if before else np.nan,
        "own": -float(torch.cosine_similarity(moved, wrote, dim=0)),
        "rest": 0.0 if exact else -inner / (left * outside) ** 0.5,
    }


@lru_cache(maxsize=64)
def by_chance(rows: int, columns: int) -> tuple[float, float]:
    """Returns the null: (rank-1 share of a random change of this shape, largest |cos| of `DRAWS` random vectors of length `columns`)."""
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    along, across = rng.standard_normal(DRAWS), rng.chisquare(max(columns - 1, 1), DRAWS)
    return leading(noise)[1], float(np.abs(along / np.sqrt(along**2 + across)).max())


def common(left: torch.Tensor) -> tuple[float, float]:
    """Returns (mean |cos| of unit vectors (N, m) with their leading direction, the largest such value of 20 sets of random ones)."""
    generator = torch.Generator().manual_seed(0)
    random = [_agreement(torch.nn.functional.normalize(torch.randn(left.shape, generator=generator), dim=1)) for _ in range(20)]
    return _agreement(left), max(random)


def _agreement(vectors: torch.Tensor) -> float:
    return float((vectors @ torch.linalg.svd(vectors, full_matrices=False).Vh[0]).abs().mean())


def along(left: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Computes |cos| of unit vectors (N, m) with directions (L, m), (N, L)."""
    return (left @ torch.nn.functional.normalize(directions, dim=1).T).abs()
