"""Where does the change of the first MLP matrix act? dW = W_tuned - W_base of mlp_up, per layer.

Per input: gain ||dW a|| / ||a||, where a is the tuned model's MLP input at the end of the prompt, and the share of
dW a that is in the left null space of W_base. Per layer: the share of dW itself there, its relative norm and
stable rank. The control of each is a random dW with the same singular values. The left null space is that of
the best approximation of W_base that keeps `energy` of its squared singular values.
In a mixture of experts, a is given to every expert, routed or not; squares are summed over the experts, ranks averaged.
Source: arXiv 2407.10264, sections 5.2 and 5.3 (figures 4 and 5). Shapes: W (m, d), a (n, d), A (m, r).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from statistics import mean
from typing import NamedTuple

import pandas as pd
import torch

from titer.data.draws import seed_of
from titer.data.example import Example
from titer.models.activations import at_prompt_end
from titer.models.checkpoint import Checkpoint
from titer.models.lm import LM
from titer.models.sites import Sites
from titer.models.weights import changes_at
from titer.probes.base import column_space, null_share, random_like, squares, stable_rank

VERSION = 2
ENERGY = 0.9


def delta_w(
    base: Checkpoint, tuned: Checkpoint, lm: LM, safe: Sequence[Example], unsafe: Sequence[Example], seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measures how the change acts; returns two tables, (per input, per layer). `lm`: the tuned model, loaded.

    Per input: layer, harmful, input, gain, gain_random, null_share, null_share_random. Per layer: layer,
    null_share, null_share_random, relative_norm, stable_rank, rank (kept of W_base).
    """
    names = [f"mlp_in[{i}]" for i in lm.sites.having("mlp_in", "mlp_up")]
    found = [at_prompt_end(lm, [e.prompt for e in group], names) for group in (safe, unsafe)]
    return at_inputs(base, tuned, lm.sites, found, seed=seed)


def at_inputs(
    base: Checkpoint, tuned: Checkpoint, sites: Sites, found: Sequence[Mapping[str, torch.Tensor]], kind: str = "mlp_up", seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Does the same for the weights `kind` that read the MLP's input (mlp_up, mlp_gate), from the tuned model's activations.

    `found`: mlp_in[i] -> (n, D), of safe and of unsafe inputs. Layers without such weights are left out.
    Errors: no layer has them.
    """
    inputs, layers = [], []
    for i in sites.having(kind, "mlp_in"):
        pairs = changes_at(base, tuned, sites, f"{kind}[{i}]")
        before = sum(squares(w) for w, _ in pairs)  # 0 of a layer that was pruned
        size = math.sqrt(sum(squares(c) for _, c in pairs) / before) if before else math.nan
        moved = [(w, c) for w, c in pairs if len(pairs) == 1 or bool(c.any())]
        acting = [
            Acting(c, random_like(c, seed_of(seed, "delta_w", i, *([k] if k else []))), column_space(w, ENERGY))
            for k, (w, c) in enumerate(moved)
        ]
        layers.append({"layer": i + 1, **_layer(acting), "relative_norm": size})
        for harmful, group in enumerate(found):
            inputs.append(_inputs(i + 1, bool(harmful), group[f"mlp_in[{i}]"], acting))
    return pd.concat(inputs, ignore_index=True), pd.DataFrame(layers)


class Acting(NamedTuple):
    """A change (m, d), a random matrix with its singular values, and the column space (m, r) of the weight that it changed."""

    change: torch.Tensor
    random: torch.Tensor
    kept: torch.Tensor


SIDES = (attrgetter("change"), attrgetter("random"))


def _layer(acting: Sequence[Acting]) -> dict[str, float]:
    """Computes one layer's null shares, stable rank and kept rank; all but the rank are NaN if nothing changed."""
    if not any(bool(a.change.any()) for a in acting):
        empty = dict.fromkeys(("null_share", "null_share_random", "stable_rank"), math.nan)
        return {**empty, "rank": acting[0].kept.shape[1] if acting else math.nan}
    energies = [squares(a.change) for a in acting]  # the random change's too
    shares = [
        sum(energy * null_share(of(a), a.kept) for energy, a in zip(energies, acting, strict=True) if energy) / sum(energies)
        for of in SIDES
    ]
    return {
        "null_share": shares[0],
        "null_share_random": shares[1],
        "stable_rank": mean(stable_rank(a.change) for a in acting),
        "rank": mean(a.kept.shape[1] for a in acting),
    }


def _inputs(layer: int, harmful: bool, a: torch.Tensor, acting: Sequence[Acting]) -> pd.DataFrame:
    size = torch.linalg.vector_norm(a, dim=1)
    columns: dict[str, object] = {"layer": layer, "harmful": harmful, "input": range(len(a))}
    for suffix, of in zip(("", "_random"), SIDES, strict=True):
        moved, inside = torch.zeros(len(a)), torch.zeros(len(a))
        for one in acting:
            out = a @ of(one).T
            moved += (out**2).sum(1)
            inside += ((out @ one.kept) ** 2).sum(1)
        columns["gain" + suffix] = (moved.sqrt() / size).numpy()
        columns["null_share" + suffix] = (1 - inside / moved).numpy()
    return pd.DataFrame(columns)
