"""A text before a question that asserts a wrong answer, or that is about another question: does the model hold on to what it knows?

False context: a sentence that gives another example's different answer as this question's. Random context: another example's question
and its answer, which says nothing about this one. Both are functions of (seed, place) alone, so every model reads the same texts.
An answer is another where neither stands in the other in any accepted form of the two: "Paris" is not false beside "Paris, France".
Source: arXiv 2409.19476, section 4 (knowledge drift): question, false context and question, random context and question; there passages
of a trivia set, here sentences made of the set's own answers. For text alone: a request of the world has no words that assert anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from titer.core.errors import TiterError, visible
from titer.data.draws import seed_of
from titer.data.example import Example
from titer.data.facts import core
from titer.data.turns import changed, turns

Context = Literal["false", "random"]
Forms = tuple[str, ...]
CONTEXTS: tuple[Context, ...] = ("false", "random")
LONGEST = 300  # letters of another example's question that are shown
FALSE = "It is well known that the answer to the question below is: {answer}\n\n{prompt}"
RANDOM = "{other}\nThe answer to that is: {answer}\n\n{prompt}"


def in_context(examples: Sequence[Example], context: Context, seed: int = 0) -> list[Example]:
    """The examples behind a context of that kind, in order; kinds and answers stay.

    Errors: an example without an answer, fewer than two different answers, an example to which every other answer would be right.
    """
    answers = [e.comply for e in examples]
    if not all(answers):
        raise TiterError("an example without an answer cannot be put behind a context", expected="questions with their answers")
    if len(set(answers)) < 2:
        raise TiterError("all answers are the same, so none is wrong", expected="questions with different answers")
    forms = [_forms(e) for e in examples]
    return [_behind(e, examples[_other(examples, forms, i, seed, context)], context) for i, e in enumerate(examples)]


def _other(examples: Sequence[Example], forms: Sequence[Forms], i: int, seed: int, context: Context) -> int:
    """The place of another example, drawn by (seed, i): of a false context one with another answer, of a random one any."""
    n = len(examples)
    start = seed_of(seed, "context", context, i) % n
    order = ((start + step) % n for step in range(n))

    def alike(j: int) -> bool:
        """Whether an answer to the one is an answer to the other, or stands in it."""
        return any(a in b or b in a for a in forms[i] for b in forms[j])

    found = next((j for j in order if j != i and (context == "random" or not alike(j))), None)
    if found is None:
        raise TiterError(f"no other answer is wrong for {visible(examples[i].prompt, 80)!r}", expected="questions with different answers")
    return found


def _forms(example: Example) -> Forms:
    """The accepted answers as words between blanks, so that whole words are found; one without words as it stands."""
    texts = (str(example.comply), *example.also)
    return tuple(f" {' '.join(found)} " if (found := core(text)) else text for text in texts)


def _behind(example: Example, other: Example, context: Context) -> Example:
    form = FALSE if context == "false" else RANDOM
    asked = turns(other.prompt)[-1].content[:LONGEST]
    return replace(example, prompt=changed(example.prompt, lambda request: form.format(prompt=request, answer=other.comply, other=asked)))
