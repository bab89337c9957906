"""Misleading contexts put before a question, to test whether a model keeps what it knows. There are two kinds, false and random.

False context: a sentence that gives another example's answer as the answer to this question. Random context: another example's question
and its answer, unrelated to this question. Both depend on (seed, place) only, so all models read the same texts. Another answer counts as
wrong only if no accepted form of one answer contains a form of the other: "Paris" is not wrong beside "Paris, France".
Source: arXiv 2409.19476, section 4 (knowledge drift), which asks each question alone, after a false context and after a random one. There
the contexts are passages of a trivia set; here they are sentences made of the set's own answers. Real text only: the synthetic world has
no words that assert anything.
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
    """Puts a context of this kind before each example's prompt. The order, the kinds and the answers stay the same.

    Errors: an example without an answer; fewer than two different answers; an example for which no other answer is wrong.
    """
    answers = [e.comply for e in examples]
    if not all(answers):
        raise TiterError("--contexts needs questions with answers, and one has none", expected="an answer for each question")
    if len(set(answers)) < 2:
        raise TiterError("all answers are the same, so none is wrong", expected="questions with different answers")
    forms = [_forms(e) for e in examples]
    return [_behind(e, examples[_other(examples, forms, i, seed, context)], context) for i, e in enumerate(examples)]


def _other(examples: Sequence[Example], forms: Sequence[Forms], i: int, seed: int, context: Context) -> int:
    """The index of another example, drawn by (seed, i): for a false context one with another answer, for a random context any."""
    n = len(examples)
    start = seed_of(seed, "context", context, i) % n
    order = ((start + step) % n for step in range(n))

    def alike(j: int) -> bool:
        """Whether a form of one example's answer equals a form of the other's, or is contained in it."""
        return any(a in b or b in a for a in forms[i] for b in forms[j])

    found = next((j for j in order if j != i and (context == "random" or not alike(j))), None)
    if found is None:
        raise TiterError(f"no other answer is wrong for {visible(examples[i].prompt, 80)!r}", expected="questions with different answers")
    return found


def _forms(example: Example) -> Forms:
    """The accepted answers as words between spaces, so that only whole words match; an answer without words stays as it is."""
    texts = (str(example.comply), *example.also)
    return tuple(f" {' '.join(found)} " if (found := core(text)) else text for text in texts)


def _behind(example: Example, other: Example, context: Context) -> Example:
    form = FALSE if context == "false" else RANDOM
    asked = turns(other.prompt)[-1].content[:LONGEST]
    return replace(example, prompt=changed(example.prompt, lambda request: form.format(prompt=request, answer=other.comply, other=asked)))
