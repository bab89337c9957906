"""Safe-Align: move each activation a little towards those of safe answers and keep its norm; weights do not change.

It learns from unsafe requests that have a safe and a harmful answer. For each such pair, the difference of the activations at the end of
the two answers (safe minus harmful) is taken at every layer's site and joined over the layers into one vector. `direction` makes one
vector from all pairs' differences, which is then split into layers again.
The paper and its code differ in each part, so each part is a setting, and `form` names the two combinations. The paper moves the
residual stream: x + alpha v. The code moves the MLP's output, scaled to unit norm, by 0.1 alpha (1 + max(0, cos)) along v.
In Titer, the component's sign is that of the mean difference, so that swapped pairs reverse the effect; in the code, the component's
largest entry decides the sign. Source: arXiv 2406.11801, equations 9 to 13, and its code. Shapes: n pairs, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from titer.core.errors import TiterError
from titer.data.draws import drawn
from titer.data.example import Example
from titer.decoders.base import Decoder, State
from titer.models.activations import at_answer_end
from titer.models.hooks import Edit
from titer.models.lm import LM

Direction = Literal["pc1", "pc1+mean", "mean"]


class Form(NamedTuple):
    """Where and how activations are moved; each part is explained at the setting of that name."""

    site: Literal["resid", "mlp_out"]
    pool: Literal["last", "last4"]
    direction: Direction
    gate: Literal["none", "1+relu(cos)"]
    step: Literal["added", "unit"]


FORMS = {"paper": Form("resid", "last", "pc1", "none", "added"), "code": Form("mlp_out", "last4", "pc1+mean", "1+relu(cos)", "unit")}
LEAST = 2  # fewest pairs: one pair has no principal component


class SafeAlign(Decoder):
    """Moves activations by `alpha`, in one of two forms. A part that is given as a setting replaces that part of the form."""

    SOURCE = "arXiv 2406.11801, equations 9 to 13, and its code"
    VERSION = 1
    NEUTRAL = {"alpha": 0.0}

    alpha: float = Field(default=0.12, description="how far activations are moved; below 0: away from safe answers")
    form: Literal["paper", "code"] = Field(
        default="paper", description="which values the settings below have if they are None: the paper's, or its code's"
    )
    exemplars: int = Field(default=32, ge=LEAST, description="pairs it learns from at most, drawn at random")
    site: Literal["resid", "mlp_out"] | None = Field(default=None, description="which activation is moved, in every layer")
    pool: Literal["last", "last4"] | None = Field(
        default=None, description="which activations stand for an answer: the last token's, or the last four's"
    )
    direction: Direction | None = Field(default=None, description="the first component of the differences, their mean, or the sum of both")
    gate: Literal["none", "1+relu(cos)"] | None = Field(
        default=None, description="1+relu(cos): move an activation further, the more it points to harmful answers"
    )
    step: Literal["added", "unit"] | None = Field(
        default=None, description="added: x + alpha v; unit: by 0.1 alpha after scaling to unit norm"
    )

    @property
    def parts(self) -> Form:
        given = {name: value for name in Form._fields if (value := getattr(self, name)) is not None}
        return FORMS[self.form]._replace(**given)

    def check(self, examples: Sequence[Example]) -> None:
        if (many := len(_pairs(examples))) < LEAST:
            raise TiterError(
                f"safe_align learns from unsafe prompts with both answers, but only {many} such prompts are left for it",
                expected=f"at least {LEAST} with the columns comply and refuse, besides the prompts that are asked",
            )

    def fit(self, lm: LM, others: Mapping[str, LM], examples: Sequence[Example]) -> State:
        """Returns site -> the vector (D,) towards safe answers. Errors: as `check`; a layer that lacks the site."""
        self.check(examples)
        pairs = drawn(_pairs(examples), self.exemplars)
        names, last = lm.sites.everywhere(self.parts.site), {"last": 1, "last4": 4}[self.parts.pool]
        prompts = [e.prompt for e in pairs]
        safe = at_answer_end(lm, prompts, [str(e.refuse) for e in pairs], names, last)
        harmful = at_answer_end(lm, prompts, [str(e.comply) for e in pairs], names, last)
        differences = {name: safe[name].double() - harmful[name].double() for name in names}
        whole = direction(torch.cat(list(differences.values()), dim=1), self.parts.direction)
        return dict(zip(names, whole.float().split([one.shape[1] for one in differences.values()]), strict=True))

    def edits(self, lm: LM, state: State) -> dict[str, Edit]:
        if self.alpha == 0:
            return {}
        return {
            site: partial(moved, v=vector, alpha=self.alpha, gate=self.parts.gate, step=self.parts.step) for site, vector in state.items()
        }


def _pairs(examples: Sequence[Example]) -> list[Example]:
    return [e for e in examples if e.harmful and e.comply and e.refuse]


def direction(differences: torch.Tensor, kind: Direction) -> torch.Tensor:
    """Returns one vector (L D,) from the pairs' differences (n, L D): their mean, first principal component, or the sum of both.

    The component has norm 1 and the sign that points along the mean.
    """
    mean = differences.mean(0)
    if kind == "mean":
        return mean
    first = torch.linalg.svd(differences - mean, full_matrices=False).Vh[0]
    first = first if float(first @ mean) >= 0 else -first
    return first + mean if kind == "pc1+mean" else first


def moved(x: torch.Tensor, v: torch.Tensor, alpha: float, gate: str, step: str) -> torch.Tensor:
    """Returns x (B, T, D) moved along v (D,), then scaled back to its norm. A zero activation stays zero."""
    state, along = x.float(), v.to(x.device, torch.float32)
    norm = torch.linalg.vector_norm(state, dim=-1, keepdim=True)
    unit, way = state / norm.clamp(min=1e-12), along / torch.linalg.vector_norm(along).clamp(min=1e-12)
    more = 1 + (-(unit @ way)).clamp(min=0)[..., None] if gate == "1+relu(cos)" else 1.0
    there = unit + 0.1 * alpha * more * way if step == "unit" else state + alpha * more * along
    return (there * norm / torch.linalg.vector_norm(there, dim=-1, keepdim=True).clamp(min=1e-12)).to(x.dtype)
