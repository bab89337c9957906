"""Which option does the model find likeliest? Multiple choice by log-likelihood, without any text being generated.

Form "letter" (MMLU, arXiv 2009.03300): the question with its lettered options, and each letter as the answer. Form "text":
the question alone, and each option's own text as the answer. An answer's log-probability is the sum over its tokens behind
the prompt, its end token left out; per token and per character it is divided by the option's length, without which short
texts win. A question counts as right only if the right option beats every other: a tie is no choice. Accuracy stands beside
chance and beside the share of the most frequent right place, which a model that always says the same letter reaches.
Where every option is one token, one forward pass a question serves them all. Shapes: B rows, T tokens, K kept places, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from titer.core.errors import TiterError
from titer.core.stats import Interval, wilson
from titer.data.choices import Question
from titer.data.encode import check_length, continued, open_ids, pad, prompt_ids
from titer.data.example import positions
from titer.data.templates import templated
from titer.data.turns import changed
from titer.models.lm import LM
from titer.models.modes import evaluating

VERSION = 2
BATCH_TOKENS = 4096  # tokens of one forward pass, padding counted
Form = Literal["letter", "text"]
By = Literal["total", "per_token", "per_character"]
CALL = "Answer:"  # for a model without a chat template
CALLS = {"letter": "Answer with the letter of the right option only.", "text": "Answer the question briefly."}


class Score(NamedTuple):
    """Accuracy with its Wilson interval; what guessing, and always naming the most frequent place, would reach."""

    accuracy: Interval
    chance: float
    most_frequent: float
    questions: int
    tied: int


def asked(question: Question, form: Form = "letter", templated: bool = True) -> str:
    """A question as a prompt; a model without a chat template gets "Answer:" at its end instead of an instruction."""
    listed = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, question.options, strict=False)] if form == "letter" else []
    call = f"\n\n{CALLS[form]}" if templated else f"\n{CALL}"
    return changed(question.text, lambda text: "\n".join([text, *listed]) + call)


def choices(lm: LM, questions: Sequence[Question], form: Form = "letter", batch_tokens: int = BATCH_TOKENS) -> pd.DataFrame:
    """Per question and option: question, option, right, tokens, total (nats), per_token, per_character.

    Errors: no question; a question longer than the window.
    """
    if not questions:
        raise TiterError("no question", expected="at least one")
    said = _said(questions, form)
    heads, tails = fitting(lm.tokenizer, lm.window, questions, form)
    totals = _totals(lm, heads, tails, batch_tokens)
    rows = [(i, k) for i, own in enumerate(tails) for k in range(len(own))]
    lengths = np.array([len(tails[i][k]) for i, k in rows])
    letters = np.array([len(said[i][k]) for i, k in rows])
    return pd.DataFrame(
        {
            "question": [i for i, _ in rows],
            "option": [k for _, k in rows],
            "right": [questions[i].right == k for i, k in rows],
            "tokens": lengths,
            "total": totals,
            "per_token": totals / lengths,
            "per_character": totals / letters,
        }
    )


def fitting(
    tokenizer: Any, window: int | None, questions: Sequence[Question], form: Form = "letter"
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Ids of each question and of its options behind it; the tokenizer is enough. Errors: a question longer than the window."""
    chat = templated(tokenizer)
    prompts = [asked(question, form, chat) for question in questions]
    heads, tails = prompt_ids(tokenizer, prompts), _tails(tokenizer, _said(questions, form), chat)
    for prompt, head, own in zip(prompts, heads, tails, strict=True):
        check_length(len(head) + max(map(len, own)), window, prompt)
    return heads, tails


def _said(questions: Sequence[Question], form: Form) -> list[list[str]]:
    """What an answer says, option by option: its letter, or its own text."""
    return [list(ascii_uppercase[: len(q.options)]) if form == "letter" else list(q.options) for q in questions]


def accuracy(table: pd.DataFrame, by: By = "total") -> Score:
    """The share of questions whose right option has the largest value of `by`, alone."""
    best = table.groupby("question")[by].transform("max")
    top = table[table[by] == best]
    tied = top.groupby("question").size() > 1
    right = top.groupby("question")["right"].all() & ~tied
    options = table.groupby("question").size()
    places = Counter(table.loc[table["right"], "option"])
    return Score(
        wilson(int(right.sum()), len(right)),
        float((1 / options).mean()),
        max(places.values()) / len(options),
        len(options),
        int(tied.sum()),
    )


def _tails(tokenizer: Any, said: Sequence[Sequence[str]], templated: bool) -> list[list[list[int]]]:
    """Each option's ids behind its prompt: in the chat template's own form, or behind "Answer:" and a blank."""
    texts = list(dict.fromkeys(text for own in said for text in own))
    ids = open_ids(tokenizer, texts) if templated else continued(tokenizer, CALL, [f" {text}" for text in texts])
    if not all(ids):
        raise TiterError("an option without a token", expected="options that the tokenizer knows")
    of = dict(zip(texts, ids, strict=True))
    return [[of[text] for text in own] for own in said]


def _totals(lm: LM, heads: list[list[int]], tails: list[list[list[int]]], batch_tokens: int) -> np.ndarray:
    """The log-probability of every option, question by question, (options,)."""
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
    """Log-probabilities of the tails of each row of work; left-padded, so that only the last K places need logits."""
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
