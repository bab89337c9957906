"""Is the change in the left null space of the base weights, and does what was learned need that part? First MLP matrix, per layer.

A share in a subspace must be compared with the subspace's dimension. The null space that the paper uses (what the best approximation with
90 % of W_base's energy leaves out) is most of the space, so most of any random change is in it too. Two measures are new here. One is the
change of the pre-activations z = W a on given inputs, of which dW a is only a part. The other is the tuned model with only a part of dW
(its columns projected onto the null space, the column space, or random subspaces of as many dimensions); a study then judges that model's
answers. Source: arXiv 2407.10264, section 5.2 (figure 4); the two new measures are Titer's. Shapes: W (m, d), a (n, d), P (m, m).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd
import torch

from titer.data.draws import seed_of
from titer.data.example import Example
from titer.models.activations import at_prompt_end
from titer.models.checkpoint import Checkpoint
from titer.models.interpolate import weights_of
from titer.models.lm import LM
from titer.models.weights import changes_at
from titer.probes.base import column_space, null_share

VERSION = 2
ENERGY = 0.9
Part = Literal["none", "null", "column", "random as null", "random as column"]
PARTS: tuple[Part, ...] = ("none", "null", "column", "random as null", "random as column")


def subspaces(base: Checkpoint, tuned: Checkpoint, lms: Sequence[LM], examples: Sequence[Example]) -> pd.DataFrame:
    """Measures the shares in the null space, per layer: layer, of ("weights": dW; "inputs": the change of z at the ends of the prompts),
    share (in the null space), dimension (the null space's share of m).

    `lms`: base and tuned, loaded. Biases are left out of z. Errors: mixtures of experts, whose inputs are routed.
    """
    before, after = lms
    layers = after.sites.having("mlp_in", "mlp_up")
    a, b = (at_prompt_end(lm, [e.prompt for e in examples], [f"mlp_in[{i}]" for i in layers]) for lm in (before, after))
    rows = []
    for i in layers:
        ((weight, change),) = changes_at(base, tuned, after.sites, f"mlp_up[{i}]")
        kept = column_space(weight, ENERGY)
        moved = b[f"mlp_in[{i}]"] @ (weight + change).T - a[f"mlp_in[{i}]"] @ weight.T
        shares = {"weights": null_share(change, kept), "inputs": null_share(moved.T, kept)}
        dimension = 1 - kept.shape[1] / kept.shape[0]
        rows += [{"layer": i + 1, "of": of, "share": share, "dimension": dimension} for of, share in shares.items()]
    return pd.DataFrame(rows)


def with_part(lm: LM, base: Checkpoint, tuned: Checkpoint, part: Part, seed: int) -> Mapping[str, torch.Tensor]:
    """Returns the tuned model's weights with W_base + P dW as the first MLP matrix; P projects onto a subspace of the outputs ("none": 0).

    `lm`: the tuned model, loaded. A random subspace has as many dimensions as the null space, or as the column space.
    """
    weights = weights_of(lm)
    for i in lm.sites.having("mlp_up"):
        ((weight, change),) = changes_at(base, tuned, lm.sites, f"mlp_up[{i}]")
        kept = column_space(weight, ENERGY)
        made = weight + _projected(change, kept, part, seed_of(seed, "subspace", i))
        (site,) = lm.sites.weights(f"mlp_up[{i}]")
        name = site.tensor
        weights[name] = made if weights[name].shape == made.shape else made.T.contiguous()
    return weights


def _projected(change: torch.Tensor, kept: torch.Tensor, part: Part, seed: int) -> torch.Tensor:
    m, r = kept.shape
    if part == "none":
        return torch.zeros_like(change)
    if part == "column":
        return kept @ (kept.T @ change)
    if part == "null":
        return change - kept @ (kept.T @ change)
    size = m - r if part == "random as null" else r
    noise = torch.randn(m, size, generator=torch.Generator().manual_seed(seed), dtype=change.dtype)
    random = torch.linalg.qr(noise).Q
    return random @ (random.T @ change)
