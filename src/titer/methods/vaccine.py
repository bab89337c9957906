"""Vaccine: train under the bounded perturbation of the activations that raises the loss most.

Pass 1 computes the loss's gradient g with respect to the activations at the chosen sites (no parameter gradient). Pass 2 trains with
eps = rho g / ||g|| added at these sites; one l2 ball covers all of them. Source: arXiv 2402.01109, equations 1-3, algorithm 1.
- `every`: algorithm 2 (accelerated): perturb only in every such step.
- `scope`: one ball for the batch (the paper), or one for each example, layer or token.
- `inner` = K > 1: K ascent steps, each of size 2.5 rho / K (at most rho) in every ball; the sum is projected onto the ball after each
  step (latent adversarial training; the step's size is that of arXiv 1706.06083).
- `noise`: no gradient. "variance" adds N(0, rho) to every entry (table 7; there is no ball); "norm" adds a random direction with the
  same norm as eps, as a control.
Cheaper and weaker than the paper:
- `part` < 1: the gradient is taken for the first rows of the micro-batch only (the order is random), and the whole ball is spent on them.
- `reuse`: there is no pass 1. Every token is moved along the gradient that the previous step's training pass had at each site, summed
  over tokens to (D,).
- `reuse=rows`: there is no pass 1. A stage with `replay` m trains on each batch m times in a row; from the second time on every token is
  moved along its own gradient in the pass before, one update old ("free" adversarial training, arXiv 1904.12843, algorithm 1). The first
  time there is none, so (m - 1) / m of the steps are perturbed. It keeps a gradient (L, B, T, D) between steps, and runs in one process.

A ball whose gradient is zero or not finite in any pass gets no perturbation. `vaccine_skipped` counts such balls, over ranks and steps;
the other balls are perturbed as usual.
Shapes: B examples, T tokens, D width, L sites; a site's perturbation is (B, T, D).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch.nn import functional

from titer.core.errors import TiterError
from titer.data.example import Batch
from titer.methods.base import Batches, Context, Method, skip
from titer.models.ball import Deltas, Scope, gradients_at, projected, scaled, unmasked
from titer.models.hooks import adding, catching

STRIDE = 2.5  # with it, K steps of 2.5 rho / K can reach any point of the ball from any other


class Vaccine(Method):
    """Trains under a perturbation of the activations; the settings are the ball's radius and scope, the sites, how often to perturb,
    and how the perturbation is found."""

    SOURCE = "arXiv 2402.01109, equations 1-3, algorithms 1 and 2"
    VERSION = 2
    NEUTRAL = {"rho": 0.0}
    COUPLED = {"scope": "example"}

    rho: float = Field(default=2.0, ge=0, description="radius of the l2 ball; paper: 2 (with noise=variance it is a variance)")
    site: Literal["attn_out", "mlp_out", "resid"] = Field(
        default="attn_out", description="where the perturbation is added; paper: attention outputs"
    )
    scope: Scope = Field(default="batch", description="what one ball covers; paper: the batch (noise=variance has no ball)")
    every: int = Field(default=1, ge=1, description="tau: perturb in every tau-th step; paper: 1, and 100 or more if accelerated")
    inner: int = Field(default=1, ge=1, le=1000, description="K, projected ascent steps of min(1, 2.5 / K) rho; paper: 1")
    noise: Literal["", "variance", "norm"] = Field(default="", description="perturb at random instead of along the gradient")
    padding: bool = Field(default=False, description="perturb padding too, as the official code does")
    shared_dropout: bool = Field(default=False, description="use the same dropout masks in every pass; in the official code they differ")
    part: float = Field(default=1.0, gt=0, le=1, description="share of a micro-batch's rows that is perturbed; paper: 1")
    reuse: bool | Literal["rows"] = Field(
        default=False, description="use the previous step's gradient instead of a first pass: its mean (true), or each token's own (rows)"
    )

    @model_validator(mode="after")
    def _one_filling(self) -> Vaccine:
        if self.reuse == "rows" and self.every > 1:
            raise ValueError("reuse=rows perturbs every step but the first on a batch: leave every at 1")
        if self.reuse and (self.noise or self.inner > 1 or self.part < 1):
            raise ValueError("reuse computes no gradient, so noise, inner and part have no effect: leave them at their defaults")
        if self.noise and self.inner > 1:
            raise ValueError("noise makes no ascent steps: leave inner at 1")
        if self.noise == "variance" and self.scope != "batch":
            raise ValueError("noise=variance has no ball, so scope has no effect: leave scope at batch")
        if self.shared_dropout and (self.noise or self.reuse):
            raise ValueError("shared_dropout needs a first pass for the gradient, and noise and reuse have none: leave shared_dropout off")
        if self.shared_dropout and self.part < 1:
            raise ValueError("shared_dropout needs both passes over the same rows: leave part at 1, or shared_dropout off")
        return self

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        if self.reuse == "rows" and (c.replay == 1 or c.sum(torch.tensor(1)) > 1):
            raise TiterError(
                "reuse=rows needs the gradient of the step before on the same rows, which this stage does not have",
                expected="a stage with replay 2 or more, in one process",
                next_step="add --replay 8 (in Python: the stage's replay), or set reuse to true.",
            )
        return {}

    def step(self, c: Context) -> None:
        if self.reuse == "rows":
            self._replayed(c)
        else:
            self._perturbed(c)
        if self.rho > 0:
            c.log("vaccine_skipped", c.state.get("skipped", torch.tensor(0)))

    def _perturbed(self, c: Context) -> None:
        due = self.rho > 0 and c.number % self.every == 0
        learns = self.reuse and self.rho > 0 and (c.number + 1) % self.every == 0  # the next step reuses this one's gradient
        met: Deltas = {}

        def keep(name: str, gradient: torch.Tensor) -> None:
            met[name] = met.get(name, 0) + gradient.float().sum((0, 1))

        for batch in c.micro():
            deltas = self.perturbation(c, batch) if due else {}
            with adding(c.sites, deltas), catching(c.sites, self._names(c) if learns else [], keep):
                c.backward(self.loss(c, batch))
        if learns:
            c.state["direction"] = c.sum(torch.stack([met[name] for name in self._names(c)]))  # (L, D)

    def _replayed(self, c: Context) -> None:
        """Runs a step in which each token is moved along its own gradient of the step before, if that step had the same batch."""
        names, ends = self._names(c), (c.number + 1) % c.replay == 0
        for turn, batch in enumerate(c.micro()):
            met: Deltas = {}
            place = f"rows {turn}"
            before = c.state.pop(place, None)  # (L, B, T, D)
            deltas = {} if before is None else self._in_ball(c, dict(zip(names, before, strict=True)), batch["train"])
            with adding(c.sites, deltas), catching(c.sites, [] if ends or not self.rho else names, met.__setitem__):
                c.backward(self.loss(c, batch))
            if met:
                c.state[place] = torch.stack([met[name].float() for name in names])

    def _names(self, c: Context) -> list[str]:
        return c.sites.everywhere(self.site)

    def perturbation(self, c: Context, batch: Batches) -> Deltas:
        """Returns eps (B, T, D) at each site: zero in a ball without a direction; {} if no ball on any rank has a direction."""
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
        """Returns eps from the gradient in each ball; with `inner` > 1, after that many ascent steps, each projected onto the ball."""
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
        """With `shared_dropout`, restores the random generator after a pass, so that the next pass draws the same masks."""
        return torch.random.fork_rng() if self.shared_dropout else nullcontext()

    def _mask(self, batch: Batch) -> torch.Tensor | None:
        return None if self.padding else batch.attention_mask

    def _drawn(self, c: Context, batch: Batch, names: list[str]) -> Deltas:
        """Draws every entry at each site from N(0, rho), with the step's generator; zero at padding unless `padding`."""
        shape, device = (*batch.input_ids.shape, c.sites.width), batch.input_ids.device
        drawn = {name: (self.rho**0.5 * torch.randn(shape, generator=c.rng)).to(device) for name in names}
        return {name: unmasked(one, self._mask(batch)) for name, one in drawn.items()}

    def _remembered(self, c: Context, batch: Batch, names: list[str]) -> Deltas:
        """Returns the previous step's direction at every token; {} in the first step."""
        if "direction" not in c.state:
            return {}
        way = c.state["direction"].to(batch.input_ids.device)
        return {name: one.expand(*batch.input_ids.shape, -1) for name, one in zip(names, way, strict=True)}

    def _in_ball(self, c: Context, deltas: Deltas, batch: Batch) -> Deltas:
        """Returns the deltas scaled to norm rho in each ball; {} if no ball has a direction."""
        found = scaled(deltas, self.rho, self._mask(batch), c.sum, self.scope)
        if found.norm is not None:
            c.log("vaccine_norm", found.norm)
        skip(c, found.lost)
        return found.deltas
