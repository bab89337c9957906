"""Where does the change of the first MLP matrix act? dW = W_tuned - W_base of mlp_up, per layer.

Per input: gain ||dW a|| / ||a|| with a the tuned model's MLP input at the end of the prompt, and the share of
dW a that lies in the left null space of W_base. Per layer: the share of dW itself there, its relative norm and
stable rank. Each beside a random dW with the same singular values (control). The left null space is that of
the best approximation of W_base that keeps `energy` of its squared singular values.
Source: arXiv 2407.10264, sections 5.2 and 5.3 (figures 4 and 5). Shapes: W (m, d), a (n, d), A (m, r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from titer.data.draws import seed_of
from titer.data.example import Example
from titer.models.activations import at_prompt_end
from titer.models.checkpoint import Checkpoint
from titer.models.lm import LM
from titer.models.sites import Sites
from titer.models.weights import change_at
from titer.probes.base import column_space, null_share, random_like, stable_rank

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
    return at_inputs(base, tuned, lm.sites, found, seed=seed)


def at_inputs(
    base: Checkpoint, tuned: Checkpoint, sites: Sites, found: Sequence[Mapping[str, torch.Tensor]], kind: str = "mlp_up", seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same for the weights `kind` that read the MLP's input (mlp_up, mlp_gate), from the tuned model's activations.

    `found`: mlp_in[i] -> (n, D), of safe and of unsafe inputs.
    """
    inputs, layers = [], []
    for i in range(sites.layers):
        weight, change = change_at(base, tuned, sites, f"{kind}[{i}]")
        kept = column_space(weight, ENERGY)
        random = random_like(change, seed_of(seed, "delta_w", i))
        layers.append({"layer": i + 1, **_layer(weight, change, random, kept)})
        for harmful, group in enumerate(found):
            inputs.append(_inputs(i + 1, bool(harmful), group[f"mlp_in[{i}]"], change, random, kept))
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
