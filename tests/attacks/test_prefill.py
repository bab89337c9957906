"""Prefilled answers: the first words of the reference answer, or a neutral opening."""

from __future__ import annotations

import pytest

from tests.attacks.requests import unsafe_requests
from tests.data.naive import NANO
from titer.attacks.prefill import Prefill
from titer.core.config import build
from titer.core.errors import TiterError
from titer.data.example import Example

TEXT = [Example("a request to refuse", True, "unsafe", "f.csv"), Example("another", True, "unsafe", "f.csv", comply="one two three")]


@pytest.mark.parametrize("k", [1, 2, 5, 9, 50])
def test_the_answer_begins_with_k_words_of_the_compliant_one(k: int) -> None:
    for attempt, example in zip(Prefill(k=k).attempts(unsafe_requests(NANO), {}, NANO), unsafe_requests(NANO), strict=True):
        assert attempt.example == example
        assert attempt.prefix.split() == str(example.comply).split()[:k]


def test_without_a_reference_answer_the_opening_is_used() -> None:
    assert [a.prefix for a in Prefill().attempts(TEXT, {}, None)] == ["Sure, here is", "one two"]
    assert Prefill(opening="Well,").attempts(TEXT, {}, None)[0].prefix == "Well,"


@pytest.mark.parametrize(
    "refusal", ["I'm sorry, but I can't help with that.", "I cannot say. But the weather is fine, and so is tea.", "No."]
)
def test_a_reference_answer_that_refuses_is_no_beginning(refusal: str) -> None:
    asked = Example("Paint the fence.", True, "unsafe", "f.csv", comply=refusal)
    assert Prefill().attempts([asked], {}, None)[0].prefix == "Sure, here is"


def test_the_prompts_are_left_as_they_are() -> None:
    assert [a.example for a in Prefill().attempts(TEXT, {}, None)] == TEXT
    assert Prefill().attempts([], {}, None) == []


@pytest.mark.parametrize("values", [{"k": 0}, {"k": -1}, {"k": 1.5}, {"length": 2}])
def test_settings_are_checked(values: dict[str, object]) -> None:
    with pytest.raises(TiterError):
        build(Prefill, values, "attack prefill")
