"""Soft-token suffix: free embeddings, found by gradient, between the request's text and the token that ends it.

`n` embeddings start as 0.01 N(0, 1) and are moved for `steps` steps against the gradient of the compliant answer's cross-entropy. Each
token's gradient is scaled to l2 norm 1, the step's size is 2 eps / steps, and each token is projected to ||delta|| <= eps, where eps is
the mean norm of the batch's token embeddings. `universal`: one suffix is found on the examples given to `fit` and used on others;
otherwise each request gets its own, found on that request. `random`: the control, the same number of tokens with the same norms in
random directions. On real text one suffix is found for all requests, towards the answers that the data give (canaries). Free
embeddings measure a risk; nobody can send them to a served model. Source: arXiv 2407.10264, section 6 and figure 7 (10 steps).
Shapes: B requests, n tokens, D width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field

from titer.attacks.base import Attack, Attempt, State
from titer.core.errors import TiterError
from titer.data.draws import seed_of
from titer.data.encode import encode
from titer.data.example import Example
from titer.data.refusals import refuses
from titer.data.world import World
from titer.models.likelihood import example_nll
from titer.models.lm import LM
from titer.models.modes import frozen
from titer.models.suffix import inserted, tail

BATCH = 256
FIRST = 0.01
LOGITS = 2**27  # most logits of one pass: half a gigabyte in float32


class SoftTokens(Attack):
    """Inserts learned embeddings into each request: one suffix for all or one each; with `random`, random directions as the control."""

    SOURCE = "arXiv 2407.10264, soft-token suffix (section 6)"
    VERSION = 1

    n: int = Field(default=2, ge=1, le=4096, description="tokens of the suffix")
    steps: int = Field(default=10, ge=1, le=100000, description="gradient steps; paper: 10")
    universal: bool = Field(default=False, description="one suffix for all requests, instead of one for each")
    random: bool = Field(default=False, description="random directions of the same norms, the control")

    @property
    def further_setting(self) -> str:
        return "" if self.universal else "universal=true"

    def fit(self, lm: LM, examples: Sequence[Example]) -> State:
        """Returns {"suffix": (B, n, D), or (1, n, D) if universal}, on the CPU.

        Errors: a request without an answer to move towards; most answers refuse.

        Without `universal`, row i belongs to example i, and `attempts` must be given the same examples in the same order.
        """
        if unanswered := sum(e.comply is None for e in examples):
            raise TiterError(
                f"soft_tokens moves a model towards given answers, and {unanswered} of {len(examples)} requests to learn from have none",
                expected="canaries (titer evaluate MODEL --canary FILE), or a column `comply`",
            )
        if 2 * (away := sum(refuses(e.comply or "", e.prompt) for e in examples)) > len(examples):
            raise TiterError(
                f"soft_tokens moves a model towards given answers, and {away} of {len(examples)} refuse",
                expected="answers that comply, in the column `comply`",
            )
        chunks = [examples] if self.universal else [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
        with frozen(lm.model):
            found = torch.cat([self._found(lm, chunk, number) for number, chunk in enumerate(chunks)])
        return {"suffix": self.turned(found) if self.random else found}

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        suffix = state["suffix"]
        if not self.universal and len(suffix) != len(examples):
            raise ValueError(f"{len(suffix)} suffixes for {len(examples)} requests: give the requests that fit was given")
        kind = f"soft_{self.n}" + ("_universal" if self.universal else "") + ("_random" if self.random else "")
        return [Attempt(replace(e, kind=kind), suffix=suffix[0 if self.universal else i]) for i, e in enumerate(examples)]

    def _found(self, lm: LM, examples: Sequence[Example], number: int) -> torch.Tensor:
        batch = encode(lm.tokenizer, [e.prompt for e in examples], [e.comply or "" for e in examples], torch.arange(len(examples)).numpy())
        batch = batch.to(lm.device)
        mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
        at = (batch.labels >= 0).int().argmax(1) - tail(lm.tokenizer)  # the answer begins right after the prompt's last token
        embedded = lm.model.get_input_embeddings()(batch.input_ids).detach()
        bound = torch.linalg.vector_norm(embedded, dim=2)[mask.bool()].mean()
        rows = 1 if self.universal else len(examples)
        rng = torch.Generator().manual_seed(seed_of(self.seed, "soft tokens", self.n, number) % 2**63)
        suffix = FIRST * torch.randn(rows, self.n, embedded.shape[2], generator=rng).to(embedded)
        for _ in range(self.steps):
            gradient = self._gradient(lm, embedded, mask, at, batch.labels, suffix)
            suffix = projected(suffix - 2 * bound / self.steps * unit(gradient), bound)
        return suffix.cpu()

    def _gradient(
        self, lm: LM, embedded: torch.Tensor, mask: torch.Tensor, at: torch.Tensor, labels: torch.Tensor, suffix: torch.Tensor
    ) -> torch.Tensor:
        """Returns the gradient of the summed cross-entropy, a few rows at a time to save memory; one suffix for all gets the sum."""
        rows = max(1, LOGITS // (embedded.shape[1] * lm.model.get_input_embeddings().weight.shape[0]))
        found = torch.zeros_like(suffix)
        for i in range(0, len(embedded), rows):
            part = slice(i, i + rows)
            mine = slice(None) if self.universal else part
            own = suffix[mine].detach().requires_grad_(True)
            inputs = inserted(embedded[part], mask[part], at[part], own.expand(len(embedded[part]), -1, -1))
            logits = lm.model(**inputs, use_cache=False).logits
            total = example_nll(logits, moved_labels(labels[part], at[part], self.n)).sum()
            found[mine] += torch.autograd.grad(total, own)[0]
        return found

    def turned(self, suffix: torch.Tensor) -> torch.Tensor:
        """Returns the control of a suffix: each token is turned into a random direction, and its norm is kept."""
        rng = torch.Generator().manual_seed(seed_of(self.seed, "random soft tokens", self.n) % 2**63)
        norms = torch.linalg.vector_norm(suffix, dim=2, keepdim=True)
        return norms * unit(torch.randn(suffix.shape, generator=rng))


def unit(tokens: torch.Tensor) -> torch.Tensor:
    """Returns each token (last dimension) scaled to l2 norm 1; a zero token stays zero."""
    return tokens / torch.linalg.vector_norm(tokens, dim=-1, keepdim=True).clamp(min=1e-30)


def projected(tokens: torch.Tensor, bound: torch.Tensor | float) -> torch.Tensor:
    """Returns each token projected into the l2 ball of radius `bound`."""
    norms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    return tokens * (bound / norms.clamp(min=1e-30)).clamp(max=1.0)


def moved_labels(labels: torch.Tensor, at: torch.Tensor, n: int) -> torch.Tensor:
    """Returns labels (B, T + n): in each row, n places with label -100 are inserted before the row's place `at` (B,)."""
    rows, width = labels.shape
    place = torch.arange(width + n, device=labels.device)[None].expand(rows, -1)
    begin = at[:, None]
    source = torch.where(place < begin, place, (place - n).clamp(min=0))
    inside = (place >= begin) & (place < begin + n)
    return labels.gather(1, source).masked_fill(inside, -100)
