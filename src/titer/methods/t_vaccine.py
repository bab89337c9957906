"""T-Vaccine: train with Vaccine's perturbation, but only a few layers, sampled by how much harmful data pulls at them.

Every `rescore` steps each layer l gets a score s_l = ||dh / de_l||: the l2 norm, over one batch, of the harmful loss h's gradient with
respect to the activation e_l at layer l's site. Every `resample` steps, `layers` (gamma) of the L layers are drawn without replacement,
with probability s_l / sum s. Until the next draw only these layers are perturbed, by eps = rho g / ||g|| (g is the gradient over all of
them, so they share one ball), and only these are trained. Source: arXiv 2410.09760.

A layer that is not drawn is frozen for the step: its gradients are dropped, so neither the optimiser's moments nor weight decay move it.
Everything outside the layers (embeddings, final norm, head) is frozen too, unless `outside` is set. If a ball's gradient has no
direction (for the batch, or for an example), nothing is added there; `t_vaccine_skipped` counts such balls since the stage began, over
all ranks.
Shapes: B examples, T tokens, D width; a site's perturbation is (B, T, D); scores (L,), chosen (L,) of 0 and 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from titer.data.example import Batch
from titer.methods.base import Batches, Context, Method, skip, token_nll
from titer.models.ball import Deltas, gradients_at, scaled
from titer.models.hooks import adding

LEAST = 1e-9  # of the largest score: a layer without any gradient can still be drawn when the others are used up


class TVaccine(Method):
    """Trains a few layers under perturbation; the settings are the ball's radius, the number of layers, and how often they are drawn."""

    STREAMS = ("train", "harmful")
    SOURCE = "arXiv 2410.09760 (T-Vaccine); the perturbation: arXiv 2402.01109, equation 3"
    VERSION = 2
    NEUTRAL = {"rho": 0.0, "layers": 0, "outside": True}
    COUPLED = {"scope": "example"}

    rho: float = Field(default=3.0, ge=0, description="radius of the l2 ball over the sampled layers; official scripts: 3")
    layers: int = Field(default=8, ge=0, description="gamma, how many layers are sampled (0: all); official scripts: 8 for Llama2-7B")
    resample: int = Field(default=20, ge=1, description="steps between two draws of layers; official scripts: 20")
    rescore: int = Field(default=200, ge=1, description="steps between two scorings; official scripts: 200")
    site: Literal["attn_out", "mlp_out", "resid"] = Field(
        default="attn_out", description="where the perturbation is added; paper: attention outputs"
    )
    scope: Literal["batch", "example"] = Field(
        default="batch", description="one ball for the whole batch (as in the paper), or one for each example"
    )
    outside: bool = Field(default=False, description="train embeddings, final norm and head too; the paper trains only the sampled layers")

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """Returns `scores` and `chosen` (L,), all ones; where layers are sampled, the first step computes both anew."""
        c.sites.everywhere(self.site)
        return {"scores": torch.ones(c.sites.layers), "chosen": torch.ones(c.sites.layers)}

    def step(self, c: Context) -> None:
        if 0 < self.layers < c.sites.layers:
            self._choose(c)
        chosen = [i for i, used in enumerate(c.state["chosen"].tolist()) if used]
        for batch in c.micro("train"):
            deltas = self.perturbation(c, batch, chosen) if self.rho > 0 else {}
            with adding(c.sites, deltas):
                c.backward(self.loss(c, batch))
        self._freeze(c, chosen)
        if self.rho > 0:
            c.log("t_vaccine_skipped", c.state.get("skipped", torch.tensor(0.0)))

    def perturbation(self, c: Context, batch: Batches, chosen: list[int]) -> Deltas:
        """Returns eps at the site of each chosen layer: zero in a ball whose gradient is zero or not finite; {} if all balls are so."""
        gradient = gradients_at(c.sites, self._names(chosen), lambda: self.loss(c, batch).total, c.grad)
        found = scaled(gradient, self.rho, batch["train"].attention_mask, c.sum, self.scope)
        skip(c, found.lost)
        if found.norm is not None:
            c.log("t_vaccine_norm", found.norm)
        return found.deltas

    def scores(self, c: Context) -> torch.Tensor:
        """Returns s_l (L,) of this step's harmful examples: the squares are summed over micro-batches and ranks."""
        names = self._names(list(range(c.sites.layers)))
        squares = torch.zeros(c.sites.layers)
        for batch in c.micro("harmful"):
            found = self._pull(c, batch["harmful"], names)
            squares = squares.to(found.device) + found
        return c.sum(squares).sqrt().cpu()

    def _pull(self, c: Context, batch: Batch, names: list[str]) -> torch.Tensor:
        """Returns each layer's squared gradient norm (L,) for one micro-batch. The loss is a sum, so these add up over micro-batches."""
        found = gradients_at(c.sites, names, lambda: token_nll(c.forward(batch), batch.labels).total, c.grad)
        return torch.stack([(found[name].float() ** 2).sum() for name in names])

    def _choose(self, c: Context) -> None:
        """Scores and draws the layers, if this step is due. The state keeps both, so a resumed run continues with the same layers."""
        if c.number % self.rescore == 0:
            c.state["scores"] = self.scores(c)
        if c.number % self.resample == 0:
            seed = torch.randint(2**31, (1,), generator=c.rng)  # each rank draws a number; their sum is one seed for all ranks
            shared = int(c.sum(seed.to(next(c.sites.model.parameters()).device)))
            drawn = sampled(c.state["scores"], self.layers, torch.Generator().manual_seed(shared))
            c.state["chosen"] = torch.zeros(c.sites.layers).index_fill(0, drawn, 1.0)

    def _freeze(self, c: Context, chosen: list[int]) -> None:
        """Drops the gradients of all parameters that this step does not train."""
        inside = [{id(p) for p in block.whole.parameters()} for block in c.sites.blocks]
        trained = set().union(*(inside[i] for i in chosen))
        layered = set().union(*inside)
        for _, p in c.named:
            if id(p) not in trained and not (self.outside and id(p) not in layered):
                p.grad = None

    def _names(self, layers: list[int]) -> list[str]:
        return [f"{self.site}[{i}]" for i in layers]


def sampled(scores: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draws `count` indices of `scores` (L,) without replacement, each with a probability in proportion to its score."""
    weights = scores.double()
    if not bool(torch.isfinite(weights).all()) or not bool(weights.max() > 0):
        weights = torch.ones_like(weights)  # no usable score: draw uniformly
    return torch.multinomial(weights.clamp(min=LEAST * float(weights.max())), count, generator=generator)
