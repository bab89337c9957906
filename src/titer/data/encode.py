"""Text examples as token batches: the prompt through the chat template, then the answer. Only the answer is trained.

The trained text is what the chat template makes of the whole conversation, from the end of the prompt (where generation begins) up to and
including the token that ends the answer's turn. What a template writes after that token is left out. The boundary between prompt and
answer is exact: both are encoded separately and joined, so no tokenizer merge can move it. The answer's ids are those that it has after
the prompt, if the prompt's ids are unchanged before it (so a tokenizer that begins each text with a space adds none); otherwise those
that it has alone. If there is no template, or if it writes no assistant turn after its own prompt, the answer is its plain text and the
end-of-sequence token. A prompt may be a conversation (`turns.py`). Shapes: B examples, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from titer.core.errors import TiterError, visible
from titer.data import thoughts
from titer.data.cut import SHARE, Short, shortened
from titer.data.example import IGNORE, Batch, Indices
from titer.data.templates import answered, place, templated, texts
from titer.data.turns import Turn, joined, turns, written

Side = Literal["left", "right"]
VERSION = 1
EMBEDDED = "embedded"  # attribute of a tokenizer: the number of tokens for which its model has embeddings
REQUEST = Turn("user", "x")  # a request for cases in which only the answer's form matters


def prompt_texts(tokenizer: Any, prompts: Sequence[str], raw: bool = False) -> list[str]:
    """Returns each prompt as the model reads it: written by the chat template; without one, or with `raw`, by `turns.joined`."""
    said = [turns(prompt) for prompt in prompts]
    return texts(tokenizer, said) if templated(tokenizer) and not raw else [joined(one) for one in said]


def prompt_text(tokenizer: Any, prompt: str) -> str:
    """Returns one prompt as the model reads it (see `prompt_texts`)."""
    return prompt_texts(tokenizer, [prompt])[0]


def prompt_ids(tokenizer: Any, prompts: Sequence[str], raw: bool = False) -> list[list[int]]:
    """Returns each prompt's token ids, written with the chat template unless `raw`. No special token is added twice."""
    written = prompt_texts(tokenizer, prompts, raw)
    special = raw or not templated(tokenizer)
    ids = token_ids(tokenizer, written, special) if written else []
    return _embedded(tokenizer, ids, prompts)


def answer_ids(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """Returns each answer's token ids as the chat template writes it, with the token that ends the turn (or else the sequence)."""
    head, found = _spoken(tokenizer, answers)
    ids = continued(tokenizer, head, [one.text for one in found])
    ends = [[] if one.end is None or row[-1:] == [one.end] else [one.end] for row, one in zip(ids, found, strict=True)]
    return _embedded(tokenizer, [row + end for row, end in zip(ids, ends, strict=True)], answers)


def open_ids(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """Returns each answer's token ids without an end token, for the beginning of an answer or for an option of a question."""
    head, found = _spoken(tokenizer, answers)
    return continued(tokenizer, head, [one.text[: one.own] for one in found])


def begin_ids(tokenizer: Any, answers: Sequence[str], marks: Sequence[str], raw: bool = False) -> list[list[int]]:
    """Returns the token ids of each answer's beginning; [] for an empty one. `marks`: how each prompt opened a thought ("": it did not).

    The text begins the answer, not the thought. So an open thought is closed as an empty one, and whatever the template writes for the
    thought of an answer is put before the text; after a `raw` prompt, nothing is.
    """
    before = _before(tokenizer) if thoughts.thinks(tokenizer) and not raw else ""
    begun = [thoughts.empty(mark) if mark else before for mark in marks]
    pairs = zip(begun, answers, strict=True)
    texts = [f"{lead}{answer}" if answer and not thoughts.OPENS.match(answer) else answer for lead, answer in pairs]
    return token_ids(tokenizer, texts)


def token_ids(tokenizer: Any, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    """Returns the token ids of each text, without or with the special tokens that the tokenizer adds. Errors: it cannot read a text."""
    found: list[list[int]] = _encoded(tokenizer, texts, add_special_tokens=special)["input_ids"]
    return found


def _encoded(tokenizer: Any, texts: Sequence[str], **how: bool) -> Any:
    """Returns what a tokenizer makes of texts. Errors: it cannot read one; for example, it lacks its own token for unknown words."""
    try:
        return tokenizer(list(texts), **how)
    except Exception as error:  # noqa: BLE001  tokenizers raises a bare Exception
        raise TiterError(
            f"the tokenizer cannot read a text: {visible(f'{type(error).__name__}: {error}', 200)}",
            next_step="correct its tokenizer.json, such as the token for unknown words (unk_token).",
        ) from None


def _before(tokenizer: Any) -> str:
    """Returns what the template writes before an answer in place of a thought: an empty thought, the mark of the answer's start, or ""."""
    _, (one,) = _spoken(tokenizer, [REQUEST.content])
    lead = one.text[: one.own].removesuffix(REQUEST.content)
    return lead if thoughts.SPEAKS.match(lead) or thoughts.OPENS.match(lead) else ""


def end_id(tokenizer: Any) -> int | None:
    """Returns the id of the token that ends an answer: the template's end of turn, else the end of sequence; None if there is neither."""
    return _spoken(tokenizer, [REQUEST.content])[1][0].end


def continued(tokenizer: Any, head: str, texts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids that each text has after `head`; if a token would span the boundary, those of the text encoded alone."""
    alone = token_ids(tokenizer, texts)
    if not head:
        return alone
    first, *whole = token_ids(tokenizer, [head, *(head + text for text in texts)])
    return [row[len(first) :] if row[: len(first)] == first else own for row, own in zip(whole, alone, strict=True)]


def _embedded(tokenizer: Any, ids: list[list[int]], texts: Sequence[str]) -> list[list[int]]:
    """Checks ids and returns them unchanged. Errors: an id for which the model has no embedding (if the tokenizer's EMBEDDED is known)."""
    most = getattr(tokenizer, EMBEDDED, None)
    for row, text in zip(ids, texts, strict=True):
        if most is not None and row and max(row) >= most:
            token = tokenizer.convert_ids_to_tokens(max(row))
            raise TiterError(
                f"the tokenizer writes the token {visible(repr(token), 60)}, for which the model has no embedding: {visible(text, 60)!r}",
                expected=f"tokens with ids below {most}",
                next_step="leave out that row, or give the model with the tokenizer it was trained with.",
            )
    return ids


class Spoken(NamedTuple):
    """An answer's text as it is trained, the id of its end token (or None), and the length of the answer within the text."""

    text: str
    end: int | None
    own: int


def _spoken(tokenizer: Any, answers: Sequence[str]) -> tuple[str, list[Spoken]]:
    """Returns (the text before every answer, each answer as the template writes it after that text)."""
    plain = [Spoken(answer, tokenizer.eos_token_id, len(answer)) for answer in answers]
    if not templated(tokenizer):
        return "", plain
    (head,) = texts(tokenizer, [[REQUEST]])
    mark = thoughts.opened(head)
    if thoughts.closed(head) and (lost := next((one for one in answers if thoughts.told(one).thought), None)) is not None:
        raise TiterError(
            f"the chat template closes the thought before the answer, and an answer to train begins with one: {visible(lost, 60)!r}",
            next_step="train with --thinking on, if the template has that; else leave the thoughts out of the answers.",
        )
    parts = [_parted(answer, mark) for answer in answers]
    said = [own for _, own in parts] if mark else list(answers)
    wholes = answered(tokenizer, [REQUEST], said)
    if mark:
        shut, before = thoughts.empty(mark), head.removesuffix(mark)
        leads = [thought or shut for thought, _ in parts]
        plain = [Spoken(lead + own, tokenizer.eos_token_id, len(lead + own)) for lead, own in zip(leads, said, strict=True)]
        apart = [whole is not None and whole.startswith(before) and not whole.startswith(head) for whole in wholes]
        wholes = [f"{head}{shut}{(whole or '')[len(before) :]}" if cut else whole for whole, cut in zip(wholes, apart, strict=True)]
    if not all(
        whole is not None and whole.startswith(head) for whole in wholes
    ):  # the template's prompt is not the beginning of its conversations
        return "", plain
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | set(tokenizer.all_special_tokens)
    ends = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
    rests = [(whole or "")[len(head) :] for whole in wholes]
    return head, [
        _ended(tokenizer, ends, rest, one, answer, *pair) for rest, one, answer, pair in zip(rests, plain, said, parts, strict=True)
    ]


def _parted(answer: str, mark: str) -> tuple[str, str]:
    """Splits an answer to train into (its own thought with the marks around it, the rest), ("", the answer) if it has none. The mark
    that opens the thought is left out if the prompt ends with it."""
    said, begun = thoughts.told(answer), thoughts.OPENS.match(answer)
    at = answer.find(said.answer, said.start) if said.answer and (begun or said.thought) else 0
    if at <= 0 or not mark or begun is None:
        return answer[: max(at, 0)], answer[max(at, 0) :]
    if begun["mark"].strip() != mark.strip():  # a thought in other marks than the prompt's
        return "", answer
    thought = answer[begun.end() : at]
    return thought.removeprefix("\n") if mark.endswith("\n") else thought, answer[at:]


def _ended(tokenizer: Any, ends: re.Pattern[str], rest: str, plain: Spoken, answer: str, thought: str, own: str) -> Spoken:
    """Finds the answer within what the template wrote: it ends at the first special token after the answer's last letter.

    `thought`, `own`: the answer's parts. A thought that the template left out, as it does with earlier answers, is put before the answer
    again. Errors: the answer itself is not there.
    """
    whole = place(answer, rest)
    found = whole or place(own, rest) or place(thoughts.told(answer).answer, rest)
    if found is None:
        raise TiterError(
            f"the chat template leaves out or rewrites an answer that is to be trained: {visible(answer, 60)!r}",
            next_step="leave out that row, or give the tokenizer a template that keeps it.",
        )
    if thought and (answer == own or whole is None):
        rest, found = thought + rest[found[0] :], (len(thought), len(thought) + found[1] - found[0])
    after = found[1]
    if hit := ends.search(rest, after):
        return Spoken(rest[: hit.start()], tokenizer.convert_tokens_to_ids(hit.group()), after or hit.start())
    return Spoken(rest[:after], plain.end, after) if after or not answer else plain


def encode(
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    indices: Indices,
    window: int | None = None,
    side: Side = "right",
    longest: int | None = None,
    share: float = SHARE,
) -> Batch:
    """Encodes prompts and their answers as one padded batch, in which only the answers have labels.

    With `longest`, longer examples are cut as `fitted` does. Errors: an example longer than `window` tokens; it is never cut silently.
    """
    if longest is None:
        heads, tails = prompt_ids(tokenizer, prompts), answer_ids(tokenizer, answers)
    else:
        short = fitted(tokenizer, prompts, answers, longest, share)
        heads, tails = [one.prompt for one in short], [one.answer for one in short]
    for head, tail, prompt in zip(heads, tails, prompts, strict=True):
        check_length(len(head) + len(tail), window, prompt)
    ids, mask = pad([h + t for h, t in zip(heads, tails, strict=True)], tokenizer.pad_token_id, side)
    labels, _ = pad([[IGNORE] * len(h) + t for h, t in zip(heads, tails, strict=True)], IGNORE, side)
    return Batch.of(ids, labels, torch.from_numpy(np.asarray(indices, dtype=np.int64)), mask)


def fitted(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], longest: int, share: float = SHARE) -> list[Short]:
    """Encodes prompts and answers, each pair cut to at most `longest` tokens: first its oldest turns go, then `cut.shortened` cuts."""
    heads, tails = prompt_ids(tokenizer, prompts), answer_ids(tokenizer, answers)
    return [
        Short(head, tail) if len(head) + len(tail) <= longest else _fitted(tokenizer, prompt, len(head), tail, longest, share)
        for prompt, head, tail in zip(prompts, heads, tails, strict=True)
    ]


def _fitted(tokenizer: Any, prompt: str, whole: int, tail: list[int], longest: int, share: float) -> Short:
    """Cuts one example that is too long. `whole`: its prompt's length in tokens."""
    said = turns(prompt)
    system, talk = (said[:1], said[1:]) if said[0].role == "system" else ((), said)
    while True:
        head, kept = _anchored(tokenizer, (*system, *talk))
        if len(head) + len(tail) <= longest or len(talk) == 1:
            break
        talk = talk[2:] if talk[0].role == "user" else talk[1:]
    found = shortened(head, tail, longest, kept, share)
    return found._replace(cut_prompt=whole - len(found.prompt))


def _anchored(tokenizer: Any, said: Sequence[Turn]) -> tuple[list[int], tuple[int, int]]:
    """Returns a prompt's ids and (how many of them stand before, how many after the last request's own text), by character offsets."""
    text, request = prompt_text(tokenizer, written(said)), said[-1].content.strip()
    found = _encoded(tokenizer, [text], add_special_tokens=not templated(tokenizer), return_offsets_mapping=tokenizer.is_fast)
    ids, start = found["input_ids"][0], text.rfind(request)
    if not tokenizer.is_fast or start < 0:
        return ids, (0, 0)
    spans = found["offset_mapping"][0]
    first = next((i for i, (_, end) in enumerate(spans) if end > start), len(ids))
    last = next((i for i, (_, end) in enumerate(reversed(spans)) if 0 < end <= start + len(request)), 0)
    return ids, (first, last)


def check_length(length: int, window: int | None, prompt: str) -> None:
    """Checks that a sequence fits the model. Errors: it is longer than `window` tokens (None: no limit is known)."""
    if window is not None and length > window:
        raise TiterError(
            f"a prompt of {length} tokens (answer included) is longer than the model's window of {window}: {visible(prompt, 60)!r}",
            next_step="shorten or leave out that row.",
        )


def pad(rows: Sequence[Sequence[int]], value: int | None, side: Side) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads rows of ids to one tensor and returns it with its attention mask, (B, T) each. Without a `value`, the padding is id 0, which
    every model knows."""
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    padded = pad_sequence(ids, batch_first=True, padding_value=value or 0, padding_side=side)
    return padded, pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side)
