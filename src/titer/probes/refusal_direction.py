"""The refusal direction of each layer: mean activation of harmful prompts minus that of harmless ones; how far tuning rotated it.

Site: the residual stream after each block, at the prompt's last token. Source: arXiv 2406.11717, section 2.3 (difference in means; its
steering and ablation are not measured here). A direction is an estimate from few prompts, so its noise is measured too: the cosine
between directions of disjoint halves (mean over random splits of each class, and its Spearman-Brown correction for the whole sets), and
the same with shuffled labels, whose norm is what chance gives. Between two models: the cosine per layer, and the cosine between disjoint
halves with its ceiling sqrt(split-half a * split-half b), the largest value that noise allows.
Among many layers some exceed their ceiling by chance. So `unturned` simulates what two models with the same direction would show with this
noise, in all layers at once, and `limits` gives the value that the largest excess stays below (max-T, single step; Westfall and Young
1993). Layers count from 1. Shapes: n prompts, S splits, L layers, D width, R rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from titer.core.config import digest
from titer.core.errors import TiterError
from titer.data.example import Example
from titer.models.activations import at_prompt_end
from titer.models.lm import LM
from titer.probes.base import enough

VERSION = 1
SPLITS = 20
ROUNDS = 200  # data sets drawn without a turn; 95 % of their largest excesses lie below the limit
CHUNK = 25  # of those at a time


@dataclass(frozen=True)
class RefusalDirections:
    """One model's directions, float32: small enough to keep while the next model is loaded."""

    prompts: str  # key of the prompts and the splits: two models compare on the same ones only
    sizes: tuple[int, int]  # harmless, harmful
    whole: torch.Tensor  # (L, D)
    halves: torch.Tensor  # (2, S, L, D)
    shuffled: torch.Tensor  # (S, L, D)
    shuffled_halves: torch.Tensor  # (2, S, L, D)
    activation: torch.Tensor  # (L,): mean norm of an activation


def measured(lm: LM, safe: Sequence[Example], unsafe: Sequence[Example], seed: int = 0, splits: int = SPLITS) -> RefusalDirections:
    """Measures one model's directions: from the whole sets, from random halves, and with shuffled labels.

    Errors: fewer than four prompts in a class.
    """
    enough(safe, unsafe)
    names = lm.sites.everywhere("resid")
    prompts = [e.prompt for e in (*safe, *unsafe)]
    found = at_prompt_end(lm, prompts, names)
    return of_activations([found[name] for name in names], len(safe), digest(prompts), seed, splits)


def of_activations(found: Sequence[torch.Tensor], safe: int, prompts: str, seed: int = 0, splits: int = SPLITS) -> RefusalDirections:
    """Does the same from given activations, (n, D) per layer, the first `safe` of harmless prompts. `prompts`: key of the prompts."""
    weights = _weights(safe, len(found[0]) - safe, seed, splits)
    made = torch.stack([(weights @ layer.double()).float() for layer in found], dim=1)  # (1 + 5 S, L, D)
    parts = made[1:].unflatten(0, (5, splits))
    return RefusalDirections(
        prompts=digest([prompts, safe, seed, splits]),
        sizes=(safe, len(found[0]) - safe),
        whole=made[0],
        halves=parts[:2],
        shuffled=parts[2],
        shuffled_halves=parts[3:],
        activation=torch.stack([torch.linalg.vector_norm(layer, dim=1).mean() for layer in found]),
    )


def refusal_direction(lm: LM, safe: Sequence[Example], unsafe: Sequence[Example], seed: int = 0) -> pd.DataFrame:
    """Measures a model's directions and returns their `summary`. Errors: as `measured`."""
    return summary(measured(lm, safe, unsafe, seed))


def summary(found: RefusalDirections) -> pd.DataFrame:
    """Summarises directions per layer: norm, relative (to the mean activation's), split_half with its spread over splits (low, high: the
    middle 95 %), reliability (of the whole sets), norm_shuffled, norm_shuffled_high (95th percentile), split_half_shuffled, n_safe,
    n_unsafe."""
    norms = torch.linalg.vector_norm(found.whole, dim=-1)
    halves = _cosine(found.halves[0], found.halves[1])  # (S, L)
    mean, (low, high) = halves.mean(0), np.quantile(halves.numpy(), [0.025, 0.975], axis=0)
    chance = torch.linalg.vector_norm(found.shuffled, dim=-1)
    return pd.DataFrame(
        {
            "layer": range(1, len(norms) + 1),
            "norm": norms.numpy(),
            "relative": (norms / found.activation).numpy(),
            "split_half": mean.numpy(),
            "low": low,
            "high": high,
            "reliability": (2 * mean / (1 + mean)).numpy(),
            "norm_shuffled": chance.mean(0).numpy(),
            "norm_shuffled_high": np.quantile(chance.numpy(), 0.95, axis=0),
            "split_half_shuffled": _cosine(found.shuffled_halves[0], found.shuffled_halves[1]).mean(0).numpy(),
            "n_safe": found.sizes[0],
            "n_unsafe": found.sizes[1],
        }
    )


def rotation(before: RefusalDirections, after: RefusalDirections) -> pd.DataFrame:
    """Compares two models' directions per layer: cosine, degrees, norm_ratio (after / before); cosine_halves between disjoint halves, its
    ceiling, and degrees_ceiling, what noise alone would show. A model compared with itself gives exactly 1 and 0 degrees.

    Errors: directions of other prompts or splits; models of other layers or widths.
    """
    if before.prompts != after.prompts:
        raise TiterError("two refusal directions of different prompts or splits", expected="both measured on the same prompts and seed")
    if before.whole.shape != after.whole.shape:
        sizes = " and ".join(f"{m.whole.shape[0]} layers of width {m.whole.shape[1]}" for m in (before, after))
        raise TiterError(f"refusal directions of {sizes}", expected="a model and what was tuned from it")
    angle = _angle(before.whole, after.whole)
    across, ceiling = _halves(before.halves, after.halves)
    return pd.DataFrame(
        {
            "layer": range(1, len(angle) + 1),
            "cosine": torch.cos(angle).numpy(),
            "degrees": torch.rad2deg(angle).numpy(),
            "norm_ratio": (torch.linalg.vector_norm(after.whole, dim=-1) / torch.linalg.vector_norm(before.whole, dim=-1)).numpy(),
            "cosine_halves": across.numpy(),
            "ceiling": ceiling.numpy(),
            "degrees_halves": _degrees(across).numpy(),
            "degrees_ceiling": _degrees(ceiling).numpy(),
        }
    )


def unturned(
    before: Sequence[torch.Tensor],
    after: Sequence[torch.Tensor],
    safe: int,
    seed: int = 0,
    splits: int = SPLITS,
    rounds: int = ROUNDS,
) -> np.ndarray:
    """Simulates data sets in which no direction turned; returns their degrees_halves - degrees_ceiling, (R, L).

    `before`, `after`: activations (n, D) per layer of the same prompts, the first `safe` of them harmless. Each data set draws
    prompts, the same ones in every layer, with their noise in both models (an activation minus its class's mean). Both models
    have the same direction, each with its own length, from which the part that noise adds is removed.
    """
    drawn = torch.from_numpy(_draws(safe, len(before[0]) - safe, seed, splits, rounds)).flatten(1, 2)  # (2, R S, n)
    found = []
    for one, other in zip(before, after, strict=True):
        sides = _noise(one, safe), _noise(other, safe)
        towards = torch.nn.functional.normalize(torch.stack([d / torch.linalg.vector_norm(d) for _, d in sides]).nan_to_num().sum(0), dim=0)
        rows = torch.cat([sides[0][0], sides[1][0], towards[None]])
        if rows.shape[1] > len(rows):  # lengths and angles are kept in the space that they span
            rows = rows @ torch.linalg.qr(rows.T).Q
        noises, axis = rows[:-1].float().chunk(2), rows[-1].float()
        sizes = [float(torch.linalg.vector_norm(d)) for _, d in sides]
        parts = []
        for some in drawn.split(CHUNK * splits, dim=1):
            made = [(some @ noise + size * axis).unflatten(1, (-1, splits)) for noise, size in zip(noises, sizes, strict=True)]
            across, ceiling = _halves(made[0].transpose(1, 2), made[1].transpose(1, 2))
            parts.append(_degrees(across) - _degrees(ceiling))
        found.append(torch.cat(parts))
    return torch.stack(found, dim=1).numpy()


def limits(table: pd.DataFrame, null: np.ndarray, known: Sequence[bool], level: float = 0.95) -> pd.DataFrame:
    """Adds p and degrees_limit to `rotation`'s table. The share `level` of unturned data sets stays below it in all known layers at once.

    `null` is `unturned`'s; layers that are not known have no limit. A layer turned where degrees_halves exceeds its limit.
    """
    mask = np.asarray(known, dtype=bool)
    limit, p = np.full(len(table), np.nan), np.full(len(table), np.nan)
    if mask.any():
        centre, spread = null[:, mask].mean(0), np.maximum(null[:, mask].std(0), 1e-6)
        top = ((null[:, mask] - centre) / spread).max(1)
        excess = (table.degrees_halves - table.degrees_ceiling).to_numpy()[mask]
        limit[mask] = table.degrees_ceiling.to_numpy()[mask] + centre + np.quantile(top, level) * spread
        p[mask] = (1 + (top[:, None] >= (excess - centre) / spread).sum(0)) / (1 + len(top))
    return table.assign(degrees_limit=limit, p=p)


def _halves(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the cosine between two models' disjoint halves, and its ceiling, as means over splits, from (2, S, ..., D) each."""
    across = (_cosine(before[0], after[1]) + _cosine(before[1], after[0])).mean(0) / 2
    within = [_cosine(m[0], m[1]).mean(0).clamp(min=0) for m in (before, after)]
    return across, (within[0] * within[1]).sqrt()


def _degrees(cosine: torch.Tensor) -> torch.Tensor:
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


def _noise(found: torch.Tensor, safe: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the noise of one model's activations, (n, D), and its direction without the length that noise adds, (D,)."""
    groups = found[:safe].double(), found[safe:].double()
    noise = [(group - group.mean(0)) * math.sqrt(len(group) / (len(group) - 1)) for group in groups]
    direction = groups[1].mean(0) - groups[0].mean(0)
    added = sum(float((part**2).sum()) / len(part) ** 2 for part in noise)
    square = float((direction**2).sum())
    return torch.cat(noise), direction * math.sqrt(max(square - added, 0.0) / square) if square else direction


@lru_cache(maxsize=1)  # every change of an audit has the same prompts
def _draws(safe: int, unsafe: int, seed: int, splits: int, rounds: int) -> np.ndarray:
    """Draws R data sets (prompts of each class with replacement, S splits): weights of both halves' directions, (2, R, S, n) float32."""
    rng = np.random.default_rng([seed, 1])
    harmful = np.repeat([False, True], [safe, unsafe])
    found = np.zeros((2, rounds, splits, safe + unsafe), dtype=np.float32)
    for r in range(rounds):
        prompts = np.concatenate([rng.integers(0, safe, safe), safe + rng.integers(0, unsafe, unsafe)])
        for s in range(splits):
            half = _half(harmful, rng)
            for side, among in enumerate((half, ~half)):
                np.add.at(found[side, r, s], prompts, _contrast(harmful, among))
    return found


def _weights(safe: int, unsafe: int, seed: int, splits: int) -> torch.Tensor:
    """Returns the weights that turn activations (n, D) into directions, (1 + 5 S, n): whole; halves; shuffled; halves of shuffled."""
    rng = np.random.default_rng(seed)
    harmful = np.repeat([False, True], [safe, unsafe])
    rows: list[list[np.ndarray]] = [[], [], [], [], []]
    for _ in range(splits):
        half, labels = _half(harmful, rng), rng.permutation(harmful)
        other = _half(labels, rng)
        made = (_contrast(harmful, half), _contrast(harmful, ~half), _contrast(labels), _contrast(labels, other), _contrast(labels, ~other))
        for kind, row in zip(rows, made, strict=True):
            kind.append(row)
    return torch.from_numpy(np.stack([_contrast(harmful), *(row for kind in rows for row in kind)]))


def _half(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws a random half of each class, as a mask (n,)."""
    chosen = np.zeros(len(labels), dtype=bool)
    for group in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        chosen[rng.permutation(group)[: len(group) // 2]] = True
    return chosen


def _contrast(labels: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Returns the weights (n,) that compute mean(labelled) - mean(the others), over the inputs `among`."""
    mask = np.ones(len(labels), dtype=bool) if among is None else among
    up, down = labels & mask, ~labels & mask
    found: np.ndarray = up / up.sum() - down / down.sum()
    return found


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(a.double(), b.double(), dim=-1)


def _angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Computes the angle in radians between vectors along the last dimension; exact for equal ones (an arc cosine is not)."""
    u, v = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (a, b))
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=-1), torch.linalg.vector_norm(u + v, dim=-1))
