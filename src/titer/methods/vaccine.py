"""Vaccine: train under the activation perturbation, of bounded size, that hurts the loss most.

Pass 1 takes the loss's gradient g at the chosen sites (no parameter gradient is touched); pass 2 trains with
eps = rho g / ||g|| added there, one l2 ball over all sites. Source: arXiv 2402.01109, equations 1-3, algorithm 1;
`every`: algorithm 2 (accelerated); `scope`: one ball a batch (the paper), example, layer or token; `inner` > 1: that
many ascent steps of rho / inner each, projected to the ball (latent adversarial training). `noise` replaces the
gradient: "variance" adds N(0, rho) (table 7), "norm" a random direction of the same norm, the control.
Shapes: B examples, T tokens, D width; a site's perturbation is (B, T, D).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from titer.data.example import Batch
from titer.methods.base import Batches, Context, Loss, Method, token_nll
from titer.models.hooks import Edit, adding, replacing

Deltas = dict[str, torch.Tensor]


class Vaccine(Method):
    """Size and shape of the ball, the sites it is at, how often, and what it is filled with."""

    SOURCE = "arXiv 2402.01109, equations 1-3, algorithms 1 and 2"
    VERSION = 1
    NEUTRAL: ClassVar[Mapping[str, Any] | str] = {"rho": 0.0}
    COUPLED: ClassVar[Mapping[str, Any]] = {"scope": "example"}

    rho: float = Field(default=2.0, ge=0, description="radius of the l2 ball; the paper's 2 (a variance with noise=variance)")
    site: Literal["attn_out", "mlp_out", "resid"] = Field(default="attn_out", description="where; the paper's attention outputs")
    scope: Literal["batch", "example", "layer", "token"] = Field(default="batch", description="what shares one ball; the paper's batch")
    every: int = Field(default=1, ge=1, description="tau: perturb every so many steps; the paper's 1, accelerated 100 and more")
    inner: int = Field(default=1, ge=1, description="ascent steps; the paper's 1")
    noise: Literal["", "variance", "norm"] = Field(default="", description="random instead of the gradient")
    padding: bool = Field(default=False, description="perturb padding too; the official code does")
    shared_dropout: bool = Field(default=False, description="the same dropout masks in both passes; the official code's differ")

    def loss(self, c: Context, batch: Batches) -> Loss:
        return token_nll(c.forward(batch["train"]), batch["train"].labels)

    def step(self, c: Context) -> None:
        due = self.rho > 0 and c.number % self.every == 0
        for batch in c.micro():
            state = torch.get_rng_state()
            deltas = self.perturbation(c, batch) if due else {}
            if self.shared_dropout:
                torch.set_rng_state(state)
            with adding(c.sites, deltas):
                c.backward(self.loss(c, batch))

    def perturbation(self, c: Context, batch: Batches) -> Deltas:
        """eps at every site; {} and a logged count where the gradient's norm is zero or not finite."""
        names = [f"{self.site}[{i}]" for i in range(c.sites.layers)]
        if self.noise:
            drawn = self._drawn(c, batch, names)
            return drawn if self.noise == "variance" else self._scaled(c, drawn, batch["train"], self.rho)
        deltas: Deltas = {}
        for turn in range(self.inner):
            gradient = self._gradient(c, batch, names, deltas)
            step = self._scaled(c, gradient, batch["train"], self.rho / self.inner)
            if not step:
                return {}
            deltas = {name: deltas[name] + step[name] for name in names} if turn else step
        return deltas

    def _gradient(self, c: Context, batch: Batches, names: list[str], start: Deltas) -> Deltas:
        """The loss's gradient to a delta at each site, taken at `start` (zero where there is none)."""
        made: Deltas = {}

        def edit(name: str) -> Edit:
            def moved(activation: torch.Tensor) -> torch.Tensor:
                if name not in made:  # once: a checkpointed block that is computed again meets the same delta
                    made[name] = start.get(name, torch.zeros_like(activation)).detach().requires_grad_(True)
                return activation + made[name]

            return moved

        with replacing(c.sites, {name: edit(name) for name in names}):
            total = self.loss(c, batch).total
            found = c.grad(total, [made[name] for name in names])
        return dict(zip(names, found, strict=True))

    def _drawn(self, c: Context, batch: Batches, names: list[str]) -> Deltas:
        """N(0, rho) at every site, from the step's own generator."""
        rows, width = batch["train"].input_ids.shape
        size = c.sites.linear("attn_o[0]").out_features
        shape, device = (rows, width, size), batch["train"].input_ids.device
        return {name: (self.rho**0.5 * torch.randn(shape, generator=c.rng)).to(device) for name in names}

    def _scaled(self, c: Context, deltas: Deltas, batch: Batch, radius: float) -> Deltas:
        """The deltas with norm `radius` in every ball; {} where a ball of the batch has no direction."""
        mask = None if self.padding or batch.attention_mask is None else batch.attention_mask[:, :, None]
        kept = {name: (delta if mask is None else delta * mask).float() for name, delta in deltas.items()}
        squares = {name: (delta**2).sum(-1) for name, delta in kept.items()}  # (B, T)
        norms = self._norms(c, squares)
        whole = torch.stack([norm.sum() for norm in norms.values()]).sum()
        if not bool(torch.isfinite(whole) & (whole > 0)):
            c.log("vaccine_skipped", 1.0)
            return {}
        c.log("vaccine_norm", torch.sqrt(torch.stack([square.sum() for square in squares.values()]).sum()))
        return {name: (radius * delta / norms[name].clamp(min=1e-30)).to(deltas[name].dtype) for name, delta in kept.items()}

    def _norms(self, c: Context, squares: Deltas) -> Deltas:
        """The norm of the ball that each entry belongs to, broadcast to (B, T, 1) or less."""
        if self.scope == "token":
            return {name: square.sqrt()[:, :, None] for name, square in squares.items()}
        if self.scope == "layer":
            return {name: c.sum(square.sum()).sqrt() for name, square in squares.items()}
        if self.scope == "example":
            together = torch.stack([square.sum(1) for square in squares.values()]).sum(0).sqrt()[:, None, None]
            return dict.fromkeys(squares, together)
        together = c.sum(torch.stack([square.sum() for square in squares.values()]).sum()).sqrt()
        return dict.fromkeys(squares, together)
