"""The refusal direction of each layer: mean activation of harmful prompts minus that of harmless ones; how far tuning rotated it.

Site: the residual stream after each block, at the prompt's last token. Source: arXiv 2406.11717, section 2.3 (difference in means; its
steering and ablation are not measured here). A direction is an estimate from few prompts, so beside it stand the
cosine between directions of disjoint halves (mean over random splits of each class, and what Spearman and Brown's formula makes of it for
the whole sets), and the same with shuffled labels, whose norm is what chance gives. Between two models: the cosine per
layer, and that between disjoint halves with its ceiling sqrt(split-half a * split-half b), the most that noise allows.
Layers count from 1. Shapes: n prompts, S splits, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from titer.core.config import digest
from titer.core.errors import TiterError
from titer.data.example import Example
from titer.models.activations import at_prompt_end
from titer.models.lm import LM

VERSION = 1
SPLITS = 20


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
    """The directions of one model, of the whole sets, of random halves and with shuffled labels.

    Errors: fewer than four prompts in a class.
    """
    for name, examples in (("safe", safe), ("unsafe", unsafe)):
        if len(examples) < 4:
            raise TiterError(f"{len(examples)} {name} prompts", expected="at least 4 of each class for two halves of a direction")
    names = [f"resid[{i}]" for i in range(lm.sites.layers)]
    prompts = [e.prompt for e in (*safe, *unsafe)]
    found = at_prompt_end(lm, prompts, names)
    return of_activations([found[name] for name in names], len(safe), digest(prompts), seed, splits)


def of_activations(found: Sequence[torch.Tensor], safe: int, prompts: str, seed: int = 0, splits: int = SPLITS) -> RefusalDirections:
    """The same from activations at hand: per layer (n, D), the first `safe` of harmless prompts; `prompts` is the prompts' key."""
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
    """Per layer the columns of `summary`. Errors as `measured`'s."""
    return summary(measured(lm, safe, unsafe, seed))


def summary(found: RefusalDirections) -> pd.DataFrame:
    """Per layer: norm, relative (to the mean activation's), split_half with the spread over splits (low, high: the middle 95 %),
    reliability (of the whole sets), norm_shuffled and norm_shuffled_high (95th percentile), split_half_shuffled, n_safe, n_unsafe."""
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
    """Per layer: cosine and degrees between two models' directions, norm_ratio (after / before); cosine_halves between disjoint halves,
    its ceiling, and degrees_ceiling: what noise alone would show. A model and itself give exactly 1 and 0 degrees.

    Errors: directions of other prompts or splits; models of other layers or widths.
    """
    if before.prompts != after.prompts:
        raise TiterError("two refusal directions of different prompts or splits", expected="both measured on the same prompts and seed")
    if before.whole.shape != after.whole.shape:
        sizes = " and ".join(f"{m.whole.shape[0]} layers of width {m.whole.shape[1]}" for m in (before, after))
        raise TiterError(f"refusal directions of {sizes}", expected="a model and what was tuned from it")
    angle = _angle(before.whole, after.whole)
    across = (_cosine(before.halves[0], after.halves[1]) + _cosine(before.halves[1], after.halves[0])).mean(0) / 2
    within = [_cosine(m.halves[0], m.halves[1]).mean(0).clamp(min=0) for m in (before, after)]
    ceiling = (within[0] * within[1]).sqrt()
    return pd.DataFrame(
        {
            "layer": range(1, len(angle) + 1),
            "cosine": torch.cos(angle).numpy(),
            "degrees": torch.rad2deg(angle).numpy(),
            "norm_ratio": (torch.linalg.vector_norm(after.whole, dim=-1) / torch.linalg.vector_norm(before.whole, dim=-1)).numpy(),
            "cosine_halves": across.numpy(),
            "ceiling": ceiling.numpy(),
            "degrees_halves": torch.rad2deg(torch.arccos(across.clamp(-1, 1))).numpy(),
            "degrees_ceiling": torch.rad2deg(torch.arccos(ceiling.clamp(max=1))).numpy(),
        }
    )


def _weights(safe: int, unsafe: int, seed: int, splits: int) -> torch.Tensor:
    """What turns activations (n, D) into directions, (1 + 5 S, n): whole; halves; shuffled; halves of the shuffled."""
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
    """A random half of each class."""
    chosen = np.zeros(len(labels), dtype=bool)
    for group in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        chosen[rng.permutation(group)[: len(group) // 2]] = True
    return chosen


def _contrast(labels: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Weights of mean(labelled) - mean(the others), over the inputs `among`."""
    mask = np.ones(len(labels), dtype=bool) if among is None else among
    up, down = labels & mask, ~labels & mask
    found: np.ndarray = up / up.sum() - down / down.sum()
    return found


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(a.double(), b.double(), dim=-1)


def _angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Angle in radians between vectors along the last dimension, exact where they are equal (an arc cosine is not)."""
    u, v = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (a, b))
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=-1), torch.linalg.vector_norm(u + v, dim=-1))
