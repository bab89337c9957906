"""Vaccine: train under the activation perturbation, of bounded size, that hurts the loss most.

Pass 1 takes the loss's gradient g at the chosen sites (no parameter gradient is computed); pass 2 trains with
eps = rho g / ||g|| added there, one l2 ball over all sites. Source: arXiv 2402.01109, equations 1-3, algorithm 1;
`every`: algorithm 2 (accelerated); `scope`: one ball a batch (the paper), example, layer or token. `inner` = K > 1: K ascent
steps, each of 2.5 rho / K (rho at most) in every ball, the sum projected to the ball after each (latent adversarial training;
the step's size is that of arXiv 1706.06083). `noise` replaces the gradient: "variance" adds N(0, rho) to every entry
(table 7), which has no ball, "norm" a random direction of the same norm, the control.
A ball whose gradient is zero or not finite, in any pass, is left unperturbed and counted in `vaccine_skipped`, over ranks
and steps; the others are perturbed as ever.
Cheaper than the paper, and weaker: `part` < 1 takes the gradient of the first rows of the micro-batch alone (rows come in
random order) and spends the whole ball on them; `reuse` needs no pass 1: the gradient that the step before met at each site
in its training pass, summed over tokens to (D,), is what every token is moved along.
Shapes: B examples, T tokens, D width, L sites; a site's perturbation is (B, T, D).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch.nn import functional

from titer.data.example import Batch
from titer.methods.base import Batches, Context, Method, skip
from titer.models.ball import Deltas, Scope, gradients_at, projected, scaled, unmasked
from titer.models.hooks import adding, catching

STRIDE = 2.5  # K steps of 2.5 rho / K reach any place of the ball from any other


class Vaccine(Method):
    """Size and shape of the ball, the sites it is at, how often, and what it is filled with."""

    SOURCE = "arXiv 2402.01109, equations 1-3, algorithms 1 and 2"
    VERSION = 2
    NEUTRAL = {"rho": 0.0}
    COUPLED = {"scope": "example"}

    rho: float = Field(default=2.0, ge=0, description="radius of the l2 ball; the paper's 2 (a variance with noise=variance)")
    site: Literal["attn_out", "mlp_out", "resid"] = Field(default="attn_out", description="where; the paper's attention outputs")
    scope: Scope = Field(default="batch", description="what shares one ball; the paper's batch (noise=variance has none)")
    every: int = Field(default=1, ge=1, description="tau: perturb every so many steps; the paper's 1, accelerated 100 and more")
    inner: int = Field(default=1, ge=1, description="K, projected ascent steps of min(1, 2.5 / K) rho; the paper's 1")
    noise: Literal["", "variance", "norm"] = Field(default="", description="random instead of the gradient")
    padding: bool = Field(default=False, description="perturb padding too; the official code does")
    shared_dropout: bool = Field(default=False, description="the same dropout masks in every pass; the official code's differ")
    part: float = Field(default=1.0, gt=0, le=1, description="share of a micro-batch's rows that is perturbed; the paper's 1")
    reuse: bool = Field(default=False, description="move along the last step's mean gradient, without a pass for it")

    @model_validator(mode="after")
    def _one_filling(self) -> Vaccine:
        if self.reuse and (self.noise or self.inner > 1 or self.part < 1):
            raise ValueError("reuse takes no pass for the gradient: leave noise, inner and part as they are")
        if self.noise and self.inner > 1:
            raise ValueError("noise takes no ascent step: leave inner at 1")
        if self.noise == "variance" and self.scope != "batch":
            raise ValueError("noise=variance has no ball, so nothing shares one: leave scope at batch")
        if self.shared_dropout and (self.noise or self.reuse):
            raise ValueError("shared_dropout needs a pass for the gradient, and with noise or reuse there is none: leave it off")
        if self.shared_dropout and self.part < 1:
            raise ValueError("shared_dropout needs passes over the same rows: leave part at 1, or shared_dropout off")
        return self

    def step(self, c: Context) -> None:
        due = self.rho > 0 and c.number % self.every == 0
        learns = self.reuse and self.rho > 0 and (c.number + 1) % self.every == 0
        met: Deltas = {}

        def keep(name: str, gradient: torch.Tensor) -> None:
            met[name] = met.get(name, 0) + gradient.float().sum((0, 1))

        for batch in c.micro():
            deltas = self.perturbation(c, batch) if due else {}
            with adding(c.sites, deltas), catching(c.sites, self._names(c) if learns else [], keep):
                c.backward(self.loss(c, batch))
        if learns:
            c.state["direction"] = c.sum(torch.stack([met[name] for name in self._names(c)]))  # (L, D)
        if self.rho > 0:
            c.log("vaccine_skipped", c.state.get("skipped", torch.tensor(0)))

    def _names(self, c: Context) -> list[str]:
        return c.sites.everywhere(self.site)

    def perturbation(self, c: Context, batch: Batches) -> Deltas:
        """eps (B, T, D) at every site, zeros in a ball without a direction; {} where no ball on any rank has one."""
        whole, names = batch["train"], self._names(c)
        rows = whole.rows(0, max(1, round(self.part * len(whole))))
        if self.noise or self.reuse:
            drawn = self._drawn(c, rows, names) if self.noise else self._remembered(c, rows, names)
            found = drawn if self.noise == "variance" or not drawn else self._in_ball(c, drawn, rows)
        else:
            found = self._ascended(c, {**batch, "train": rows}, names)
        left = len(whole) - len(rows)
        return {name: functional.pad(delta, (0, 0, 0, 0, 0, left)) for name, delta in found.items()} if left else found

    def _ascended(self, c: Context, batch: Batches, names: list[str]) -> Deltas:
        """The gradient's direction in every ball; with `inner` > 1 the last of so many ascent steps, each projected to the ball."""
        mask, size = self._mask(batch["train"]), self.rho * min(1.0, STRIDE / self.inner)
        deltas: Deltas = {}
        lost = torch.tensor(0.0)
        for turn in range(self.inner):
            with self._masks_kept():
                gradient = gradients_at(c.sites, names, lambda: self.loss(c, batch).total, c.grad, deltas)
            step = scaled(gradient, size, mask, c.sum, self.scope)
            lost = torch.maximum(lost.to(step.lost.device), step.lost)
            if step.norm is None:
                deltas = {}
                break
            if turn == 0:
                deltas = step.deltas
                c.log("vaccine_norm", step.norm)
            else:
                moved = {name: (deltas[name] + step.deltas[name]).where(step.live[name], 0.0) for name in names}
                deltas = projected(moved, self.rho, c.sum, self.scope)
        skip(c, lost)
        return deltas

    def _masks_kept(self) -> AbstractContextManager[None]:
        """With `shared_dropout` a pass puts the generator back, so that the next draws the same masks."""
        return torch.random.fork_rng() if self.shared_dropout else nullcontext()

    def _mask(self, batch: Batch) -> torch.Tensor | None:
        return None if self.padding else batch.attention_mask

    def _drawn(self, c: Context, batch: Batch, names: list[str]) -> Deltas:
        """N(0, rho) at every site and place that is perturbed, from the step's own generator."""
        shape, device = (*batch.input_ids.shape, c.sites.width), batch.input_ids.device
        drawn = {name: (self.rho**0.5 * torch.randn(shape, generator=c.rng)).to(device) for name in names}
        return {name: unmasked(one, self._mask(batch)) for name, one in drawn.items()}

    def _remembered(self, c: Context, batch: Batch, names: list[str]) -> Deltas:
        """Last step's direction at every token; {} where no step came before."""
        if "direction" not in c.state:
            return {}
        way = c.state["direction"].to(batch.input_ids.device)
        return {name: one.expand(*batch.input_ids.shape, -1) for name, one in zip(names, way, strict=True)}

    def _in_ball(self, c: Context, deltas: Deltas, batch: Batch) -> Deltas:
        """The deltas with norm rho in every ball; {} where none has a direction."""
        found = scaled(deltas, self.rho, self._mask(batch), c.sum, self.scope)
        if found.norm is not None:
            c.log("vaccine_norm", found.norm)
        skip(c, found.lost)
        return found.deltas
