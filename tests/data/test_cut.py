"""Cutting to a length: the answer's beginning stays, both ends of the prompt stay, every token is accounted for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titer.core.errors import TiterError
from titer.data.cut import in_words, shortened

SIZES = st.integers(1, 60)


@pytest.mark.long
@settings(max_examples=500)
@given(SIZES, SIZES, st.integers(2, 70), st.tuples(st.integers(0, 20), st.integers(0, 20)), st.floats(0, 1))
def test_every_example_keeps_an_answer_and_a_request(p: int, a: int, longest: int, kept: tuple[int, int], share: float) -> None:
    prompt, answer = list(range(p)), list(range(100, 100 + a))
    found = shortened(prompt, answer, longest, kept, share)
    assert found.answer == answer[: len(found.answer)] != []
    assert found.prompt == sorted(found.prompt)
    assert found.prompt[-1] == prompt[-1]
    assert (len(found.prompt) + found.cut_prompt, len(found.answer) + found.cut_answer) == (p, a)
    used = len(found.prompt) + len(found.answer)
    assert used == min(longest, p + a)  # no room is wasted
    if found.cut_prompt:
        gaps = sum(b - a != 1 for a, b in zip(found.prompt, found.prompt[1:], strict=False)) + (found.prompt[0] != 0)
        assert gaps == 1  # one piece is missing
        if len(found.prompt) > sum(kept):
            assert found.prompt[: min(kept[0], p)] == prompt[: kept[0]]
        assert found.prompt[len(found.prompt) - min(kept[1], len(found.prompt)) :] == prompt[p - min(kept[1], len(found.prompt)) :]
    if found.cut_answer:  # the prompt gave way first, down to its share
        assert len(found.prompt) <= max(1, -(-share * longest // 1), min(sum(kept) + 1, longest - 1))


@given(SIZES, SIZES, st.integers(2, 70))
def test_the_least_that_is_needed_is_cut(p: int, a: int, longest: int) -> None:
    """The naive form: one token at a time, from the prompt while it is above its share, then from the answer."""
    left, right = p, a
    while left + right > longest:
        if left > max(1, -(-longest // 4)) or right == 1:
            left -= 1
        else:
            right -= 1
    found = shortened(range(p), range(a), longest)
    assert (len(found.prompt), len(found.answer)) == (left, right)


def test_known_cases() -> None:
    prompt, answer = list(range(10)), list(range(100, 110))
    assert shortened(prompt, answer, 20) == (prompt, answer, 0, 0)
    assert shortened(prompt, answer, 16, (2, 1)) == ([0, 1, 6, 7, 8, 9], answer, 4, 0)
    assert shortened(prompt, answer, 12, (2, 1)) == ([0, 1, 8, 9], answer[:8], 6, 2)  # 3 kept and one of its own
    assert shortened(prompt, answer, 2) == ([9], [100], 9, 9)
    assert shortened(prompt, answer, 4, (9, 1)) == ([0, 1, 9], [100], 7, 9)


@pytest.mark.parametrize(
    ("p", "a", "longest", "share"), [(0, 1, 9, 0.25), (1, 0, 9, 0.25), (1, 1, 1, 0.25), (1, 1, 9, 1.5), (1, 1, 9, -0.1)]
)
def test_no_room_is_an_error(p: int, a: int, longest: int, share: float) -> None:
    with pytest.raises(TiterError, match="at least one token each"):
        shortened(range(p), range(a), longest, share=share)


def test_the_cuts_are_counted() -> None:
    pieces = [shortened(range(p), range(a), 10) for p, a in ((3, 3), (20, 3), (20, 20), (1, 20))]
    told = "3 of 4 examples were cut to fit: 2 prompts lost 30 tokens on the left, 2 answers 24 tokens at their end"
    assert in_words(pieces) == told  # (20 - 7) + (20 - 3) and (20 - 7) + (20 - 9)
    assert in_words(pieces[:1]) == "nothing was cut of 1 examples"
