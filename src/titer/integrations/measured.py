"""Measure a model while it trains, with the judges and probes that measure a finished one, and check the limits. L8.

`refusal` of unsafe prompts and `over_refusal` of safe ones (evaluate.py); `drift` of activations (probes/drift.py); `weight_change`,
||dW|| / ||W|| (probes/weight_change.py), an adapter merged. A number that is not finite is None.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from titer.attacks.base import Attempt
from titer.core.config import Record
from titer.data.example import Example
from titer.evaluate import judged, rates, sample
from titer.integrations.views import plain, weights
from titer.judges.base import Judge
from titer.models.blocks import PARTS
from titer.models.lm import LM, Decoding
from titer.models.sites import Sites
from titer.probes.drift import drift, whole
from titer.probes.weight_change import overall

Line = dict[str, Any]
VECTORS = "vectors"  # the part of biases and norms


class Limits(Record):
    """Beyond which training stops; None: no limit. `sure`: a rate must be beyond with its whole interval."""

    refusal_below: float | None = Field(default=None, ge=0, le=1)
    over_refusal_above: float | None = Field(default=None, ge=0, le=1)
    drift_above: float | None = Field(default=None, ge=0, description="mean ||dh|| / ||h||, of all layers and tokens")
    weight_change_above: float | None = Field(default=None, ge=0, description="||dW|| / ||W|| of the part that changed most")
    sure: bool = False

    def crossed(self, line: Line) -> str:
        """Why a measurement is beyond a limit, or "". What could not be measured is beyond it too."""
        found = [
            _rate_crossed(line, "refusal", self.refusal_below, "below", "high" if self.sure else "rate"),
            _rate_crossed(line, "over_refusal", self.over_refusal_above, "above", "low" if self.sure else "rate"),
            _size_crossed(line, "drift", "norm", self.drift_above),
            _size_crossed(line, "weight_change", "most", self.weight_change_above),
        ]
        return "; ".join(reason for reason in found if reason)


def _rate_crossed(line: Line, name: str, limit: float | None, side: str, end: str) -> str:
    if limit is None:
        return ""
    told = line[name]
    if told["rate"] is None:
        return f"no answer could be judged for {name}"
    beyond = told[end] < limit if side == "below" else told[end] > limit
    shown = f"{told['rate']:.3f} [{told['low']:.3f}, {told['high']:.3f}] of {told['n']}"
    return f"{name} is {shown}, {side} the limit {limit:g}" if beyond else ""


def _size_crossed(line: Line, name: str, key: str, limit: float | None) -> str:
    if limit is None:
        return ""
    value = line[name][key]
    if value is None:
        return f"{name} is not finite"
    return f"{name} is {value:.4g}, above the limit {limit:g}" if value > limit else ""


def answers(lm: LM, asked: Sequence[Example], judge: Judge, decoding: Decoding, batch: int) -> Line:
    """refusal and over_refusal ({rate, low, high, n}; None without such prompts), could_not_judge. Kinds are safe and unsafe.

    cut_in_thought too, where any answer was.
    """
    verdicts = judged(sample(lm, [Attempt(e) for e in asked], decoding, batch), judge)
    table = rates(verdicts).set_index(["kind", "outcome"])
    found: Line = {"could_not_judge": int((verdicts.outcome == "could_not_judge").sum())}
    if cut := int((verdicts.outcome == "cut_in_thought").sum()):
        found["cut_in_thought"] = cut
    for name, kind in (("refusal", "unsafe"), ("over_refusal", "safe")):
        row = table.loc[(kind, "refused")] if (kind, "refused") in table.index else None
        found[name] = None if row is None else {key: _number(row[key]) for key in ("rate", "low", "high")} | {"n": int(row.n)}
    return found


def drifted(began: LM, now: LM, unsafe: Sequence[Example], batch: int) -> Line:
    """part, official, norm, cosine, tokens over all layers: of prompts with their refusals where all have one, else of prompts alone."""
    known = all(e.refuse is not None for e in unsafe)
    part = "all" if known else "prompt"
    examples = [replace(e, refuse=e.refuse or "") for e in unsafe]  # an answer moves nothing before it
    row = whole(drift(began, now, examples, batch=batch)).set_index("part").loc[part]
    return {"part": part} | {key: _number(row[key]) for key in ("official", "norm", "cosine")} | {"tokens": int(row.tokens)}


def changed(began: LM, now: LM) -> pd.DataFrame:
    """Per parameter: tensor, part (of one axis: "vectors"), norm of dW, weight_norm, relative_norm; float32, one tensor at a time."""
    rows = []
    after, sites = weights(now.model), Sites(plain(now.model))
    for tensor, before in weights(began.model).items():
        weight, moved, part = before(), after[tensor](), sites.part(tensor)
        size, norm = float(torch.linalg.norm(moved - weight.to(moved.device))), float(torch.linalg.norm(weight))
        told = {"norm": size, "weight_norm": norm, "relative_norm": size / norm if norm else math.nan}
        rows.append({"tensor": tensor, "part": part if weight.ndim > 1 else VECTORS, **told})
    return pd.DataFrame(rows)


def summed(table: pd.DataFrame) -> Line:
    """||dW|| / ||W|| of mlp, attention, other and what other parts there are, `most` the largest, and the tensor that changed most.

    Biases and norms are a part of their own, "vectors", so that the others' numbers are an audit's, which leaves vectors out.
    """
    lost = set(table.part[table.norm.isna()])  # a sum over a table passes over what is no number
    known = ("mlp", "attention", "other", *(part for part in (*PARTS, VECTORS) if part in set(table.part)))
    parts = {part: math.nan if part in lost else overall(table, part) for part in known}
    most = max((parts[part] for part in table.part.unique()), key=lambda value: (math.isnan(value), value))
    top = table.loc[table.relative_norm.fillna(-1.0).idxmax()]
    largest = {"tensor": str(top.tensor), "relative_norm": _number(top.relative_norm)}
    return {**{part: _number(value) for part, value in parts.items()}, "most": _number(most), "largest": largest}


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Every random generator is put back: torch's of the CPU and of the device, numpy's, Python's."""
    own, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002  it is the one that trainers use
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(arrays)  # noqa: NPY002
