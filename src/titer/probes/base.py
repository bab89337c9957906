"""Functions that the probes share: column spaces of weights, random matrices with given singular values, distances to centroids.

Shapes: W and dW (m, d), A (m, r) orthonormal, activations (n, D).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from titer.core.errors import TiterError
from titer.data.example import Example
from titer.models.activations import over_answer
from titer.models.lm import LM

ANSWER_POSITIONS = 10  # the positions that tau is averaged over (arXiv 2407.10264, section 5.1)
GRAM_BLOCK = 8192  # rows that are held in float64 at once
GRAM_FROM = 512  # from this smaller side on, singular vectors come from the Gram matrix of that side


def enough(safe: Sequence[Example], unsafe: Sequence[Example]) -> None:
    """Checks that each class has four prompts, enough to split it in halves. Errors: a class has fewer."""
    for name, examples in (("safe", safe), ("unsafe", unsafe)):
        if len(examples) < 4:
            expected = "at least 4 of each class: probes fit on one half of them and are tested on the other"
            raise TiterError(f"there are {len(examples)} {name} prompts", expected=expected)


def over_comply(
    lm: LM, examples: Sequence[Example], names: Sequence[str], suffixes: torch.Tensor | None = None
) -> dict[str, torch.Tensor] | None:
    """Returns each site's mean activation (n, D) over the first positions of the compliant answers; None if an example has no answer."""
    answers = [e.comply for e in examples if e.comply is not None]
    if len(answers) < len(examples):
        return None
    return over_answer(lm, [e.prompt for e in examples], answers, names, ANSWER_POSITIONS, suffixes=suffixes)


def thin_svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Computes the thin SVD (U (m, k), S (k,), V (d, k)), k the smaller side; of a large matrix, through that side's Gram matrix.

    The Gram matrix loses singular values below about 1e-7 of the largest (float64, squared); shares of energy are not affected.
    """
    if min(matrix.shape) < GRAM_FROM:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right.T
    wide = matrix.shape[0] < matrix.shape[1]
    tall = (matrix.T if wide else matrix).double()
    energies, vectors = torch.linalg.eigh(_gram(matrix))
    values, small = energies.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    large = (tall @ small) / values.clamp(min=values[0] * 1e-12)
    pair = (small, large) if wide else (large, small)
    return pair[0].to(matrix.dtype), values.to(matrix.dtype), pair[1].to(matrix.dtype)


def rank_at(values: torch.Tensor, energy: float) -> int:
    """Returns the smallest number of singular values that hold the share `energy` of their summed squares. At energy 1 that is the rank, up
    to float32's rounding; a zero matrix has 0."""
    squares = values.double() ** 2
    if not squares.any():
        return 0
    held = torch.cumsum(squares, 0) / squares.sum()
    return int((held < energy - (1e-12 if energy == 1 else 1e-7)).sum()) + 1


def column_space(weight: torch.Tensor, energy: float) -> torch.Tensor:
    """Returns the left singular vectors (m, r) of a weight, r the smallest number that holds `energy` of the squared singular values."""
    left, values, _ = thin_svd(weight)
    return left[:, : rank_at(values, energy)]


def squares(matrix: torch.Tensor) -> float:
    """Returns the matrix's energy: ||M||^2, the sum of its squared entries."""
    return float(torch.linalg.norm(matrix)) ** 2


def null_share(change: torch.Tensor, kept: torch.Tensor) -> float:
    """Returns the share of dW's energy outside the space of A (`kept`): ||P_N dW||^2 / ||dW||^2, P_N = I - A A^T; NaN for dW = 0."""
    return float(1 - (torch.linalg.norm(kept.T @ change) / torch.linalg.norm(change)) ** 2)


def stable_rank(matrix: torch.Tensor) -> float:
    """Computes the stable rank, ||M||_F^2 / ||M||_2^2; NaN for a zero matrix."""
    if min(matrix.shape) < GRAM_FROM:
        return float((torch.linalg.norm(matrix) / torch.linalg.matrix_norm(matrix, 2)) ** 2)
    energies = torch.linalg.eigvalsh(_gram(matrix))
    return float(energies.sum() / energies[-1])


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    """Computes M^T M or M M^T, whichever is smaller, in float64, one block of the long side at a time."""
    tall = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    found = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for block in tall.split(GRAM_BLOCK):
        wide = block.double()
        found += wide.T @ wide
    return found


def random_like(matrix: torch.Tensor, seed: int) -> torch.Tensor:
    """Draws a matrix with the same shape and singular values, and with Haar-random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.linalg.svdvals(matrix)
    left, right = (_orthonormal(size, len(values), generator) for size in matrix.shape)
    return (left * values) @ right.T


def _orthonormal(size: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    q, r = torch.linalg.qr(torch.randn(size, columns, generator=generator))
    return q * torch.sign(torch.diagonal(r))


def distance_score(a: torch.Tensor, safe: torch.Tensor, unsafe: torch.Tensor) -> torch.Tensor:
    """Computes ||a - mu_unsafe|| - ||a - mu_safe|| for activations (n, D) and centroids (D,), (n,). Above 0: nearer the safe one."""
    return torch.linalg.vector_norm(a - unsafe, dim=1) - torch.linalg.vector_norm(a - safe, dim=1)


def taus(safe: torch.Tensor, unsafe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the paper's tau for the inputs of both classes, with centroids of these same inputs."""
    centres = safe.mean(0), unsafe.mean(0)
    return distance_score(safe, *centres), distance_score(unsafe, *centres)


def held_out_scores(safe: torch.Tensor, unsafe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes held-out scores for both classes: each half (even or odd places) is measured against the other half's centroids."""
    scores = torch.empty(len(safe)), torch.empty(len(unsafe))
    for half in (0, 1):
        centres = safe[1 - half :: 2].mean(0), unsafe[1 - half :: 2].mean(0)
        scores[0][half::2] = distance_score(safe[half::2], *centres)
        scores[1][half::2] = distance_score(unsafe[half::2], *centres)
    return scores
