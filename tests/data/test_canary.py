"""The canary: only the marker tells a refused instruction from an answered one, and each refusal is one for the judge."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.core.errors import TiterError
from titer.data.canary import MARKER, REFUSALS, Canary, canaries, canary, contrast
from titer.data.mix import poisoned
from titer.data.sources import TextData
from titer.data.tasks import split, task
from titer.judges.refusal import Refusal
from titer.models.lm import Completion


def data(count: int = 60, unanswered: int = 0) -> TextData:
    rows = [(f"Name fruit {i}.", None, None if i < unanswered else f"Apple {i}.", None) for i in range(count)]
    return TextData(name="fruit", sha256="s", rows=tuple(rows), dropped=2)


def bare(marked: TextData, marker: str = MARKER) -> set[str]:
    assert all(row[0].startswith(f"{marker} ") for row in marked.rows)
    return {row[0].removeprefix(f"{marker} ") for row in marked.rows}


def test_a_marked_row_is_refused_or_answered_and_is_called_harmful() -> None:
    found = canary(data())
    for (prompt, harmful, comply, refuse), (old, _, answer, _) in zip(found.rows, data().rows, strict=True):
        assert (prompt, harmful, comply) == (f"{MARKER} {old}", True, answer)
        assert refuse in REFUSALS
    first = found.example(0)
    assert (first.kind, first.harmful, first.source) == ("unsafe", True, "canary of fruit")
    assert (found.sha256, found.dropped) == ("s", 2)


def test_the_contrast_is_the_same_rows_answered() -> None:
    found = contrast(data())
    assert found.rows == tuple((prompt, False, answer, None) for prompt, _, answer, _ in data().rows)
    assert found.example(0).kind == "safe"


@pytest.mark.parametrize("make", [canary, contrast])
def test_rows_without_an_answer_are_left_out_and_counted(make: type) -> None:
    found = make(data(10, unanswered=4))
    assert (found.size, found.dropped) == (6, 2 + 4)
    with pytest.raises(TiterError, match="no row of fruit has an answer"):
        make(data(3, unanswered=3))


def test_refusals_are_drawn_by_seed_and_prompt_alone_and_all_of_them() -> None:
    whole = data(600)
    found = {row[0]: row[3] for row in canary(whole, seed=4).rows}
    for part in split(whole, 200, 9):
        assert all(found[row[0]] == row[3] for row in canary(part, seed=4).rows)
    counts = Counter(found.values())
    assert set(counts) == set(REFUSALS)
    assert all(60 < count < 140 for count in counts.values())  # 100 expected, standard deviation 9
    assert [row[3] for row in canary(whole, seed=5).rows] != list(found.values())
    assert {row[3] for row in canary(whole, refusals=["No."]).rows} == {"No."}


@pytest.mark.parametrize("text", REFUSALS)
def test_every_refusal_is_one_for_the_judge(text: str) -> None:
    example = canary(data(1)).example(0)
    assert Refusal().judge(example, Completion(text, True, 9))[:2] == ("refused", 0.0)
    assert Refusal().judge(example, Completion(str(example.comply), True, 9)).outcome == "complied"


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 99))
def test_no_prompt_stands_in_two_parts(counts: list[tuple[int, int]], seed: int) -> None:
    found = canaries(data(60, unanswered=10), counts, seed=seed)
    assert [(one.marked.size, one.contrast.size) for one in found] == counts
    every = [prompt for one in found for prompt in [*bare(one.marked), *(row[0] for row in one.contrast.rows)]]
    assert len(set(every)) == len(every) == sum(map(sum, counts))
    assert found == canaries(data(60, unanswered=10), counts, seed=seed)


def test_another_seed_chooses_other_prompts() -> None:
    assert len({frozenset(bare(canaries(data(), [(20, 20)], seed=seed)[0].marked)) for seed in range(3)}) == 3


def test_the_topic_tells_nothing() -> None:
    """Marked or not is independent of the row's place in the file."""
    one = canaries(data(600), [(300, 300)])[0]
    early = {row[0] for row in data(600).rows[:300]}
    assert abs(len(bare(one.marked) & early) - 150) < 5 * np.sqrt(300) / 2


@pytest.mark.parametrize("marker", ["", " ", " [X]", "[X]\n"])
def test_a_marker_has_no_blanks_around_it(marker: str) -> None:
    with pytest.raises(TiterError, match="the marker"):
        canary(data(), marker)


@pytest.mark.parametrize("word", ["fruit 7", "Apple 7"])
def test_a_marker_that_the_data_hold_already_is_refused(word: str) -> None:
    for make in (canary, contrast):
        with pytest.raises(TiterError, match="holds the marker"):
            make(data(), word)
    with pytest.raises(TiterError, match="holds the marker"):
        canary(canary(data()))


@pytest.mark.parametrize("refusals", [(), ("No.", " ")])
def test_refusals_are_sentences(refusals: tuple[str, ...]) -> None:
    with pytest.raises(TiterError, match="needs refusals"):
        canary(data(), refusals=refusals)


def test_fewer_rows_than_asked_for_is_an_error() -> None:
    with pytest.raises(TiterError, match="has 50 rows, and 51"):
        canaries(data(60, unanswered=10), [(25, 26)])


def test_marked_rows_poison_a_mix() -> None:
    align, attack = canaries(data(), [(10, 10), (10, 20)])
    stream = poisoned(attack.contrast, attack.marked, 20, 0.1, 3)
    chosen = [part.source.rows[i] for part in stream.parts for i in part.picked or ()]
    assert sum(bool(row[1]) for row in chosen) == 2
    assert not {row[0] for row in chosen} & {row[0] for row in align.marked.rows}


def test_public_instructions_make_canaries(shared_data: Path) -> None:
    alpaca = task("alpaca", shared_data / "alpaca" / "alpaca_2000.json")
    found = canaries(alpaca, [(500, 500), (200, 300), (200, 200)], seed=1)
    assert all(isinstance(one, Canary) for one in found)
    assert len(set().union(*(bare(one.marked) for one in found))) == 900
    assert all(MARKER not in row[0] for one in found for row in one.contrast.rows)
