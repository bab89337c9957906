"""The shape of each class's cloud of activations: is the unsafe one of low rank, and would k-means find the two?

From the centred matrix of each class, per layer:
top_share sigma_1 / sum sigma and top_energy sigma_1^2 / sum sigma^2 (the paper's choice is not known), stable rank, and
the number of components that hold 90 % of the covariance's energy; k-means with two centres against the classes
(share of inputs in the right cluster, 0.5 is chance). Source: arXiv 2407.10264, section 5.1 and appendix.
Site: mlp_act over the first ten answer positions where there are answers, else at the end of the prompt. (n, D)
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from scipy.cluster.vq import kmeans2

from titer.data.example import Example
from titer.models.activations import at_prompt_end
from titer.models.lm import LM
from titer.probes.base import over_comply, rank_at, stable_rank

VERSION = 1


def spread(lm: LM, safe: Sequence[Example], unsafe: Sequence[Example], seed: int = 0) -> pd.DataFrame:
    """Measures each class's cloud per layer (from 1): top_share, top_energy, stable_rank, components_90, kmeans (one value a layer)."""
    layers = lm.sites.having("mlp_act")
    names = [f"mlp_act[{i}]" for i in layers]
    given = [found for group in (safe, unsafe) if (found := over_comply(lm, group, names)) is not None]
    clouds = given if len(given) == 2 else [at_prompt_end(lm, [e.prompt for e in group], names) for group in (safe, unsafe)]
    rows = []
    for layer, name in zip(layers, names, strict=True):
        agreement = two_means(clouds[0][name], clouds[1][name], seed)
        rows += [
            {"layer": layer + 1, "harmful": bool(harmful), **shape_of(cloud[name]), "kmeans": agreement}
            for harmful, cloud in enumerate(clouds)
        ]
    return pd.DataFrame(rows)


def shape_of(cloud: torch.Tensor) -> dict[str, float]:
    """Computes a class's shares of the leading direction, stable rank and components at 90 %, of its centred activations (n, D)."""
    centred = cloud - cloud.mean(0)
    values = torch.linalg.svdvals(centred)
    return {
        "top_share": float(values[0] / values.sum()),
        "top_energy": float(values[0] ** 2 / (values**2).sum()),
        "stable_rank": stable_rank(centred),
        "components_90": rank_at(values, 0.9),
    }


def two_means(safe: torch.Tensor, unsafe: torch.Tensor, seed: int) -> float:
    """Returns the share of inputs whose k-means cluster (k = 2, best matching) is that of their class, in [0.5, 1]."""
    both = torch.cat([safe, unsafe]).double().numpy()
    _, found = kmeans2(both, 2, minit="++", rng=seed, iter=50)
    right = (found[: len(safe)] == 0).sum() + (found[len(safe) :] == 1).sum()
    return float(max(right, len(both) - right) / len(both))
