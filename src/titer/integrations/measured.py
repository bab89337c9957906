"""Measure a model while it trains, with the same judges and probes as for a finished model, and check the limits. L8.

Measured are `refusal` of unsafe prompts and `over_refusal` of safe ones (evaluate.py), `drift` of activations (probes/drift.py), and
`weight_change`, ||dW|| / ||W|| with an adapter merged (probes/weight_change.py). A number that is not finite is None.
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
VECTORS = "vectors"  # the name of the part that holds biases and norms


class Limits(Record):
    """Limits at which training stops; None means no limit. With `sure`, a rate counts only if its whole interval is beyond the limit."""

    refusal_below: float | None = Field(default=None, ge=0, le=1)
    over_refusal_above: float | None = Field(default=None, ge=0, le=1)
    drift_above: float | None = Field(default=None, ge=0, description="mean ||dh|| / ||h||, of all layers and tokens")
    weight_change_above: float | None = Field(default=None, ge=0, description="||dW|| / ||W|| of the part that changed most")
    sure: bool = False

    def crossed(self, line: Line) -> str:
        """Returns why a measurement is beyond a limit, or "". A value that could not be measured counts as beyond its limit."""
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
    """Generates and judges the answers; returns refusal, over_refusal and could_not_judge. The examples' kinds are safe and unsafe.

    refusal and over_refusal are {rate, low, high, n}, or None without such prompts; could_not_judge is a count. cut_in_thought, the
    number of answers cut off within their thought, is there only if it is not 0.
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
    """Measures the drift of activations over all layers; returns part, official, norm, cosine and tokens.

    It is measured on the prompts with their refusals if every example has one ("all"), else on the prompts alone ("prompt").
    """
    known = all(e.refuse is not None for e in unsafe)
    part = "all" if known else "prompt"
    examples = [replace(e, refuse=e.refuse or "") for e in unsafe]  # an answer does not change the activations before it
    row = whole(drift(began, now, examples, batch=batch)).set_index("part").loc[part]
    return {"part": part} | {key: _number(row[key]) for key in ("official", "norm", "cosine")} | {"tokens": int(row.tokens)}


def changed(began: LM, now: LM) -> pd.DataFrame:
    """Measures the weight change of each parameter, in float32 and one tensor at a time.

    Columns: tensor, part ("vectors" for a tensor with one axis), norm (of dW), weight_norm, relative_norm.
    """
    rows = []
    after, sites = weights(now.model), Sites(plain(now.model))
    for tensor, before in weights(began.model).items():
        weight, moved, part = before(), after[tensor](), sites.part(tensor)
        size, norm = float(torch.linalg.norm(moved - weight.to(moved.device))), float(torch.linalg.norm(weight))
        told = {"norm": size, "weight_norm": norm, "relative_norm": size / norm if norm else math.nan}
        rows.append({"tensor": tensor, "part": part if weight.ndim > 1 else VECTORS, **told})
    return pd.DataFrame(rows)


def summed(table: pd.DataFrame) -> Line:
    """Returns ||dW|| / ||W|| of each part (mlp, attention, other ...), the largest of them (`most`) and the tensor that changed most.

    Biases and norms are a part of their own, "vectors". An audit leaves them out, so the other parts' numbers equal an audit's.
    """
    lost = set(table.part[table.norm.isna()])  # a sum over a table skips NaN, so such parts are marked here
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
    """Restores every random generator at the end: torch's on the CPU and on the device, numpy's and Python's."""
    own, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002  trainers use this generator
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(arrays)  # noqa: NPY002
