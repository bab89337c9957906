"""Measures what a tuning changed, from weights on disk and stored activations: no model is loaded. L7.

It measures which inputs the weight change dW of the MLP's input matrices (up and gate separately) acts on, and dW's share in the left null
space, compared with a random dW of equal singular values; how far activations drifted, layer by layer; how far the refusal direction
turned, compared with what noise alone would show. Sources: arXiv 2407.10264 (dW), 2402.01109 (drift), 2406.11717 (refusal direction).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from titer.audit import inside
from titer.audit.roles import Change
from titer.core.stats import Interval, bootstrap
from titer.models.blocks import PARTS
from titer.models.sites import Sites, layer_of
from titer.models.weights import compared, delta
from titer.pipeline import Pipeline
from titer.probes import delta_w, refusal_direction, weight_change
from titer.probes.base import squares
from titer.tables import gain_ratios

READING = ("mlp_up", "mlp_gate")
DRIFTED = ("resid", "attn_out")
KNOWN = 60.0  # degrees: a direction is mostly noise if two halves of the prompts give directions further apart than this


def kinds_of(sites: Sites) -> list[str]:
    """Returns the kinds of weights that read the MLP's input in this architecture. Errors: there are none, or they read no common input."""
    sites.having("mlp_in", "mlp_up")
    return [kind for kind in READING if sites.lacks(kind) != sites.layers]


def acting(
    pipeline: Pipeline, change: Change, sites: Sites, ends: inside.Ends, safe: int, prompts: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measures which inputs the weight change dW acts on. Returns two tables, gains and layers, with a row per weight and layer.

    gains: dW's gain on unsafe inputs divided by that on safe ones, and `mean`, the mean over layers, with its bootstrap interval over
    prompts and the mean of a random dW (`mean_random`). layers: dW's share in the left null space, its norm and stable rank.
    """
    gains, layers = [], []
    found = [{name: t[:safe] for name, t in ends.items()}, {name: t[safe:] for name, t in ends.items()}]
    for kind in kinds_of(sites):
        inputs = {
            "probe": ["delta_w", delta_w.VERSION, kind, "means"],
            "models": [change.before.key, change.after.key],
            "prompts": prompts,
            "dtype": pipeline.dtype,
        }

        def make(kind: str = kind) -> pd.DataFrame:
            of_inputs, of_layers = delta_w.at_inputs(change.before.checkpoint, change.after.checkpoint, sites, found, kind)
            ratios = gain_ratios(of_inputs)
            own = overall(of_inputs)
            means = {"mean": own.value, "mean_low": own.low, "mean_high": own.high, "mean_random": ratios.ratio_random.mean()}
            return ratios.assign(**means).merge(of_layers, on="layer")

        table = pipeline.table("tables", inputs, make).assign(change=change.name, weight=kind)
        gains.append(table[["change", "weight", "layer", "ratio", "ratio_random", "mean", "mean_low", "mean_high", "mean_random"]])
        layers.append(table[["change", "weight", "layer", "null_share", "null_share_random", "relative_norm", "stable_rank"]])
    return pd.concat(gains, ignore_index=True), pd.concat(layers, ignore_index=True)


def overall(per_input: pd.DataFrame) -> Interval:
    """Returns the gain on unsafe inputs divided by that on safe ones: the mean over changed layers, with its interval over prompts; NaN if
    no layer changed."""
    unsafe, safe = (
        per_input[per_input.harmful == harmful].pivot(index="input", columns="layer", values="gain").to_numpy() for harmful in (True, False)
    )
    moved = safe.mean(0) > 0
    if not moved.any():
        return Interval(np.nan, np.nan, np.nan)
    return bootstrap(lambda u, s: float((u.mean(0) / s.mean(0)).mean()), [unsafe[:, moved], safe[:, moved]], 0)


def sizes(pipeline: Pipeline, change: Change, sites: Sites) -> pd.DataFrame:
    """Measures the size of the change in each part of the network. Columns: change, part, relative_norm, tensors (matrices or stacks of
    them; for the part "vectors", vectors), changed (how many of these moved), stable_rank (median)."""
    inputs = {"probe": ["weight_change and vectors", weight_change.VERSION], "models": [change.before.key, change.after.key]}
    whole = pipeline.table(
        "tables", inputs, lambda: weight_change.weight_change(change.before.checkpoint, change.after.checkpoint, sites, True)
    )
    rows = [
        {
            "change": change.name,
            "part": part,
            "relative_norm": weight_change.overall(whole, part),
            "tensors": int((whole.part == part).sum()),
            "changed": int(((whole.part == part) & (whole.norm > 0)).sum()),
            "stable_rank": whole[whole.part == part].stable_rank.median(),
        }
        for part in PARTS
        if (whole.part == part).any()
    ]
    return pd.DataFrame(rows)


def gone_back(pipeline: Pipeline, first: Change, last: Change) -> pd.DataFrame:
    """Measures whether the last change takes the first one back. One tensor is read at a time.

    Returns one row: change; tensors, how many of them both changes moved; returned, how many of these are again, bit for bit, as before
    the first change; cosine, between the last change and the reverse of the first, over the tensors that the last one moved (NaN if the
    first moved none of these). A step back, whole or partial, has cosine 1; a further tune is near 0.
    """
    before, tuned, after = (model.checkpoint for model in (first.before, first.after, last.after))

    def make() -> pd.DataFrame:
        tensors, returned, inner, one, other = 0, 0, 0.0, 0.0, 0.0
        for name in sorted(set(compared(before, tuned)) & {before.called(one) for one in compared(tuned, after)}):
            taught, moved = delta(before, tuned, name)[1].double(), delta(tuned, after, name)[1].double()
            if taught.shape == moved.shape and bool(moved.any()):
                tensors += int(taught.any())
                returned += int(taught.any() and torch.equal(before.weight(name), after.weight(name)))
                inner, one, other = inner - float((taught * moved).sum()), one + squares(taught), other + squares(moved)
        return pd.DataFrame([{"tensors": tensors, "returned": returned, "cosine": inner / (one * other) ** 0.5 if one else np.nan}])

    inputs = {"probe": ["gone back", 1], "models": [first.before.key, first.after.key, last.after.key]}
    return pipeline.table("tables", inputs, make).assign(change=last.name)


def drift(change: Change, before: inside.Ends, after: inside.Ends, safe: int) -> pd.DataFrame:
    """Measures how far the activations h at the ends of the prompts moved. Columns: change, site, layer, kind, value (mean
    ||dh|| / ||h before||) with its bootstrap interval (low, high), cosine (mean, of h before with h after)."""
    rows = []
    for site in DRIFTED:
        for i in sorted(layer_of(name) for name in before if name.startswith(f"{site}[")):
            old, new = before[f"{site}[{i}]"].double(), after[f"{site}[{i}]"].double()
            moved = (torch.linalg.vector_norm(new - old, dim=1) / torch.linalg.vector_norm(old, dim=1)).numpy()
            cosine = torch.cosine_similarity(old, new, dim=1).numpy()
            for kind, part in (("safe", slice(None, safe)), ("unsafe", slice(safe, None))):
                names = {"change": change.name, "site": site, "layer": i + 1, "kind": kind}
                interval = bootstrap(np.mean, [moved[part]], 0)._asdict()
                rows.append({**names, **interval, "cosine": float(cosine[part].mean())})
    return pd.DataFrame(rows)


def rotation(
    pipeline: Pipeline, change: Change, found: Sequence[refusal_direction.RefusalDirections], ends: Sequence[inside.Ends], safe: int
) -> pd.DataFrame:
    """Measures, layer by layer, how far the refusal direction turned, what noise alone would show (the ceiling), a limit, and the verdict
    (`turned`: above the limit). Noise stays below the limit in all layers at once, apart from those whose direction is mostly noise.

    `found`, `ends`: the directions and the activations, each of the model before and the model after.
    """
    inputs = {
        "probe": ["turned", refusal_direction.VERSION, refusal_direction.ROUNDS],
        "models": [change.before.key, change.after.key],
        "prompts": found[0].prompts,
        "dtype": pipeline.dtype,
    }

    def make() -> pd.DataFrame:
        names = [f"resid[{i}]" for i in range(sum(name.startswith("resid[") for name in ends[0]))]
        before, after = ([side[name] for name in names] for side in ends)
        return pd.DataFrame(refusal_direction.unturned(before, after, safe), columns=[str(i) for i in range(len(names))])

    table = refusal_direction.rotation(*found)
    null = pipeline.table("tables", inputs, make).to_numpy(dtype=float)
    table = refusal_direction.limits(table, null, (table.degrees_ceiling < KNOWN).tolist())
    return table.assign(turned=table.degrees_halves > table.degrees_limit, change=change.name)
