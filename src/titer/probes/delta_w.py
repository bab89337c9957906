"""Where does the change of the first MLP matrix act? dW = W_tuned - W_base of mlp_up, per layer.

Per input: gain ||dW a|| / ||a|| with a the tuned model's MLP input at the end of the prompt, and the share of
dW a that lies in the left null space of W_base. Per layer: the share of dW itself there, its relative norm and
stable rank. Each beside a random dW with the same singular values (control). The left null space is that of
the best approximation of W_base that keeps `energy` of its squared singular values.
Source: arXiv 2407.10264, sections 5.2 and 5.3 (figures 4 and 5). Shapes: W (m, d), a (n, d), A (m, r).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from titer.data.draws import seed_of
from titer.data.example import Example
from titer.models.activations import at_prompt_end
from titer.models.checkpoint import Checkpoint
from titer.models.lm import LM
from titer.models.weights import delta

VERSION = 1
ENERGY = 0.9


def delta_w(
    base: Checkpoint, tuned: Checkpoint, lm: LM, safe: Sequence[Example], unsafe: Sequence[Example], seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(per input, per layer). `lm` is the tuned model loaded.

    Per input: layer, harmful, input, gain, gain_random, null_share, null_share_random. Per layer: layer,
    null_share, null_share_random, relative_norm, stable_rank, rank (kept of W_base).
    """
    names = [f"mlp_in[{i}]" for i in range(lm.sites.layers)]
    found = [at_prompt_end(lm, [e.prompt for e in group], names) for group in (safe, unsafe)]
    inputs, layers = [], []
    for i, name in enumerate(names):
        weight, change = delta(base, tuned, lm.sites.tensor(f"mlp_up[{i}]"))
        kept = column_space(weight, ENERGY)
        random = random_like(change, seed_of(seed, "delta_w", i))
        layers.append({"layer": i + 1, **_layer(weight, change, random, kept)})
        for harmful, group in enumerate(found):
            inputs.append(_inputs(i + 1, bool(harmful), group[name], change, random, kept))
    return pd.concat(inputs, ignore_index=True), pd.DataFrame(layers)


def _layer(weight: torch.Tensor, change: torch.Tensor, random: torch.Tensor, kept: torch.Tensor) -> dict[str, float]:
    return {
        "null_share": null_share(change, kept),
        "null_share_random": null_share(random, kept),
        "relative_norm": float(torch.linalg.norm(change) / torch.linalg.norm(weight)),
        "stable_rank": stable_rank(change),
        "rank": kept.shape[1],
    }


def _inputs(layer: int, harmful: bool, a: torch.Tensor, change: torch.Tensor, random: torch.Tensor, kept: torch.Tensor) -> pd.DataFrame:
    size = torch.linalg.vector_norm(a, dim=1)
    columns: dict[str, object] = {"layer": layer, "harmful": harmful, "input": range(len(a))}
    for suffix, matrix in (("", change), ("_random", random)):
        moved = a @ matrix.T
        columns["gain" + suffix] = (torch.linalg.vector_norm(moved, dim=1) / size).numpy()
        inside = torch.linalg.vector_norm(moved @ kept, dim=1)
        columns["null_share" + suffix] = (1 - inside**2 / (moved**2).sum(1)).numpy()
    return pd.DataFrame(columns)


def column_space(weight: torch.Tensor, energy: float) -> torch.Tensor:
    """Left singular vectors (m, r), r the smallest number that holds `energy` of the squared singular values."""
    left, values, _ = torch.linalg.svd(weight, full_matrices=False)
    held = torch.cumsum(values**2, 0) / (values**2).sum()
    rank = int((held < energy - 1e-7).sum()) + 1
    return left[:, :rank]


def null_share(change: torch.Tensor, kept: torch.Tensor) -> float:
    """||P_N dW||^2 / ||dW||^2 with P_N = I - A A^T: the energy-weighted share of dW's columns; NaN for dW = 0."""
    return float(1 - (torch.linalg.norm(kept.T @ change) / torch.linalg.norm(change)) ** 2)


def stable_rank(matrix: torch.Tensor) -> float:
    """||M||_F^2 / ||M||_2^2; NaN for a zero matrix."""
    return float((torch.linalg.norm(matrix) / torch.linalg.matrix_norm(matrix, 2)) ** 2)


def random_like(matrix: torch.Tensor, seed: int) -> torch.Tensor:
    """A matrix of the same shape and singular values with Haar-random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.linalg.svdvals(matrix)
    left, right = (_orthonormal(size, len(values), generator) for size in matrix.shape)
    return (left * values) @ right.T


def _orthonormal(size: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    q, r = torch.linalg.qr(torch.randn(size, columns, generator=generator))
    return q * torch.sign(torch.diagonal(r))
