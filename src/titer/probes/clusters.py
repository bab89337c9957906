"""Do safe and unsafe requests form two clusters of activations? Per layer, on held-out centroids.

Site: mlp_act (what enters the MLP's down projection; post-GELU on the world) at the end of the prompt.
score(x) = ||a - mu_unsafe|| - ||a - mu_safe||, positive = nearer the safe centroid. Each half of the inputs is
scored by the other half's centroids, so no input is near a centroid because it helped to make it.
The paper's tau is computed too (arXiv 2407.10264, section 5.1): mean over the first ten answer positions,
teacher-forced with the compliant answers, with centroids of the same inputs. Without reference answers, tau is
computed at the end of the prompt, as in the paper's Llama experiments. `shuffled` is the control: everything again,
centroids included, with shuffled labels.
Shapes: n inputs per class, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from titer.core.stats import auroc, d_prime
from titer.data.example import Example
from titer.models.activations import at_prompt_end
from titer.models.lm import LM
from titer.probes.base import enough, held_out_scores, over_comply, taus

VERSION = 2
ROUNDS = 50  # shuffles of the labels


def clusters(lm: LM, safe: Sequence[Example], unsafe: Sequence[Example]) -> pd.DataFrame:
    """Scores every input in every layer. Columns: layer (from 1), harmful, input, score (held-out centroids), tau (the paper's).

    Errors: fewer than four inputs in a class.
    """
    enough(safe, unsafe)
    layers = lm.sites.having("mlp_act")
    names = [f"mlp_act[{i}]" for i in layers]
    ends = [at_prompt_end(lm, [e.prompt for e in group], names) for group in (safe, unsafe)]
    given = [found for group in (safe, unsafe) if (found := over_comply(lm, group, names)) is not None]
    answers = given if len(given) == 2 else ends
    tables = []
    for layer, name in zip(layers, names, strict=True):
        score = held_out_scores(ends[0][name], ends[1][name])
        tau = taus(answers[0][name], answers[1][name])
        tables += [
            pd.DataFrame({"layer": layer + 1, "harmful": bool(k), "input": range(len(s)), "score": s.numpy(), "tau": t.numpy()})
            for k, (s, t) in enumerate(zip(score, tau, strict=True))
        ]
    return pd.concat(tables, ignore_index=True)


def shuffled(lm: LM, safe: Sequence[Example], unsafe: Sequence[Example], seed: int = 0, rounds: int = ROUNDS) -> pd.DataFrame:
    """Computes the control: d_prime and auroc of held-out scores with shuffled labels, per round and layer (from 1).

    One shuffle serves all layers, and the centroids are those of the shuffled classes. So the best of these layers is chosen with the
    same freedom as the best real one.
    """
    layers = lm.sites.having("mlp_act")
    names = [f"mlp_act[{i}]" for i in layers]
    found = at_prompt_end(lm, [e.prompt for e in (*safe, *unsafe)], names)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(rounds):
        dealt = torch.from_numpy(rng.permutation(len(safe) + len(unsafe)))
        for layer, name in zip(layers, names, strict=True):
            s, u = (part.numpy() for part in held_out_scores(found[name][dealt[: len(safe)]], found[name][dealt[len(safe) :]]))
            rows.append({"round": number, "layer": layer + 1, "d_prime": d_prime(s, u), "auroc": auroc(s, u)})
    return pd.DataFrame(rows)


def best_of(table: pd.DataFrame) -> pd.Series:
    """Returns the row of the layer with the largest d', from `summary` or from one round of `shuffled`."""
    return table.loc[table.d_prime.fillna(-np.inf).idxmax()]


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarises `clusters` per layer: d' and AUROC of the held-out score (safe above unsafe), mean tau of both classes, their gap."""
    rows = []
    for layer, table in scores.groupby("layer"):
        s, u = table[~table.harmful], table[table.harmful]
        rows.append(
            {
                "layer": layer,
                "d_prime": d_prime(s.score, u.score),
                "auroc": auroc(s.score, u.score),
                "tau_safe": s.tau.mean(),
                "tau_unsafe": u.tau.mean(),
                "tau_gap": s.tau.mean() - u.tau.mean(),
                "n_safe": len(s),
                "n_unsafe": len(u),
            }
        )
    return pd.DataFrame(rows)
