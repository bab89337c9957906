"""Too long for the model: what is cut from a prompt and its answer, in token ids, so that something is always left to learn.

The answer's beginning is what alignment is about (arXiv 2310.03693 trains and judges it), so it is cut last: first the
prompt loses tokens from its left, behind the `kept` first ones (beginning-of-text, system text, the turn's header) and
before the `kept` last ones (what opens the answer), down to `share` of the length; then the answer loses its end, its end
token with it, so that no model learns to stop mid-sentence. Own rule; trl's and transformers' cut one side whatever stands there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from titer.core.errors import TiterError

SHARE = 0.25  # of the length that the prompt may keep when the answer needs all of it


class Short(NamedTuple):
    """A prompt and an answer that fit, and how many tokens of each were cut."""

    prompt: list[int]
    answer: list[int]
    cut_prompt: int = 0
    cut_answer: int = 0


class Cuts(NamedTuple):
    """What was cut of several examples: how many of them at all, how many in the prompt or the answer, how many tokens."""

    examples: int
    cut: int
    prompts: int
    answers: int
    prompt_tokens: int
    answer_tokens: int

    def line(self) -> str:
        """In words, for the command line and the report."""
        if not self.cut:
            return f"nothing was cut of {self.examples} examples"
        return (
            f"{self.cut} of {self.examples} examples were cut to fit: {self.prompts} prompts lost {self.prompt_tokens} tokens on the left, "
            f"{self.answers} answers {self.answer_tokens} tokens at their end"
        )


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


def counted(pieces: Iterable[Short]) -> Cuts:
    """How much was cut over all."""
    found = list(pieces)
    prompts, answers = [one.cut_prompt for one in found], [one.cut_answer for one in found]
    both = sum(bool(p or a) for p, a in zip(prompts, answers, strict=True))
    return Cuts(len(found), both, sum(map(bool, prompts)), sum(map(bool, answers)), sum(prompts), sum(answers))
