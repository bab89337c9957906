"""Prompts in two sets: the later set gives way, everything that goes is counted, and strict refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.core.errors import TiterError
from titer.data.overlap import ORDER, apart, request
from titer.data.sources import TextData, read_text
from titer.data.turns import Turn, written

WORDS = st.sampled_from(["bread", "Bread", " bread?", "the garden", "the  garden.", "?", "!", "water", "Wasser", "STRASSE", "straße"])
SETS = st.dictionaries(st.sampled_from(ORDER), st.lists(WORDS, min_size=1, max_size=6, unique=True), min_size=1)


def data(*prompts: str, name: str = "x") -> TextData:
    return TextData(name=name, sha256="", rows=tuple((prompt, None, "a", None) for prompt in prompts), dropped=2)


@pytest.mark.parametrize(
    ("a", "b"), [("How?", "how"), (" a  b\n", "A b."), ("«a»", "a"), ("straße", "STRASSE"), ("ﬁsh", "fish"), ("(a) b!?", "a) b")]
)
def test_the_same_request(a: str, b: str) -> None:
    assert request(a) == request(b)


@pytest.mark.parametrize(("a", "b"), [("?", "!"), ("a b", "ab"), ("1 + 1", "1 - 1"), ("a", "a b"), ("don't", "dont"), ("", "?")])
def test_another_request(a: str, b: str) -> None:
    assert request(a) != request(b)


def test_of_a_conversation_the_turns_count() -> None:
    asked = Turn("user", "bread")
    assert request(written((Turn("system", "Be Ada."), asked))) == request("Bread?")
    before = (Turn("user", "hi"), Turn("assistant", "ho"))
    assert len({request(written((*some, asked))) for some in ((), before, (*before[:1], Turn("assistant", "hu")))}) == 3


@given(SETS)
def test_each_request_is_left_once_in_the_first_set_that_holds_it(prompts: dict[str, list[str]]) -> None:
    sets = {name: data(*prompts[name], name=name) for name in ORDER if name in prompts}
    try:
        found = apart(sets)
    except TiterError as error:
        assert "nothing is left" in str(error)  # noqa: PT017
        return
    seen: list[str] = []
    for name, one in sets.items():  # the naive form
        kept = []
        for row in one.rows:
            if request(row[0]) not in seen:
                seen.append(request(row[0]))
                kept.append(row)
        assert found.sets[name].rows == tuple(kept)
        assert found.sets[name].dropped == 2 + one.size - len(kept)
    assert found.dropped == sum(map(len, prompts.values())) - len(seen)
    again = apart(found.sets, strict=True)  # nothing recurs in what is left
    assert (again.sets, again.recurring) == (found.sets, ())


def test_what_is_measured_stays_whole_and_the_counts_say_which() -> None:
    sets = {"evaluation": data("a", "b"), "alignment": data("A.", "c", "c!", "d"), "attack": data("b?", "D", "a", "e")}
    found = apart(sets)
    assert found.sets["evaluation"] == sets["evaluation"]
    assert [row[0] for row in found.sets["alignment"].rows] == ["c", "d"]
    assert [row[0] for row in found.sets["attack"].rows] == ["e"]
    assert found.lines() == [
        "1 prompts of alignment stand in evaluation too and were left out",
        "1 prompts of alignment stand in it twice and were left out",
        "2 prompts of attack stand in evaluation too and were left out",
        "1 prompts of attack stand in alignment too and were left out",
    ]
    with pytest.raises(TiterError, match=r"the sets overlap: 1 prompts of alignment stand in evaluation too; .*2 prompts of attack"):
        apart(sets, strict=True)


def test_nothing_left_is_an_error_and_nothing_recurring_is_said() -> None:
    with pytest.raises(TiterError, match="nothing is left of x \\(attack\\)"):
        apart({"evaluation": data("a"), "attack": data("A")})
    assert apart({"evaluation": data("a"), "attack": data("b")}).lines() == ["no prompt recurs in evaluation, attack"]


def test_public_sets_that_overlap_do(shared_data: Path) -> None:
    """As its page says: 112 AdvBench prompts stand in the training prompts (the same letters, or nearly)."""
    advbench, train = (read_text(shared_data / "safety" / f"{n}.json", False) for n in ("advbench_prompts", "harmful_prompts_train"))
    exact = len({row[0] for row in advbench.rows} & {row[0] for row in train.rows})
    (found,) = (one for one in apart({"evaluation": advbench, "attack": train}).recurring if one.loser != one.holder)
    assert found.rows >= exact >= 100
