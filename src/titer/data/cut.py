"""Cut prompts and answers that are too long, in token ids, so that a part of the answer is always left to learn.

Alignment is about the beginning of an answer (arXiv 2310.03693 trains and judges it), so that is cut last. First the prompt loses tokens
on its left, down to `share` of the length; the `kept` first tokens (beginning of text, system text, header of the turn) and the `kept`
last ones (which open the answer) stay. Then the answer loses its end together with its end token, so that no model learns to stop in
mid-sentence. The rule is Titer's own; trl and transformers cut one side, whatever is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from titer.core.errors import TiterError

SHARE = 0.25  # share of the length that the prompt keeps even if the answer needs all of it


class Short(NamedTuple):
    """A prompt and an answer that fit together, and how many tokens were cut from each."""

    prompt: list[int]
    answer: list[int]
    cut_prompt: int = 0
    cut_answer: int = 0


def shortened(
    prompt_ids: Sequence[int], answer_ids: Sequence[int], longest: int, kept: tuple[int, int] = (0, 0), share: float = SHARE
) -> Short:
    """Cuts a prompt and its answer to at most `longest` tokens together. The answer keeps its first token at least, the prompt its last.

    Errors: `longest` below 2; an empty prompt or answer; a share outside 0 to 1.
    """
    if longest < 2 or not prompt_ids or not answer_ids or not 0 <= share <= 1:
        raise TiterError(
            f"a prompt of {len(prompt_ids)} and an answer of {len(answer_ids)} tokens cannot be cut to {longest} tokens "
            f"with a share of {share:g} for the prompt",
            expected="at least one token each, a length of at least 2, and a share from 0 to 1",
        )
    prompt, answer = list(prompt_ids), list(answer_ids)
    if len(prompt) + len(answer) <= longest:
        return Short(prompt, answer)
    least = min(
        len(prompt), longest - 1, max(1, math.ceil(share * longest), sum(kept) + 1)
    )  # with at least one token of the request itself
    room = min(len(prompt), max(least, longest - len(answer)))
    first = max(0, min(kept[0], room - max(1, kept[1])))  # the last `kept` tokens are cut after the first ones
    left = prompt[:first] + prompt[len(prompt) - (room - first) :]
    right = answer[: longest - room]
    return Short(left, right, len(prompt) - len(left), len(answer) - len(right))


def in_words(pieces: Sequence[Short]) -> str:
    """Says in a sentence how many examples were cut, and how many tokens their prompts and answers lost."""
    prompts = [one.cut_prompt for one in pieces if one.cut_prompt]
    answers = [one.cut_answer for one in pieces if one.cut_answer]
    if not prompts and not answers:
        return f"nothing was cut of {len(pieces)} examples"
    cut = sum(bool(one.cut_prompt or one.cut_answer) for one in pieces)
    return (
        f"{cut} of {len(pieces)} examples were cut to fit: {len(prompts)} prompts lost {sum(prompts)} tokens on the left, "
        f"{len(answers)} answers {sum(answers)} tokens at their end"
    )
