"""Too long for the model: what is cut from a prompt and its answer, in token ids, so that something is always left to learn.

The answer's beginning is what alignment is about (arXiv 2310.03693 trains and judges it), so it is cut last: first the
prompt loses tokens from its left, behind the `kept` first ones (beginning-of-text, system text, the turn's header) and
before the `kept` last ones (what opens the answer), down to `share` of the length; then the answer loses its end, its end
token with it, so that no model learns to stop mid-sentence. Own rule; trl's and transformers' cut one side whatever stands there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from titer.core.errors import TiterError

SHARE = 0.25  # of the length that the prompt may keep when the answer needs all of it


class Short(NamedTuple):
    """A prompt and an answer that fit, and how many tokens of each were cut."""

    prompt: list[int]
    answer: list[int]
    cut_prompt: int = 0
    cut_answer: int = 0


def shortened(
    prompt_ids: Sequence[int], answer_ids: Sequence[int], longest: int, kept: tuple[int, int] = (0, 0), share: float = SHARE
) -> Short:
    """The two in at most `longest` tokens; every answer keeps at least its first token, every prompt its last.

    Errors: `longest` below 2, an empty prompt or answer, a share outside 0 to 1.
    """
    if longest < 2 or not prompt_ids or not answer_ids or not 0 <= share <= 1:
        raise TiterError(
            f"a prompt of {len(prompt_ids)} and an answer of {len(answer_ids)} tokens in {longest}, {share:g} of it the prompt's",
            expected="at least one token each, room for two, and a share from 0 to 1",
        )
    prompt, answer = list(prompt_ids), list(answer_ids)
    if len(prompt) + len(answer) <= longest:
        return Short(prompt, answer)
    least = min(len(prompt), longest - 1, max(1, math.ceil(share * longest), sum(kept) + 1))  # one of the request's own tokens
    room = min(len(prompt), max(least, longest - len(answer)))
    first = max(0, min(kept[0], room - max(1, kept[1])))  # what opens the answer outlasts the beginning
    left = prompt[:first] + prompt[len(prompt) - (room - first) :]
    right = answer[: longest - room]
    return Short(left, right, len(prompt) - len(left), len(answer) - len(right))


def in_words(pieces: Sequence[Short]) -> str:
    """How much was cut of several examples, for the command line and the report."""
    prompts = [one.cut_prompt for one in pieces if one.cut_prompt]
    answers = [one.cut_answer for one in pieces if one.cut_answer]
    if not prompts and not answers:
        return f"nothing was cut of {len(pieces)} examples"
    cut = sum(bool(one.cut_prompt or one.cut_answer) for one in pieces)
    return (
        f"{cut} of {len(pieces)} examples were cut to fit: {len(prompts)} prompts lost {sum(prompts)} tokens on the left, "
        f"{len(answers)} answers {sum(answers)} tokens at their end"
    )
