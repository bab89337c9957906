"""How far did fine-tuning move the embeddings of the alignment data? The harmful embedding drift, layer by layer.

h is the output of a layer's attention (option: of its block) on prompt + answer as alignment trained them, dh = h_tuned - h_ref.
official: sum of ||dh||^2 over tokens, l2 its root, norm the mean over tokens of ||dh|| / ||h_ref||, cosine that of h_tuned and
h_ref. Source: arXiv 2402.01109 (Vaccine), section 3.2, figures 2 and 3; official is what its code prints, a sum of squares.
Padding never counts (the official code includes it), so `official` depends on the examples and not on their batches. It
grows with tokens and layers, so compare it only over the same ones; the official code uses 50 examples. That drift causes the break
is the paper's conjecture. Shapes: B examples, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch

from titer.core.errors import TiterError, unknown
from titer.data.encode import answer_ids, encode, prompt_ids
from titer.data.example import IGNORE, Batch, Example
from titer.models.activations import BUDGET, fitting
from titer.models.hooks import reading, replacing
from titer.models.likelihood import example_nll
from titer.models.lm import LM
from titer.models.modes import evaluating

VERSION = 1
BATCH = 64
SITES = ("attn_out", "resid")
ANSWERS = ("refuse", "comply")
PARTS = ("prompt", "answer", "all")
SUMS = ("official", "norm", "cosine")
Trained = Literal["refuse", "comply"]


@torch.inference_mode()
def drift(
    reference: LM, tuned: LM, examples: Sequence[Example], answer: Trained = "refuse", site: str = "attn_out", batch: int = BATCH
) -> pd.DataFrame:
    """Measures the drift per layer (from 1) and part (prompt, answer, all tokens): official, l2, norm, cosine, tokens. Totals: `whole`.

    The answer's tokens include its end token. The prompt's last token, which predicts the first of them, belongs to the prompt.
    Only the reference's activations of one batch are held at once; the tuned model's are compared as they are computed. Errors: no example,
    one without the answer, one beyond the window; models of unlike tokens, layers or widths.
    """
    if site not in SITES:
        unknown("site of drift", site, SITES)
    numbers, sizes = reference.sites.having(site), (reference.sites.layers, tuned.sites.layers)
    layers = len(numbers)
    if sizes[0] != sizes[1]:
        raise TiterError(f"drift between models of {sizes[0]} and {sizes[1]} layers", expected="a model and what was tuned from it")
    names = [f"{site}[{i}]" for i in numbers]
    sums = torch.zeros(layers, len(SUMS), len(PARTS), dtype=torch.float64)
    counts = torch.zeros(len(PARTS), dtype=torch.float64)
    with evaluating(reference.model), evaluating(tuned.model):
        for one in _batches((reference, tuned), examples, answer, batch, partial(fitting, reference, layers)):
            parts = _parts(one)
            counts += parts.sum((1, 2))
            sums += _compared(reference, tuned, one, names, parts)
    means = sums / counts
    rows = [
        {
            "layer": number + 1,
            "part": part,
            "official": float(sums[i, 0, k]),
            "l2": float(sums[i, 0, k]) ** 0.5,
            "norm": float(means[i, 1, k]),
            "cosine": float(means[i, 2, k]),
            "tokens": int(counts[k]),
        }
        for i, number in enumerate(numbers)
        for k, part in enumerate(PARTS)
    ]
    return pd.DataFrame(rows)


def whole(table: pd.DataFrame) -> pd.DataFrame:
    """Totals each part over all layers: official is the sum, l2 its root; norm and cosine are means (layers have the same tokens)."""
    found = table.groupby("part", sort=False).agg({"official": "sum", "norm": "mean", "cosine": "mean", "tokens": "first"}).reset_index()
    return found.assign(l2=found.official**0.5)[["part", "official", "l2", "norm", "cosine", "tokens"]]


@torch.inference_mode()
def alignment_loss(lm: LM, examples: Sequence[Example], answer: Trained = "refuse", batch: int = BATCH) -> pd.DataFrame:
    """Computes the alignment loss per input: input, nll (summed over the answer's tokens, nats), tokens, loss = nll / tokens.

    The paper's alignment loss is `token_mean` of this table; `loss` is for intervals over inputs. Errors as `drift`'s.
    """
    rows = []
    logits = 4 * lm.model.get_input_embeddings().num_embeddings  # bytes a token
    with evaluating(lm.model):
        for one in _batches((lm,), examples, answer, batch, lambda tokens: max(1, BUDGET // (logits * tokens))):
            here = one.to(lm.device)
            nll = example_nll(lm.model(**here.inputs(), use_cache=False).logits, here.labels).cpu()
            tokens = (one.labels != IGNORE).sum(1)
            rows.append(pd.DataFrame({"input": one.indices.numpy(), "nll": nll.double().numpy(), "tokens": tokens.numpy()}))
    table = pd.concat(rows).sort_values("input", ignore_index=True)
    return table.assign(loss=table.nll / table.tokens)


def token_mean(losses: pd.DataFrame) -> float:
    """Returns the mean negative log-likelihood per answer token, over all inputs: what training minimises."""
    return float(losses.nll.sum() / losses.tokens.sum())


def _batches(lms: Sequence[LM], examples: Sequence[Example], answer: Trained, size: int, room: Callable[[int], int]) -> Iterator[Batch]:
    """Yields prompts with their answers in batches of similar length, at most `room(tokens)` each. Errors: models read unlike tokens."""
    if answer not in ANSWERS:
        unknown("trained answer", answer, ANSWERS)
    missing = sum(getattr(e, answer) is None for e in examples)
    if not examples or missing:
        what = f"{missing} of {len(examples)} examples have no answer to {answer}" if examples else "no example"
        raise TiterError(what, expected=f"alignment data: requests, each with its {answer} answer")
    prompts, answers = [e.prompt for e in examples], [str(getattr(e, answer)) for e in examples]
    tokenizer = lms[0].tokenizer
    lengths = [len(h) + len(t) for h, t in zip(prompt_ids(tokenizer, prompts), answer_ids(tokenizer, answers), strict=True)]
    order = np.argsort(lengths, kind="stable")
    for chosen in np.array_split(order, range(step := max(1, min(size, room(max(lengths)))), len(order), step)):
        made = [encode(lm.tokenizer, [prompts[i] for i in chosen], [answers[i] for i in chosen], chosen, lm.window) for lm in lms]
        if not all(torch.equal(made[0].input_ids, other.input_ids) for other in made[1:]):
            raise TiterError("the two models read the same text as different tokens", expected="a model and what was tuned from it")
        yield made[0]


def _parts(batch: Batch) -> torch.Tensor:
    """Returns which tokens belong to the prompt, to the answer, and to either (no padding), (3, B, T) float64 on the CPU."""
    real = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    mine = (batch.labels != IGNORE).long() * real
    return torch.stack([real - mine, mine, real]).double()


def _compared(reference: LM, tuned: LM, batch: Batch, names: Sequence[str], parts: torch.Tensor) -> torch.Tensor:
    """Sums ||dh||^2, ||dh|| / ||h_ref|| and the cosine over each part's tokens, (layers, 3 sums, 3 parts)."""
    found: dict[str, torch.Tensor] = {}
    with reading(reference.sites, names) as kept:
        _forward(reference, batch)

        def compare(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
            def against(h: torch.Tensor) -> torch.Tensor:
                tokens = per_token(kept.pop(name).to(h.device), h).cpu()
                found[name] = torch.einsum("sbt,pbt->sp", tokens.double(), parts)
                return h

            return against

        with replacing(tuned.sites, {name: compare(name) for name in names}):
            _forward(tuned, batch)
    return torch.stack([found[name] for name in names])


def _forward(lm: LM, batch: Batch) -> None:
    lm.model(**batch.to(lm.device).inputs(), use_cache=False, logits_to_keep=1)


def per_token(reference: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    """Compares activations (B, T, D) per token: ||dh||^2, ||dh|| / ||h_ref||, cosine, (3, B, T); exactly 0, 0, 1 where nothing moved."""
    a, b = reference.float(), tuned.float()
    if a.shape != b.shape:
        raise TiterError(
            f"drift between embeddings of width {a.shape[-1]} and {b.shape[-1]}", expected="a model and what was tuned from it"
        )
    moved = torch.linalg.vector_norm(b - a, dim=-1)
    relative = moved / torch.linalg.vector_norm(a, dim=-1)
    still = moved == 0
    cosine = torch.cosine_similarity(a, b, dim=-1)
    return torch.stack([moved**2, relative.masked_fill(still, 0.0), cosine.masked_fill(still, 1.0)])
