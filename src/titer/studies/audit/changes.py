"""What a tuning changed, from weights on disk and activations that were kept: no model is loaded. L6.

dW of the MLP's input matrices (up and gate apart): where it acts, and its share in the left null space, beside a random dW of
equal singular values; how far activations drifted, layer by layer; how far the refusal direction turned, beside what noise
alone would show. Sources: arXiv 2407.10264 (dW), 2402.01109 (drift), 2406.11717 (refusal direction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from titer.core.stats import bootstrap
from titer.models.sites import Sites
from titer.probes import delta_w, refusal_direction, weight_change
from titer.studies.audit import inside
from titer.studies.audit.roles import Change
from titer.studies.tables import gain_ratios
from titer.workbench import Workbench

READING = ("mlp_up", "mlp_gate")
DRIFTED = ("resid", "attn_out")


def kinds_of(sites: Sites) -> list[str]:
    """The weights that read the MLP's input in this architecture."""
    return [kind for kind in READING if kind != "mlp_gate" or sites.blocks[0].mlp_gate is not None]


def acting(bench: Workbench, change: Change, sites: Sites, ends: inside.Ends, safe: int, prompts: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(gains, layers): per weight and layer the gain of unsafe over safe inputs; the share of dW in the null space, norm, rank."""
    gains, layers = [], []
    found = [{name: t[:safe] for name, t in ends.items()}, {name: t[safe:] for name, t in ends.items()}]
    for kind in kinds_of(sites):
        inputs = {
            "probe": ["delta_w", delta_w.VERSION, kind],
            "models": [change.before.key, change.after.key],
            "prompts": prompts,
            "dtype": bench.dtype,
        }

        def make(kind: str = kind) -> pd.DataFrame:
            of_inputs, of_layers = delta_w.at_inputs(change.before.checkpoint, change.after.checkpoint, sites, found, kind)
            return gain_ratios(of_inputs).merge(of_layers, on="layer")

        table = bench.table("tables", inputs, make).assign(change=change.name, weight=kind)
        gains.append(table[["change", "weight", "layer", "ratio", "ratio_random"]])
        layers.append(table[["change", "weight", "layer", "null_share", "null_share_random", "relative_norm", "stable_rank"]])
    return pd.concat(gains, ignore_index=True), pd.concat(layers, ignore_index=True)


def sizes(bench: Workbench, change: Change, sites: Sites) -> pd.DataFrame:
    """part, relative_norm, tensors, changed: the size of the change in each part of the network, and how many matrices moved."""
    inputs = {"probe": ["weight_change", weight_change.VERSION], "models": [change.before.key, change.after.key]}
    whole = bench.table("tables", inputs, lambda: weight_change.weight_change(change.before.checkpoint, change.after.checkpoint, sites))
    rows = [
        {
            "change": change.name,
            "part": part,
            "relative_norm": weight_change.overall(whole, part),
            "tensors": int((whole.part == part).sum()),
            "changed": int(((whole.part == part) & (whole.norm > 0)).sum()),
            "stable_rank": whole[whole.part == part].stable_rank.median(),
        }
        for part in ("mlp", "attention", "other")
        if (whole.part == part).any()
    ]
    return pd.DataFrame(rows)


def drift(change: Change, before: inside.Ends, after: inside.Ends, safe: int) -> pd.DataFrame:
    """change, site, layer, kind, value (mean ||dh|| / ||h before||) with its bootstrap interval, cosine: at the prompts' ends."""
    rows = []
    for site in DRIFTED:
        layers = sum(name.startswith(f"{site}[") for name in before)
        for i in range(layers):
            old, new = before[f"{site}[{i}]"].double(), after[f"{site}[{i}]"].double()
            moved = (torch.linalg.vector_norm(new - old, dim=1) / torch.linalg.vector_norm(old, dim=1)).numpy()
            cosine = torch.cosine_similarity(old, new, dim=1).numpy()
            for kind, part in (("safe", slice(None, safe)), ("unsafe", slice(safe, None))):
                found = bootstrap(np.mean, [moved[part]], 0)
                rows.append(
                    {
                        "change": change.name,
                        "site": site,
                        "layer": i + 1,
                        "kind": kind,
                        "value": found.value,
                        "low": found.low,
                        "high": found.high,
                        "cosine": float(cosine[part].mean()),
                    }
                )
    return pd.DataFrame(rows)


def rotations(changes: Sequence[Change], found: Mapping[str, refusal_direction.RefusalDirections]) -> pd.DataFrame:
    """Per change and layer: how far the refusal direction turned, beside its ceiling."""
    tables = [refusal_direction.rotation(found[c.before.name], found[c.after.name]).assign(change=c.name) for c in changes]
    empty = pd.DataFrame(columns=["change", "layer", "degrees_halves", "degrees_ceiling"])
    return pd.concat(tables, ignore_index=True) if tables else empty
