"""RepNoise: keep the safe answers, and make the representations of harmful answers look like noise.

L = CE(preferred) + beta mean_l MMD(a_l, N(0, I)) - alpha log mean_l CE(head(norm(h_l)), harmful).
Source: arXiv 2405.14577, section 3 (stability, noise and ascent losses), appendix B. The streams `preferred` and `rejected` hold the same
requests with safe and with harmful answers. a_l is what block l's MLP adds to the residual stream (site mlp_out), h_l the residual
stream after block l; norm and head are the model's own. The tokens that both rows share from the start, up to the first that differs,
are left out of both harmful terms.

MMD (maximum mean discrepancy; the paper does not fix its form) is the biased estimate of the squared distance, never negative, between
the tokens' a_l and as many draws of N(0, I). Its kernel is a sum of five Gaussians exp(-d^2 / (f s)), f = 1/4, 1/2, 1, 2, 4, where s is
the mean squared distance between different points of both sets; no gradient flows through s. A micro-batch uses at most `samples`
tokens, drawn at random.
`scope`: in the paper the log is of the batch's mean; "example" takes the log for each example, weighted by its preferred tokens.
Shapes: B pairs, T tokens, D width, V vocabulary, N harmful tokens that count, L layers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch.distributed.tensor import DTensor
from torch.nn import functional

from titer.core.errors import TiterError
from titer.data.example import IGNORE, Batch, join
from titer.methods.base import Batches, Context, Loss, Method, predicted, token_nll
from titer.models.hooks import reading
from titer.models.modes import evaluating
from titer.models.sites import Sites

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
CLOSE = 0.05  # relative gap between head(norm(last residual)) and the model's logits: rounding, or a slight soft cap


class RepNoise(Method):
    """Trains with two extra terms on harmful answers; the settings are their weights, and how they are estimated."""

    STREAMS = ("preferred", "rejected")
    SOURCE = "arXiv 2405.14577, section 3, appendix B"
    VERSION = 1
    NEUTRAL = {"alpha": 0.0, "beta": 0.0}
    COUPLED = {"beta": 0.0, "scope": "example"}

    alpha: float = Field(default=1.0, ge=0, description="weight of the ascent on harmful answers; paper: 1")
    beta: float = Field(default=1e-3, ge=0, description="weight of the noise term; paper: 1e-3")
    samples: int = Field(default=512, ge=0, description="most tokens of a micro-batch that each layer's MMD uses; 0: all")
    scope: Literal["batch", "example"] = Field(default="batch", description="what the logarithm's mean is taken over; paper: the batch")

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """Checks that the final norm and the head are found, and returns no tensors. Errors: those of `check_head`."""
        if self.alpha > 0:
            check_head(c)
        return {}

    def loss(self, c: Context, batch: Batches) -> Loss:
        preferred = batch["preferred"]
        if self.alpha == 0 and self.beta == 0:
            return token_nll(c.forward(preferred), preferred.labels)
        noised, read = (c.sites.everywhere(site) for site in ("mlp_out", "resid"))
        both = join((preferred, batch["rejected"]), pad_id=0)  # id 0 only where the mask is 0
        pairs = len(preferred)
        with reading(c.sites, [*noised, *read]) as seen:  # one forward pass over both answers gives all three terms
            stability = token_nll(c.forward(both)[:pairs], both.labels[:pairs])
        harmful = both.rows(pairs, 2 * pairs)
        own = ~shared_start(both.rows(0, pairs), harmful) & _real(harmful)
        total = stability.total
        if self.beta > 0:
            total = total + self.beta * stability.over * self._noise(c, [seen[name][pairs:] for name in noised], own)
        if self.alpha > 0:
            kept = harmful.labels.masked_fill(~own, IGNORE)
            total = total - self.alpha * self._ascent(c, [seen[name][pairs:] for name in read], kept, both.labels[:pairs])
        return Loss(total, stability.over)

    def _noise(self, c: Context, activations: list[torch.Tensor], own: torch.Tensor) -> torch.Tensor:
        """Returns the mean over layers of MMD(a_l, N(0, I)), at the tokens where `own` (B, T) is true; 0 if none is. a_l is (B, T, D)."""
        places = own.flatten().nonzero()[:, 0]
        if self.samples and len(places) > self.samples:
            places = places[torch.randperm(len(places), generator=c.rng)[: self.samples].to(places.device)]
        if len(places) == 0:
            return torch.zeros((), device=own.device)
        found = []
        for activation in activations:
            points = activation.flatten(0, 1)[places].float()
            drawn = torch.randn(points.shape, generator=c.rng).to(points.device)
            found.append(mmd(points, drawn))
        noise = torch.stack(found).mean()
        c.log("rep_noise_mmd", noise.detach())
        return noise

    def _ascent(self, c: Context, residuals: list[torch.Tensor], labels: torch.Tensor, preferred: torch.Tensor) -> torch.Tensor:
        """Returns the log of the mean cross-entropy over layers on `labels` (B, T), times the number of preferred tokens; 0 if no label."""
        wanted = predicted(labels)
        at = wanted != IGNORE
        norm, head = final_norm(c.sites), output_head(c.sites)
        found = [functional.cross_entropy(logits_of(norm, head, h[at]), wanted[at], reduction="none") for h in residuals]
        nll = torch.stack(found).mean(0)  # (N,): over the layers
        counts = at.sum(1)
        c.log("rep_noise_nll", nll.detach().sum() / counts.sum().clamp(min=1))
        weights = (preferred[:, 1:] != IGNORE).sum(1)
        if self.scope == "batch":
            return weights.sum() * torch.log(nll.mean()) if len(nll) else nll.sum()
        rows = at.nonzero()[:, 0]
        sums = torch.zeros(len(labels), device=nll.device).index_add(0, rows, nll)
        has = counts > 0
        return (weights[has] * torch.log(sums[has] / counts[has])).sum()


def mmd(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns the squared maximum mean discrepancy of two sets of points (N, D): a biased estimate, its kernel a sum of five Gaussians."""
    points = torch.cat([x, y])
    squares = (points**2).sum(1)
    distances = (squares[:, None] + squares[None, :] - 2 * points @ points.T).clamp(min=0)  # (2N, 2N)
    distances = distances - torch.diag(torch.diagonal(distances))  # against rounding: a point's distance to itself is 0
    many = len(points)
    size = (distances.detach().sum() / (many * (many - 1))).clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-distances / (factor * size)) for factor in FACTORS]).sum(0)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def shared_start(one: Batch, other: Batch) -> torch.Tensor:
    """Returns a mask (B, T) of `other`: True at the real tokens that both rows share from their start. Either side may be padded."""
    width = min(one.input_ids.shape[1], other.input_ids.shape[1])
    first, second = (
        torch.argsort((~_real(batch)).int(), dim=1, stable=True)[:, :width] for batch in (one, other)
    )  # places of the real tokens first
    same = one.input_ids.gather(1, first) == other.input_ids.gather(1, second)
    same &= _real(one).gather(1, first) & _real(other).gather(1, second)
    return torch.zeros_like(_real(other)).scatter(1, second, same.int().cumprod(1).bool())


def _real(batch: Batch) -> torch.Tensor:
    return torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.attention_mask is None else batch.attention_mask.bool()


def output_head(sites: Sites) -> Any:
    """Returns the module that turns the normalised residual into logits.

    Errors: the model has none; a sharded model, whose head is complete only inside its own forward pass.
    """
    head = sites.model.get_output_embeddings()
    if head is None:
        raise TiterError("the model has no output embeddings", expected="a causal language model with a head over its vocabulary")
    if isinstance(head.weight, DTensor):
        raise TiterError(
            "rep_noise uses the head outside the forward pass, where a sharded head is not complete",
            next_step="train without sharding (FSDP), or give --set alpha=0.",
        )
    return head


def final_norm(sites: Sites) -> Any:
    """Returns the norm between the last block and the head: the last norm module outside the blocks.

    Errors: the model has none.
    """
    inside = {id(m) for block in sites.blocks for m in block.whole.modules()}
    outside = [m for m in sites.model.modules() if id(m) not in inside and not list(m.children())]
    norms = [m for m in outside if "norm" in type(m).__name__.lower()]
    if not norms:
        raise TiterError("no norm between the last block and the head was found", expected="a decoder with a norm after its blocks")
    return norms[-1]


def logits_of(norm: Any, head: Any, residual: torch.Tensor) -> torch.Tensor:
    """Returns the float32 logits (N, V) of a residual (N, D), as if it were the last block's output."""
    normed = norm(residual.to(head.weight.dtype))
    logits: torch.Tensor = head(normed)
    return logits.float()


@torch.no_grad()
def check_head(c: Context) -> None:
    """Checks that the final norm and head, applied to the last residual, give the model's own logits.

    Errors: they do not, so something other than norm and head shapes the logits.
    """
    batch = next(iter(c.first("preferred", 1)))["preferred"]
    last = f"resid[{c.sites.layers - 1}]"
    with evaluating(c.sites.model), reading(c.sites, [last]) as seen:
        logits = c.forward(batch).float()
    found = logits_of(final_norm(c.sites), output_head(c.sites), seen[last].flatten(0, 1)).view_as(logits)
    gap = float((found - logits).norm() / logits.norm().clamp(min=1e-30))
    if not gap <= CLOSE:
        raise TiterError(
            f"the final norm and head on the last block's output do not give the model's logits (relative gap {gap:.2g})",
            expected="a decoder whose logits are head(norm(last block)): no scaling, projection or strong soft cap between",
        )
