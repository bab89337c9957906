"""Which option does the model find likeliest? Multiple choice by log-likelihood, without any text being generated.

The prompt is the question with its lettered options, and each letter is an answer (MMLU, arXiv 2009.03300). An answer's log-probability
is the sum over its tokens after the prompt, without the end token. A question counts as right only if the right option beats every
other; a tie counts as wrong. Where every option is one token, one forward pass per question is enough for all of them.
Shapes: B rows, T tokens, K kept places, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from titer.core.errors import TiterError
from titer.data.choices import Question
from titer.data.encode import check_length, continued, open_ids, pad, prompt_ids
from titer.data.example import positions
from titer.data.templates import templated
from titer.data.turns import changed
from titer.models.lm import LM
from titer.models.modes import evaluating

VERSION = 2
BATCH_TOKENS = 4096  # tokens of one forward pass, padding counted
CALL = "Answer:"  # for a model without a chat template


def asked(question: Question, templated: bool = True) -> str:
    """Writes a question as a prompt; for a model without a chat template it ends with "Answer:" instead of an instruction."""
    listed = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, question.options, strict=False)]
    call = "\n\nAnswer with the letter of the right option only." if templated else f"\n{CALL}"
    return changed(question.text, lambda text: "\n".join([text, *listed]) + call)


def choices(lm: LM, questions: Sequence[Question], batch_tokens: int = BATCH_TOKENS) -> pd.DataFrame:
    """Scores every option of every question. Returns a row for each: question, option, right, tokens, total (log-probability, nats).
    Errors: no question; one longer than the window."""
    if not questions:
        raise TiterError("no question", expected="at least one")
    heads, tails = fitting(lm.tokenizer, lm.window, questions)
    rows = [(i, k, questions[i].right == k, len(tail)) for i, own in enumerate(tails) for k, tail in enumerate(own)]
    table = pd.DataFrame(rows, columns=["question", "option", "right", "tokens"])
    return table.assign(total=_totals(lm, heads, tails, batch_tokens))


def picked(table: pd.DataFrame) -> pd.DataFrame:
    """Summarises the table of `choices` per question: options (the likeliest), right (whether the right one alone is likeliest)."""
    rows = []
    for question, own in table.groupby("question", sort=True):
        best = own[own.total == own.total.max()]
        rows.append({"question": question, "options": best.option.tolist(), "right": len(best) == 1 and bool(best.right.iloc[0])})
    return pd.DataFrame(rows)


def fitting(tokenizer: Any, window: int | None, questions: Sequence[Question]) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Returns the ids of each question and of its options' letters after it. Only the tokenizer is needed. Errors: beyond the window."""
    chat = templated(tokenizer)
    prompts = [asked(question, chat) for question in questions]
    heads, tails = prompt_ids(tokenizer, prompts), _tails(tokenizer, [ascii_uppercase[: len(q.options)] for q in questions], chat)
    for prompt, head, own in zip(prompts, heads, tails, strict=True):
        check_length(len(head) + max(map(len, own)), window, prompt)
    return heads, tails


def _tails(tokenizer: Any, said: Sequence[str], templated: bool) -> list[list[list[int]]]:
    """Returns each letter's ids after its prompt: in the chat template's own form, or after "Answer:" and a space."""
    letters = sorted(set("".join(said)))
    ids = open_ids(tokenizer, letters) if templated else continued(tokenizer, CALL, [f" {letter}" for letter in letters])
    if not all(ids):
        raise TiterError("an option without a token", expected="options that the tokenizer knows")
    of = dict(zip(letters, ids, strict=True))
    return [[of[letter] for letter in own] for own in said]


def _totals(lm: LM, heads: list[list[int]], tails: list[list[list[int]]], batch_tokens: int) -> np.ndarray:
    """Computes the log-probability of every option, question by question, (options,)."""
    work: list[tuple[list[int], list[list[int]], list[int]]] = []  # prompt, tails scored behind it, their places in the result
    place = 0
    for head, own in zip(heads, tails, strict=True):
        numbers = list(range(place, place + len(own)))
        place += len(own)
        if all(len(tail) == 1 for tail in own):
            work.append((head, own, numbers))
        else:
            work += [(head, [tail], [number]) for tail, number in zip(own, numbers, strict=True)]
    order = sorted(range(len(work)), key=lambda i: len(work[i][0]) + len(work[i][1][0]), reverse=True)
    found = np.empty(place)
    with evaluating(lm.model):
        start = 0
        while start < len(order):
            longest = len(work[order[start]][0]) + len(work[order[start]][1][0])
            size = max(1, batch_tokens // longest)
            for group in lm.padding.batches([head + tails[0][:-1] for head, tails, _ in work], order[start : start + size], size, "left"):
                chosen = [work[i] for i in group]
                for (_, _, numbers), values in zip(chosen, _scores(lm, chosen), strict=True):
                    found[numbers] = values
            start += size
    return found


@torch.inference_mode()
def _scores(lm: LM, chosen: Sequence[tuple[list[int], list[list[int]], list[int]]]) -> list[list[float]]:
    """Computes the log-probabilities of the tails in each row of work. Rows are left-padded, so only the last K places need logits."""
    rows = [head + tails[0][:-1] for head, tails, _ in chosen]  # nothing is predicted behind an answer's last token
    kept = max(len(tails[0]) for _, tails, _ in chosen)
    ids, mask = (t.to(lm.device) for t in pad(rows, lm.tokenizer.pad_token_id, "left"))
    found = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, logits_to_keep=kept).logits
    chances_BKV = torch.log_softmax(found[:, -kept:].float(), dim=-1)
    single = [tails for _, tails, _ in chosen]
    if kept == 1:
        wanted = pad_sequence([torch.tensor([tail[0] for tail in tails]) for tails in single], batch_first=True).to(lm.device)
        scored = chances_BKV[:, -1].gather(1, wanted).cpu()
        return [row[: len(tails)].tolist() for row, tails in zip(scored, single, strict=True)]
    wanted, real = (t.to(lm.device) for t in pad([tails[0] for tails in single], 0, "left"))
    summed = (chances_BKV.gather(2, wanted[..., None])[..., 0] * real).sum(1).cpu()
    many = [tails if len(tails) > 1 else None for tails in single]
    last = chances_BKV[:, -1].cpu() if any(many) else None
    return [
        [float(value)] if tails is None or last is None else last[i, [tail[0] for tail in tails]].tolist()
        for i, (value, tails) in enumerate(zip(summed, many, strict=True))
    ]
