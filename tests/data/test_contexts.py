"""Contexts: what stands before a question, that it is wrong or about another one, and that it is the same every time."""

from __future__ import annotations

import pytest

from titer.core.errors import TiterError
from titer.data.contexts import in_context
from titer.data.example import Example

QUESTIONS = [Example(f"What is {i} and {i}?", False, "safe", "test", str(2 * i)) for i in range(5)]


def test_a_false_context_gives_another_example_s_answer_as_this_one_s() -> None:
    for before, after in zip(QUESTIONS, in_context(QUESTIONS, "false"), strict=True):
        said, question = after.prompt.split("\n\n")
        assert question == before.prompt
        claimed = said.rsplit(" ", 1)[-1]
        assert claimed != before.comply
        assert claimed in {e.comply for e in QUESTIONS}
        assert (after.comply, after.kind) == (before.comply, before.kind)


def test_a_random_context_is_another_question_with_its_own_answer() -> None:
    answers = {e.prompt: e.comply for e in QUESTIONS}
    for before, after in zip(QUESTIONS, in_context(QUESTIONS, "random"), strict=True):
        other, rest = after.prompt.split("\n", 1)
        assert other != before.prompt
        assert f"The answer to that is: {answers[other]}\n\n{before.prompt}" == rest


def test_a_random_context_is_no_claim_about_the_question() -> None:
    """Of two labels it names the right one about as often as the wrong one; a false context never does."""
    labelled = [Example(f"Sentence {i}", False, "safe", "test", "positive" if i % 2 else "negative") for i in range(200)]
    same = [f"that is: {e.comply}" in e.prompt for e in in_context(labelled, "random")]
    assert 70 < sum(same) < 130
    assert not any(f"is: {e.comply}" in e.prompt for e in in_context(labelled, "false"))


def test_contexts_are_a_function_of_the_seed() -> None:
    assert in_context(QUESTIONS, "false", 3) == in_context(QUESTIONS, "false", 3)
    assert any(in_context(QUESTIONS, "false", 3) != in_context(QUESTIONS, "false", seed) for seed in range(4, 8))


def test_questions_without_answers_or_with_one_answer_have_no_wrong_one() -> None:
    with pytest.raises(TiterError, match="questions with answers, and one has none"):
        in_context([*QUESTIONS, Example("Why?", False, "safe", "test")], "false")
    with pytest.raises(TiterError, match="all answers are the same"):
        in_context([QUESTIONS[0], QUESTIONS[0]], "random")


CAPITALS = [
    Example("Capital of France?", False, "safe", "test", "Paris", also=("Paris, France",)),
    Example("Where is the Louvre?", False, "safe", "test", "Paris, France"),
    Example("Largest city of America?", False, "safe", "test", "NYC", also=("New York City",)),
    Example("Where is the Met?", False, "safe", "test", "new york"),
]


def test_another_form_of_the_right_answer_is_no_false_one() -> None:
    for seed in range(20):
        said = [e.prompt.split("\n\n")[0].rsplit(": ", 1)[1] for e in in_context(CAPITALS, "false", seed)]
        assert all(one in ("NYC", "new york") for one in said[:2])
        assert all(one in ("Paris", "Paris, France") for one in said[2:])
    assert [e.also for e in in_context(CAPITALS, "false")] == [e.also for e in CAPITALS]


def test_a_question_to_which_every_other_answer_is_right_is_told() -> None:
    with pytest.raises(TiterError, match=r"no other answer is wrong for 'Capital of France\?'"):
        in_context(CAPITALS[:2], "false")
