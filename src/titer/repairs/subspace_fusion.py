"""SOMF: keep only those coordinates of a tuning's change that do not hurt safety, by a learned mask.

theta = theta_0 + merge_i(m * d_i / mean(m)). theta_0 is the aligned model and d_i = theta_i - theta_0 the change of each of one or
several tunes of it. All tunes share one mask m; its mean is taken in each parameter.
- Training: m is a Concrete sample, m = sigmoid((phi + logit u) / T) with u uniform in (0, 1). Only its logits phi are trained, from 0, by
  DPO on pairs whose preferred answer is the safe one. The reference is the aligned model; its log-probabilities are computed once.
- `export`, the mask that is written: phi >= 0 (hard), sigmoid(phi) (soft), or one more sample, drawn by the seed, > 1/2 (sample, as in
  the official code).
- `merge`: weight * sum d_i (arithmetic); the `top` share of each parameter's coordinates, and of these only those with the sign of their
  sum (ties); or each change with a share `drop` dropped and the rest rescaled (dare).
Gradients go through torch.func.functional_call; the loaded model is never changed.
Source: arXiv 2405.09055 and its code; DPO: 2305.18290, equation 7; TIES: 2306.01708; DARE: 2311.03099. What differs: docs/deviations.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch.func import functional_call
from torch.nn import functional

from titer.core.errors import TiterError
from titer.data.draws import permutation, seed_of
from titer.data.example import Batch
from titer.data.shapes import Need
from titer.models.edits import cut, dropped, kept
from titer.models.likelihood import pair_nll
from titer.models.lm import LM
from titer.repairs.base import TUNED, Reading, Repair, State

COLLAPSED = 0.01  # a mask that leaves less than this share of the change is an error
Tensors = dict[str, torch.Tensor]


class SubspaceFusion(Repair):
    """Learns a mask over the tuning's change; the settings say how it is learned and written, and how several tunes are merged."""

    MODELS = ("aligned",)
    OPTIONAL = ("second", "third", "fourth")
    DATA: ClassVar[Mapping[str, Need]] = {"pairs": "pairs"}
    HOLDS = 7  # the aligned model, the change, logits, their gradient and two moments, the masked weights
    SOURCE = "arXiv 2405.09055 (SOMF)"
    VERSION = 1
    NEUTRAL: ClassVar[dict[str, int]] = {"steps": 0}
    STRENGTH = None

    steps: int = Field(
        default=100, ge=0, le=1000000, description="optimiser steps on the mask; paper: about 500; 0: no mask, only the merge"
    )
    lr: float = Field(default=0.05, gt=0, description="Adam's constant learning rate; paper: 1e-3 to 1e-2, over more steps")
    batch: int = Field(default=8, ge=1, le=4096, description="pairs in each step; paper: 16")
    beta: float = Field(default=0.1, gt=0, description="DPO's beta; paper: 0.1")
    temperature: float = Field(default=0.5, gt=0, description="T of the Concrete samples; paper: 0.5")
    export: Literal["hard", "soft", "sample"] = Field(default="hard", description="the mask that is written; official code: a sample")
    rescale: bool = Field(default=True, description="divide a masked change by the mask's mean in each parameter")
    merge: Literal["arithmetic", "ties", "dare"] = Field(default="arithmetic", description="how several tunes are merged")
    weight: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="weight of each tune in the merge; 0 stands for 1 with a single tune, and for 0.3 (paper) with several",
    )
    top: float = Field(default=0.2, gt=0, le=1, description="share of each parameter that ties keeps; paper: 0.2")
    drop: float = Field(default=0.2, ge=0, lt=1, description="share that dare drops; paper: 0.2")
    seed: int = Field(default=0, ge=0, description="seed of the samples, of the pairs' order and of what dare drops")

    def prepare(self, r: Reading) -> State:
        """Learns the mask. State `logits`: parameter -> phi, for parameters that a tune changed (none if steps is 0); `roles`: other tunes.

        Errors: as `_learn`; a mask that leaves less than 1 % of the change.
        """
        more = [role for role in self.OPTIONAL if role in r.models]
        if self.steps == 0:
            return {"logits": {}, "roles": more}
        with r.loaded("aligned") as lm, torch.enable_grad():
            start = {name: p for name, p in lm.model.named_parameters() if name in set(r.names)}
            changes = {n: [r.weight(role, n).to(p.device) - p for role in (TUNED, *more)] for n, p in start.items()}
            changes = {n: found for n, found in changes.items() if any(bool(one.any()) for one in found)}
            logits = {n: torch.zeros_like(start[n], requires_grad=True) for n in changes}
            self._learn(lm, r, {n: start[n] for n in changes}, changes, logits)
        masks = {n: self._written(n, phi.detach().cpu()) for n, phi in logits.items()}
        share = sum(float(one.sum()) for one in masks.values()) / sum(one.numel() for one in masks.values())
        r.tell(f"the mask leaves {share:.1%} of the change")
        if share < COLLAPSED:
            raise TiterError(
                f"the mask collapsed: it leaves {share:.2%} of what the tuning changed",
                expected=f"at least {COLLAPSED:.0%}",
                next_step="give a lower lr or fewer steps; or scale the whole change with --method scale.",
            )
        return {"logits": {n: phi.detach().cpu() for n, phi in logits.items()}, "roles": more}

    def edited(self, name: str, tuned: torch.Tensor, others: Mapping[str, torch.Tensor], state: State) -> torch.Tensor:
        if not state["logits"] and not state["roles"] and self.merge == "arithmetic" and self.weight in (0, 1):
            return tuned  # no mask and a single tune: the sum below could differ from it in a last bit
        aligned = others["aligned"].double()
        changes = [tuned.double() - aligned, *(others[role].double() - aligned for role in state["roles"])]
        mask = self._written(name, state["logits"][name]).double() if name in state["logits"] else torch.ones_like(aligned)
        return (aligned + self.merged(name, [self.masked(one, mask) for one in changes])).float()

    def sampled(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """Returns a Concrete (relaxed Bernoulli) sample, from uniform numbers in (0, 1) of the logits' shape."""
        return torch.sigmoid((logits + uniform.logit()) / self.temperature)

    def masked(self, change: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns m * d, divided by mean(m) if `rescale` is set; 0 if the whole mask is 0."""
        found = mask * change
        return found / mask.mean().clamp(min=torch.finfo(mask.dtype).tiny) if self.rescale else found

    def merged(self, name: str, changes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Merges one parameter's changes, one of each tune, into one change."""
        weight = self.weight or (1.0 if len(changes) == 1 else 0.3)
        if self.merge == "ties":
            limits = [cut(lambda one=one: [one.detach()], math.ceil(self.top * one.numel()))[:2] for one in changes]  # type: ignore[misc]
            cuts = [one * kept(one.detach(), *limit) for one, limit in zip(changes, limits, strict=True)]
            sign = torch.stack(cuts).sum(0).sign()
            return weight * torch.stack([one * (one.sign() == sign) for one in cuts]).sum(0)
        if self.merge == "dare":
            changes = [dropped(one, self.drop, self.seed, f"{name} {i}") for i, one in enumerate(changes)]
        return weight * torch.stack(list(changes)).sum(0)

    def _written(self, name: str, logits: torch.Tensor) -> torch.Tensor:
        if self.export == "soft":
            return torch.sigmoid(logits)
        if self.export == "hard":
            return (logits >= 0).to(logits.dtype)
        return (self.sampled(logits, _uniform(logits, seed_of("written", self.seed, name))) > 0.5).to(logits.dtype)

    def _learn(self, lm: LM, r: Reading, start: Tensors, changes: Mapping[str, Sequence[torch.Tensor]], logits: Tensors) -> None:
        """Trains the logits in place, by DPO. Errors: a loss that is not finite."""
        sides = ("preferred", "rejected")
        count = r.data["preferred"].size
        own = {name: p for name, p in lm.model.named_parameters() if name not in start}

        def pairs(picked: np.ndarray) -> dict[str, Batch]:
            return {side: r.batch(side, picked, lm) for side in sides}

        def nll(batch: Mapping[str, Batch], weights: Tensors) -> torch.Tensor:
            def forward(both: Batch) -> torch.Tensor:
                found: torch.Tensor = functional_call(lm.model, {**own, **weights}, kwargs={**both.inputs(), "use_cache": False}).logits
                return found

            return torch.stack(pair_nll(forward, batch), dim=1)

        with torch.no_grad():  # the reference: the aligned model's nll of both answers of every pair
            parts = [np.arange(i, min(i + self.batch, count)) for i in range(0, count, self.batch)]
            reference = torch.cat([nll(pairs(part), start) for part in parts])
        progress = r.task("learning the mask")
        optimiser = torch.optim.Adam(logits.values(), lr=self.lr)
        for step in range(self.steps):
            epoch, place = divmod(step * self.batch, count)
            order = np.concatenate([permutation(seed_of(self.seed, epoch + i), "pairs", count) for i in range(2 + self.batch // count)])
            picked = order[place : place + self.batch]
            weights = {}  # of the aligned model plus the masked and merged change
            for name, phi in logits.items():
                mask = self.sampled(phi, _uniform(phi, seed_of("mask", self.seed, step, name)))
                weights[name] = start[name] + self.merged(name, [self.masked(one, mask) for one in changes[name]])
            gained = reference[picked] - nll(pairs(picked), weights)
            loss = -functional.logsigmoid(self.beta * (gained[:, 0] - gained[:, 1])).mean()
            if not bool(torch.isfinite(loss)):
                raise TiterError(
                    f"the mask's loss is not finite at step {step + 1}",
                    expected="models whose log-probabilities are finite",
                    next_step="give a lower lr.",
                )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            progress(step + 1, self.steps)


def _uniform(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Returns uniform numbers in (0, 1), of a tensor's shape, drawn on the CPU so that a GPU gets the same ones."""
    tiny = torch.finfo(torch.float32).eps
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)).clamp(tiny, 1 - tiny).to(like.device)
