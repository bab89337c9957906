"""Golden numbers of a one-minute setting: a change in world, training, methods or probes shows here first.

Where results are meant to change: `python -m tests.studies.jain2024.golden` writes them again; say why in the commit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from tests.studies.jain2024.conftest import small_study
from titer.probes.weight_change import overall
from titer.studies.engine.found import Found
from titer.studies.jain2024.figures import null_means

FILE = Path(__file__).with_name("golden.json")
MODELS = ("ssft M", "dpo M", "unlearn M", "ssft S", "ssft-half M", "dpo-sum M", "benign M", "sham dpo M")


def numbers(e: Found) -> dict[str, float]:
    """Smooth statistics of every part."""
    t = e.tables
    found: dict[str, float] = {}
    for model in MODELS:
        for kind in ("safe", "unsafe", "jb_co_text"):
            found[f"tau {model} {kind}"] = float(e.last("placement", "tau", model=model, kind=kind).mean())
            found[f"gain {model} {kind}"] = float(e.last("placement", "gain", model=model, kind=kind).mean())
        found[f"change {model}"] = overall(t["change"][t["change"].model == model], "mlp")
        g = t["sensitivity"]
        found[f"g {model}"] = float(g[(g.model == model) & (g.kind == "unsafe")].g.median())
    null = null_means(e)
    found["null space"] = float(null[null.model == "dpo M"].value.mean())
    spread = t["spread"]
    found["top share"] = float(spread[spread.model == "unlearn M"].top_share.mean())
    found["row space"] = float(t["rows"].score.mean())
    found["relearning distance"] = float(t["relearn"].distance.max())
    found["dynamics"] = float(t["dynamics"].cosine.mean())
    found["soft tau"] = float(t["soft_placed"][t["soft_placed"].kind == "soft_8"].tau.mean())
    found["swept tau"] = float(t["alpha"].tau_safe.mean())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(numbers(small_study(Path(folder)).found), indent=1) + "\n", encoding="utf-8")
