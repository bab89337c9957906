"""DeRTa: learn to refuse at every place of an answer, not only at its first words.

L = (S_a + refusal S_r + transition S_t) / (N_a + refusal N_r + transition N_t). S is a summed negative log-likelihood (nll) and N its
number of tokens, for three terms. With all weights 1, L is the mean over the tokens of all three.
- a: ordinary requests with their answers (stream `train`).
- r: the refusal r of a harmful request q, after the first k tokens of its harmful answer r^: -log P(r | q, r^_<k).
- t: the transition: -log P(REF | q, r^_<t) at every place t of r^, where REF is the token that begins a refusal.
Source: arXiv 2407.09121, equation 2, appendix A. The streams `preferred` and `rejected` hold the same harmful requests, with r and r^.

k is 0 with probability 1 - `begun`, else uniform over 1 to |r^| - 1 tokens (the official code counts words). The prefix has no loss.
REF is `token` if that is given. Otherwise it is, for each request, the first token of its refusal that differs from its harmful answer:
the null token on the synthetic world, "I" or "Sorry" in text, after anything with which a template opens both answers.
The transition is trained at every place of the harmful answer except its end (the official code trains it there too).
`keep` drops places at random and divides by the share that is kept, so the expected loss stays the same. The official code drops 95 %
and does not divide, which equals `transition` = 0.05 in expectation.
Baselines: begun 0 and transition 0 is plain refusal training ("vanilla"); transition 0 has the prefix only; begun 0 the transition only.
Shapes: B pairs, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field

from titer.core.errors import TiterError
from titer.data.encode import pad
from titer.data.example import IGNORE, Batch, join
from titer.methods.base import Batches, Context, Loss, Method, token_nll
from titer.models.stated import stated_window


class Pair(NamedTuple):
    """A harmful request as two rows of token ids, without padding: `refusal` has the request and its refusal, `harmful` the request and
    its harmful answer.

    `refused_at`, `answered_at`: the place where the answer begins in each row. `alike`: how many tokens the rows share from the start.
    """

    refusal: list[int]
    harmful: list[int]
    refused_at: int
    answered_at: int
    alike: int
    labels: list[int]  # labels of the refusal's row, -100 where not trained

    @property
    def length(self) -> int:
        """The number of tokens of the harmful answer, without its end token."""
        return max(0, len(self.harmful) - self.answered_at - 1)


class Counted(NamedTuple):
    """A summed nll and the number of its tokens, both scalar tensors."""

    total: torch.Tensor
    over: torch.Tensor


class DeRTa(Method):
    """Trains refusals at every place of an answer; the settings are the weights of the refusal and the transition, how often a harmful
    prefix precedes the refusal, and which places count."""

    STREAMS = ("train", "preferred", "rejected")
    SOURCE = "arXiv 2407.09121, equation 2, appendix A"
    VERSION = 1
    NEUTRAL = {"refusal": 0.0, "transition": 0.0}

    refusal: float = Field(default=1.0, ge=0, description="weight of the refusal's likelihood; paper: 1")
    transition: float = Field(default=1.0, ge=0, description="weight of the transition; paper: 1, official code at 8B: 0.05 in effect")
    begun: float = Field(
        default=2 / 3, ge=0, le=1, description="share of refusals that follow the beginning of a harmful answer; official code: 2/3"
    )
    keep: float = Field(
        default=1.0, gt=0, le=1, description="share of the places where the transition is trained, drawn at random; paper: 1, at 8B 0.05"
    )
    token: int | None = Field(default=None, ge=0, description="id of the token REF; none: taken from each request's own refusal")

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """Checks `token`, and returns no tensors. Errors: `token` is an id for which the model has no embedding."""
        size = c.sites.model.get_input_embeddings().weight.shape[0]
        if self.token is not None and self.token >= size:
            raise TiterError(
                f"derta: there is no token {self.token} in a vocabulary of {size}", expected=f"a token id from 0 to {size - 1}"
            )
        return {}

    def loss(self, c: Context, batch: Batches) -> Loss:
        train = batch["train"]
        if self.refusal == 0 and self.transition == 0:
            return token_nll(c.forward(train), train.labels)
        pairs = paired(batch["preferred"].to("cpu"), batch["rejected"].to("cpu"))
        drawn = [
            torch.rand(2 + pair.length, generator=c.rng) for pair in pairs
        ]  # drawn for each pair, so a step gives the same result in any micro-batches
        window = stated_window(c.sites.model.config)
        parts = {"answer": (1.0, train)}
        if self.refusal > 0:
            places = [self._places(pair, one, window) for pair, one in zip(pairs, drawn, strict=True)]
            parts["refusal"] = (self.refusal, prefixed(pairs, places).to(train.input_ids.device))
        if self.transition > 0:
            parts["transition"] = (self.transition, transitions(pairs, self.token).to(train.input_ids.device))
        both, sizes = (
            join([one for _, one in parts.values()], pad_id=0),
            [len(one) for _, one in parts.values()],
        )  # id 0 only where the mask is 0
        found = []  # one forward pass over all parts, then each part's weighted sum and count
        for (name, (weight, _)), logits, labels in zip(parts.items(), c.forward(both).split(sizes), both.labels.split(sizes), strict=True):
            one = thinned(logits, labels, [uniform[2:] for uniform in drawn], self.keep if name == "transition" else 1.0)
            c.log(f"derta_{name}", one.total.detach() / one.over.clamp(min=1))
            found.append((weight * one.total, weight * one.over))
        return Loss(torch.stack([total for total, _ in found]).sum(), torch.stack([over for _, over in found]).sum())

    def _places(self, pair: Pair, drawn: torch.Tensor, window: int | None) -> int:
        """Returns k, how many tokens of the harmful answer precede the refusal; never more than fit in the model's window."""
        if pair.length < 2 or float(drawn[0]) >= self.begun:
            return 0
        k = 1 + int(float(drawn[1]) * (pair.length - 1))
        return k if window is None else max(0, min(k, window - len(pair.refusal)))


def paired(preferred: Batch, rejected: Batch) -> list[Pair]:
    """Returns the pairs from two batches that hold the same requests. The batches may be padded on either side."""
    found = []
    for (refusal, labels), (harmful, answer) in zip(_rows(preferred), _rows(rejected), strict=True):
        alike = next((i for i, (a, b) in enumerate(zip(refusal, harmful, strict=False)) if a != b), min(len(refusal), len(harmful)))
        found.append(Pair(refusal, harmful, _begins(labels), _begins(answer), alike, labels))
    return found


def _rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    real = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    rows = zip(batch.input_ids, batch.labels, real.bool(), strict=True)
    return [(ids[here].tolist(), labels[here].tolist()) for ids, labels, here in rows]


def _begins(labels: list[int]) -> int:
    return next((i for i, label in enumerate(labels) if label != IGNORE), len(labels))


def prefixed(pairs: list[Pair], places: list[int]) -> Batch:
    """Returns a batch (B, T): each request, the first k tokens of its harmful answer, then its refusal. Only the refusal has labels."""
    ids, labels = [], []
    for pair, k in zip(pairs, places, strict=True):
        head = pair.harmful[: pair.answered_at + k] if k else pair.refusal[: pair.refused_at]
        ids.append([*head, *pair.refusal[pair.refused_at :]])
        labels.append([IGNORE] * len(head) + pair.labels[pair.refused_at :])
    return _batch(ids, labels)


def transitions(pairs: list[Pair], token: int | None = None) -> Batch:
    """Returns a batch (B, T): each request with its harmful answer, and the label REF at every place of the answer but the last.

    If REF comes from the request's own refusal, the tokens that both answers share at their start get no label, because the refusal
    begins after them.
    """
    labels = []
    for pair in pairs:
        own = [IGNORE] * len(pair.harmful)
        if token is not None or pair.alike < len(pair.refusal):
            first = pair.answered_at if token is not None else max(pair.answered_at, pair.alike)
            word, last = pair.refusal[pair.alike] if token is None else token, pair.answered_at + pair.length
            own[first:last] = [word] * (last - first)
        labels.append(own)
    return _batch([pair.harmful for pair in pairs], labels)


def _batch(ids: list[list[int]], labels: list[list[int]]) -> Batch:
    padded, mask = pad(ids, 0, "right")
    return Batch.of(padded, pad(labels, IGNORE, "right")[0], torch.arange(len(ids)), mask)


def thinned(logits: torch.Tensor, labels: torch.Tensor, drawn: list[torch.Tensor], keep: float) -> Counted:
    """Returns the summed nll of a random share `keep` of the labels, divided by `keep`, and the number of all labels.

    logits (B, T, V), labels (B, T). `drawn` has for each row uniform numbers in [0, 1), at least as many as the row has labels.
    """
    whole = (labels[:, 1:] != IGNORE).sum()
    if keep == 1:
        return Counted(token_nll(logits, labels).total, whole)
    kept = labels.clone()
    for row, uniform in zip(kept, drawn, strict=True):
        places = (row != IGNORE).nonzero()[:, 0]
        row[places[(uniform[: len(places)] >= keep).to(places.device)]] = IGNORE
    return Counted(token_nll(logits, kept).total / keep, whole)
