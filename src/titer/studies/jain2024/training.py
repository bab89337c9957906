"""What happens over steps: dW while safety tuning runs, and how fast compliance is relearned. L7.

Source: arXiv 2407.10264, section 5.7 (training dynamics; relearning is ours: no code or figure of it was found).
"""

from __future__ import annotations

import pandas as pd
import torch

from titer.models.interpolate import Weights, cosine, distance, kept_weights, weights_of, with_weights
from titer.models.lm import LM, load
from titer.pipeline import Model
from titer.probes.base import stable_rank
from titer.studies.engine.declare import Seed
from titer.studies.jain2024.subject import CLASSES, requests_of
from titer.studies.judged import outcomes

VERSION = 1


def dynamics(lab: Seed, base: Model, model: Model) -> pd.DataFrame:
    """Follows a safety tuning; returns step, relative_norm, stable_rank (mean over MLP matrices), cosine (with the final change), rates."""
    lm, start, end = load(model.checkpoint), weights_of(load(base.checkpoint)), weights_of(load(model.checkpoint))
    steps = {step: kept_weights(_kept(model, step)) for step in lab.scale.kept if _kept(model, step).exists()}
    steps[lab.scale.align_steps] = end
    rows = []
    for step, weights in steps.items():
        change = {"cosine": cosine(weights, end, start, start), **_size(lm, start, weights)}
        rows.append({"step": step, **change, **_rates(lab, lm, weights)})
    return pd.DataFrame(rows)


def _kept(model: Model, step: int):  # type: ignore[no-untyped-def]
    return model.checkpoint.path.parent / f"step-{step}.safetensors"


def _size(lm: LM, start: Weights, weights: Weights) -> dict[str, float]:
    mlp = [name for name in start if lm.sites.part(name) == "mlp" and start[name].ndim == 2]
    change = {name: weights[name] - start[name] for name in mlp}
    ratio = torch.sqrt(sum((c**2).sum() for c in change.values()) / sum((start[name] ** 2).sum() for name in mlp))  # type: ignore[arg-type]
    ranks = [stable_rank(c) for c in change.values()]
    return {"relative_norm": float(ratio), "stable_rank": sum(ranks) / len(ranks)}


def _rates(lab: Seed, lm: LM, weights: Weights) -> dict[str, float]:
    with with_weights(lm, weights):
        found = outcomes(lm, requests_of(lab).judged(*CLASSES), lab.decoding)
    wanted = [("safe", "complied"), ("unsafe", "complied"), ("unsafe", "refused")]
    return {f"{kind}_{outcome}": float((found[found.kind == kind].outcome == outcome).mean()) for kind, outcome in wanted}


def relearning(lab: Seed, base: Model, tuned: Model, model: Model) -> pd.DataFrame:
    """Follows the relearning of `model`, the aligned model (step 0), to `tuned`, the relearned one. Returns step, distance ||theta_t -
    theta_ST||, cosine of that move with -dW, rates."""
    lm, start, aligned = load(tuned.checkpoint), weights_of(load(base.checkpoint)), weights_of(load(model.checkpoint))
    steps: dict[int, Weights] = {0: aligned}
    steps |= {step: kept_weights(_kept(tuned, step)) for step in lab.scale.relearn_kept if _kept(tuned, step).exists()}
    rows = []
    for step, weights in steps.items():
        back = cosine(weights, start, aligned, aligned)  # the move back is start - aligned = -dW
        rows.append({"step": step, "distance": distance(weights, aligned), "cosine": back, **_rates(lab, lm, weights)})
    return pd.DataFrame(rows)


def steps_to(table: pd.DataFrame, column: str, level: float) -> tuple[float, float]:
    """Returns the interval in which a column reaches `level`: (last judged step below it, first not below it), or (last step, infinity)."""
    above = table[table[column] >= level]
    if above.empty:
        return float(table.step.max()), float("inf")
    first = float(above.step.min())
    before = table[table.step < first].step
    return (float(before.max()) if len(before) else first), first
