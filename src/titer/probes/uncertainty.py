"""How sure is a model of given answers? Perplexity, entropy and the probability of the answer's tokens, teacher-forced.

Over an answer's T tokens: perplexity exp(-(1/T) sum log p(y_t)); entropy (1/T) sum_t H(p_t) over the full vocabulary, in
nats; probability (1/T) sum p(y_t). Source: arXiv 2409.19476 (the names of its equations 3 and 4 are swapped in print).
Its code differs: it takes the likeliest token of the raw logits for y_t, cuts the entropy to the ten likeliest tokens without
renormalising, and drops the last token (so a one-token answer divides by zero). Here y_t is the answer's own token and all T tokens count.
The cut entropy is reported as `entropy_top10_cut`, and renormalised, as an entropy over ten outcomes, as `entropy_top10`.
The answers are references (correct answers) or what the model itself wrote. Shapes: B answers, T tokens, V vocabulary, N answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from titer.core.errors import TiterError
from titer.core.stats import bootstrap
from titer.data.encode import Side, answer_ids, encode, prompt_ids
from titer.data.example import IGNORE
from titer.models.activations import BUDGET
from titer.models.lm import LM
from titer.models.modes import evaluating

VERSION = 1
BATCH = 64
TOP = 10
PER_TOKEN = ("nll", "entropy", "entropy_top10", "entropy_top10_cut", "probability")
MEASURES = ("perplexity", *PER_TOKEN[1:])


@torch.inference_mode()
def uncertainty(
    lm: LM, prompts: Sequence[str], answers: Sequence[str], end: bool = False, batch: int = BATCH, side: Side = "left"
) -> pd.DataFrame:
    """Measures each answer: input, tokens, nll (nats per token), perplexity, the entropies, probability; NaN for an answer without tokens.

    `end`: count the end token as one of the answer's, as for an answer that the model ended by itself. Errors: no prompt; unequal numbers
    of prompts and answers; a prompt and answer longer than the model's window.
    """
    if not prompts or len(prompts) != len(answers):
        raise TiterError(f"{len(prompts)} prompts and {len(answers)} answers", expected="one answer for each prompt, at least one")
    tails = [len(row) for row in answer_ids(lm.tokenizer, answers)]
    lengths = [len(head) + tail for head, tail in zip(prompt_ids(lm.tokenizer, prompts), tails, strict=True)]
    order = sorted(range(len(prompts)), key=lengths.__getitem__)
    kept = max(tails) + 1 if side == "left" else max(lengths)  # logits a row
    size = max(1, min(batch, BUDGET // (16 * kept * lm.model.get_input_embeddings().num_embeddings)))
    found = np.full((len(prompts), len(PER_TOKEN)), np.nan)
    counts = np.zeros(len(prompts), dtype=np.int64)
    with evaluating(lm.model):
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            width = max(tails[i] for i in chosen) + 1 if side == "left" else 0  # 0 keeps every place
            counts[chosen], found[chosen] = _batch(lm, chosen, prompts, answers, end, side, width)
    table = pd.DataFrame({"input": range(len(prompts)), "tokens": counts, **dict(zip(PER_TOKEN, found.T, strict=True))})
    with np.errstate(over="ignore"):
        return table.assign(perplexity=np.exp(table.nll))[["input", "tokens", "nll", *MEASURES]]


def _batch(
    lm: LM, chosen: Sequence[int], prompts: Sequence[str], answers: Sequence[str], end: bool, side: Side, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Measures the chosen answers in one batch; returns (tokens (B,), means over their tokens (B, measures))."""
    one = encode(lm.tokenizer, [prompts[i] for i in chosen], [answers[i] for i in chosen], np.asarray(chosen), lm.window, side)
    one = one.to(lm.device)
    logits = lm.model(**one.inputs(), use_cache=False, logits_to_keep=width).logits
    labels = one.labels[:, -logits.shape[1] :]
    wanted = labels[:, 1:].clone()
    if not end:
        last = (wanted != IGNORE).flip(1).cumsum(1).flip(1) == 1  # the end token and what pads behind it
        wanted = wanted.masked_fill(last, IGNORE)
    mine = wanted != IGNORE
    row = torch.nonzero(mine)[:, 0]
    values = token_measures(logits[:, :-1][mine], wanted[mine])
    sums = torch.zeros(len(chosen), len(PER_TOKEN), dtype=torch.float64).index_add_(0, row.cpu(), values.double().cpu())
    tokens = mine.sum(1).cpu()
    return tokens.numpy(), (sums / tokens[:, None]).numpy()  # 0 / 0 is NaN: an answer without tokens has no measure


def token_measures(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes each token's nll, entropy, entropy_top10, entropy_top10_cut and probability, (N, 5), from logits (N, V), targets (N,)."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    p = log_p.exp()
    own = log_p.gather(1, targets[:, None])[:, 0]
    top = p.topk(min(TOP, p.shape[1]), dim=-1).values
    entropies = [torch.special.entr(some).sum(-1) for some in (p, top / top.sum(-1, keepdim=True), top)]
    return torch.stack([-own, *entropies, own.exp()], dim=1)


def summary(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Averages each measure over the answers, with its bootstrap interval, and n; answers without tokens are left out."""
    known = table[table.tokens > 0]
    rows = []
    for measure in MEASURES:
        found = bootstrap(np.mean, [known[measure]], seed) if len(known) else (np.nan,) * 3
        rows.append({"measure": measure, **dict(zip(("value", "low", "high"), found, strict=True)), "n": len(known)})
    return pd.DataFrame(rows)
