"""Which inputs does the change read? Scores along the right singular vectors of dW of the first MLP matrix.

In a mixture of experts, dW is that of all experts stacked, because they read the same input.
score_j(x) = sigma_j |<a(x), v_j>| / ||a(x)||, a the tuned model's MLP input at the end of the prompt.
Source: arXiv 2407.10264, section 5.3 (figure 5: the first 15 directions). Shapes: dW (m, d), a (n, d).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from titer.data.example import Example
from titer.models.activations import at_prompt_end
from titer.models.checkpoint import Checkpoint
from titer.models.lm import LM
from titer.models.weights import changes_at
from titer.probes.base import thin_svd

VERSION = 2
DIRECTIONS = 15


def row_space(base: Checkpoint, tuned: Checkpoint, lm: LM, sets: Mapping[str, Sequence[Example]]) -> pd.DataFrame:
    """Measures each set per layer (from 1) and direction (from 1): mean score, sigma. `lm`: the tuned model, loaded."""
    layers = lm.sites.having("mlp_in", "mlp_up")
    names = [f"mlp_in[{i}]" for i in layers]
    found = {kind: at_prompt_end(lm, [e.prompt for e in examples], names) for kind, examples in sets.items()}
    rows = []
    for i, name in zip(layers, names, strict=True):
        changes = [change for _, change in changes_at(base, tuned, lm.sites, f"mlp_up[{i}]")]
        _, sizes, right = thin_svd(torch.cat(changes))
        for kind, activations in found.items():
            mean = scores(activations[name], sizes, right).mean(0)
            table = {"kind": kind, "layer": i + 1, "direction": range(1, len(mean) + 1), "score": mean.numpy()}
            rows.append(pd.DataFrame({**table, "sigma": sizes[: len(mean)].numpy()}))
    return pd.concat(rows, ignore_index=True)


def scores(a: torch.Tensor, sizes: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Computes sigma_j |<a, v_j>| / ||a|| for each input and each of the first directions, (n, at most 15)."""
    along = a @ right[:, :DIRECTIONS]
    return along.abs() * sizes[:DIRECTIONS] / torch.linalg.vector_norm(a, dim=1, keepdim=True)
