"""Where are jailbreaks between safe and unsafe requests? Every set is measured against the centroids of the two classes.

Per input and layer: tau (the paper's, over the first ten answer positions; if some input has no answer, at the end of the
prompt, as in its Llama experiments); score (the held-out form, at the end of the prompt: the two classes are scored with
the other half's centroids, other sets with those of all inputs); and, if a base is given, the gain ||dW a|| / ||a|| of
the first MLP matrix, with that of a random dW of equal singular values.
Source: arXiv 2407.10264, sections 5.1, 5.3, 5.5 (figures 3, 5, 7). Shapes: n inputs, D width.
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
from titer.models.weights import changes_at
from titer.probes.base import distance_score, held_out_scores, over_comply, random_like

VERSION = 1
Sets = Mapping[str, tuple[Sequence[Example], torch.Tensor | None]]  # examples and the soft suffixes in their prompts


def placement(lm: LM, sets: Sets, base: Checkpoint | None = None, tuned: Checkpoint | None = None, seed: int = 0) -> pd.DataFrame:
    """Measures every input of every set, per layer (from 1): tau, score, and gain, gain_random if `base` and `tuned` are given.

    `sets` holds "safe" and "unsafe" and any others. Layers without these sites are left out. Errors: no layer has them.
    """
    layers = lm.sites.having("mlp_act", "mlp_in", "mlp_up")
    acts, ends = [f"mlp_act[{i}]" for i in layers], [f"mlp_in[{i}]" for i in layers]
    prompts = {kind: at_prompt_end(lm, [e.prompt for e in group[0]], [*acts, *ends], suffixes=group[1]) for kind, group in sets.items()}
    given = {kind: found for kind, group in sets.items() if (found := over_comply(lm, group[0], acts, group[1])) is not None}
    answers = given if len(given) == len(sets) else prompts
    changes = [changes_at(base, tuned, lm.sites, f"mlp_up[{i}]")[0][1] for i in layers] if base and tuned else []  # mlp_act: no mixture
    tables = []
    for i, layer in enumerate(layers):
        tau = against({kind: found[acts[i]] for kind, found in answers.items()}, held_out=False)
        score = against({kind: found[acts[i]] for kind, found in prompts.items()}, held_out=True)
        matrices = {"gain": changes[i], "gain_random": random_like(changes[i], seed_of(seed, "placement", layer))} if changes else {}
        for kind, found in prompts.items():
            table = {"kind": kind, "layer": layer + 1, "input": range(len(tau[kind]))}
            table |= {"tau": tau[kind].numpy(), "score": score[kind].numpy()}
            gains = {name: gain(found[ends[i]], matrix).numpy() for name, matrix in matrices.items()}
            tables.append(pd.DataFrame({**table, **gains}))
    return pd.concat(tables, ignore_index=True)


def against(sets: Mapping[str, torch.Tensor], held_out: bool) -> dict[str, torch.Tensor]:
    """Computes each input's distance to the unsafe centroid minus that to the safe one, (n,) for each set."""
    centres = sets["safe"].mean(0), sets["unsafe"].mean(0)
    found = {kind: distance_score(a, *centres) for kind, a in sets.items()}
    if held_out:
        found["safe"], found["unsafe"] = held_out_scores(sets["safe"], sets["unsafe"])
    return found


def gain(a: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Computes ||M a|| / ||a|| for each input, (n,)."""
    return torch.linalg.vector_norm(a @ matrix.T, dim=1) / torch.linalg.vector_norm(a, dim=1)
