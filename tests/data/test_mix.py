"""Mixes: exact counts, no prompt twice, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.naive import NANO
from titer.core.errors import TiterError
from titer.data import mix as mixing
from titer.data.example import Example, Indices, Stream
from titer.data.mix import mix, poisoned
from titer.data.sources import TextData
from titer.data.world import WorldSource

USER, HARMFUL = WorldSource(world=NANO, kind="user"), WorldSource(world=NANO, kind="unsafe")


def file_of(prompts: Sequence[str], name: str = "f") -> TextData:
    return TextData(name=name, sha256="", rows=tuple((p, False, "an answer", None) for p in prompts))


BENIGN, BAD = (file_of([f"{name} {i}" for i in range(100)], name) for name in ("benign", "bad"))


def prompts_of(stream: Stream) -> list[list[str]]:
    """The prompts picked of each part."""
    return [[e.prompt for e in part.source.examples(np.asarray(part.picked))] for part in stream.parts]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_a_mix_has_exactly_the_counts_asked_for(one: int, two: int, seed: int) -> None:
    if one + two == 0:
        with pytest.raises(TiterError, match="no examples"):
            mix([(BENIGN, "comply", 0), (BAD, "comply", 0)], seed)
        return
    stream = mix([(BENIGN, "comply", one), (BAD, "refuse", two)], seed)
    assert [len(part.picked or ()) for part in stream.parts] == [n for n in (one, two) if n]
    assert [part.answer for part in stream.parts] == [a for a, n in (("comply", one), ("refuse", two)) if n]
    assert stream.pool == one + two


NAMES = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=12)


@given(NAMES, NAMES, st.integers(0, 3), st.integers(1, 4), st.integers(1, 4))
def test_no_prompt_is_in_a_mix_twice(first: list[str], second: list[str], seed: int, n: int, m: int) -> None:
    """Sources that share prompts, and repeat their own: distinct ones are picked, or the mix is refused."""
    try:
        found = [p for part in prompts_of(mix([(file_of(first), "comply", n), (file_of(second), "comply", m)], seed)) for p in part]
    except TiterError:
        shared = len(set(first) & set(second))  # at worst the first part took them
        assert n > len(set(first)) or m > len(set(second)) - min(n, shared)
        return
    assert len(found) == n + m == len(set(found))
    assert set(found[:n]) <= set(first)
    assert set(found[n:]) <= set(second)


def test_a_whole_file_can_be_picked() -> None:
    (found,) = prompts_of(mix([(file_of(["a", "b", "a", "c"]), "comply", 3)], 0))
    assert sorted(found) == ["a", "b", "c"]


def test_a_mix_is_a_function_of_its_seed() -> None:
    parts = [(file_of([str(i) for i in range(300)]), "comply", 20)]
    assert mix(parts, 1) == mix(parts, 1)  # type: ignore[arg-type]
    assert mix(parts, 1).parts[0].picked != mix(parts, 2).parts[0].picked  # type: ignore[arg-type]
    assert poisoned(USER, HARMFUL, 50, 0.1, 3) == poisoned(USER, HARMFUL, 50, 0.1, 3)


def test_a_mix_of_a_file_is_not_its_first_rows() -> None:
    (part,) = mix([(file_of([str(i) for i in range(300)]), "comply", 20)], 1).parts
    assert sorted(part.picked or ()) != list(range(20))


def test_too_few_distinct_prompts_are_counted_and_told() -> None:
    with pytest.raises(TiterError, match="only 2 different prompts, and 3 were asked for"):
        mix([(file_of(["a", "b", "a"]), "comply", 3)], 0)


class Repeating:
    """An endless source with one prompt."""

    size = None

    def examples(self, indices: Indices) -> list[Example]:
        return [Example("a", False, "safe", "r", "b")] * len(indices)


def test_an_endless_source_that_repeats_itself_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "CHUNK", 8)
    with pytest.raises(TiterError, match="only 1 different"):
        mix([(Repeating(), "comply", 2)], 0)  # type: ignore[list-item]


def nearest(ratio: Fraction, n: int) -> set[int]:
    """The whole numbers nearest to ratio * n: two at a half."""
    exact = ratio * n
    low = int(exact)
    return {k for k in (low, low + 1) if abs(exact - k) == min(exact - low, low + 1 - exact)}


@given(st.integers(0, 1000), st.integers(1, 60))
def test_the_poison_count_is_rounded_to_the_nearest(thousandths: int, n: int) -> None:
    stream = poisoned(BENIGN, BAD, n, thousandths / 1000, 0)
    bad = sum(len(part.picked or ()) for part in stream.parts if part.source.name == "bad")
    assert bad in nearest(Fraction(thousandths, 1000), n)
    assert stream.pool == n
    assert all(part.answer == "comply" for part in stream.parts)


@pytest.mark.parametrize(
    ("n", "ratio", "bad"), [(1000, 0.05, 50), (1000, 0.001, 1), (100, 0.29, 29), (100, 0.57, 57), (10, 0.96, 10), (9, 0.05, 0)]
)
def test_poison_counts_are_not_truncated(n: int, ratio: float, bad: int) -> None:
    """0.29 * 100 is 28.999... in floating point."""
    parts = {part.source.kind: len(part.picked or ()) for part in poisoned(USER, HARMFUL, n, ratio, 0).parts}
    assert (parts.get("unsafe", 0), parts.get("user", 0)) == (bad, n - bad)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_ratio_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(TiterError, match="poison ratio"):
        poisoned(USER, HARMFUL, 10, ratio, 0)


def test_the_poison_differs_in_number_only() -> None:
    """More poison keeps the poison that a smaller ratio had, and drops benign examples from the end."""
    few, many = (poisoned(USER, HARMFUL, 100, ratio, 0) for ratio in (0.1, 0.3))
    kept = {part.source.kind: part.picked for part in few.parts}
    assert {part.source.kind: part.picked[: len(kept[part.source.kind])] for part in many.parts if part.picked} == {
        "user": kept["user"][:70],
        "unsafe": kept["unsafe"],
    }
