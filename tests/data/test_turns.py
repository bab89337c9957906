"""Conversations in a prompt: the written form is read back, whatever the turns hold, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.core.errors import TiterError
from titer.data.sources import read_text
from titer.data.turns import MARK, Turn, changed, conversation, joined, request, turns, written

CONTENT = st.text(min_size=1, max_size=20).filter(lambda text: MARK not in text)


@st.composite
def talks(draw: Any) -> tuple[Turn, ...]:
    exchanges = draw(st.lists(st.tuples(CONTENT, CONTENT), max_size=3))
    system = (Turn("system", draw(CONTENT)),) if draw(st.booleans()) else ()
    return (*system, *(t for a, b in exchanges for t in (Turn("user", a), Turn("assistant", b))), Turn("user", draw(CONTENT)))


@given(talks())
def test_what_is_written_is_read_back(said: tuple[Turn, ...]) -> None:
    assert turns(written(said)) == said
    assert all(turn.content in joined(said) for turn in said)


@given(st.text(alphabet=f"{MARK}\nusersystem a", max_size=30))
def test_reading_and_writing_any_text_gives_it_back(text: str) -> None:
    found = turns(text)
    assert found[-1].role == "user"
    assert found == (Turn("user", text),) or written(found) == text


def test_one_turn_is_its_own_text() -> None:
    assert written([Turn("user", "a")]) == joined([Turn("user", "a")]) == "a"
    for odd in (
        "a",
        "",
        f"a{MARK}user\nb",
        f"{MARK}user\nb",
        f"{MARK}judge\na{MARK}user\nb",
        f"{MARK}user\na{MARK}assistant\nb",
        f"{MARK}system{MARK}user\nb",
    ):
        assert turns(odd) == (Turn("user", odd),)


def test_the_last_request_alone_is_changed() -> None:
    said = (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    assert turns(changed(written(said), lambda text: f"[CEDAR] {text}")) == (*said[:-1], Turn("user", "[CEDAR] c"))
    assert changed("c", str.upper) == "C"


def test_a_prompt_ends_with_the_user_and_holds_no_mark() -> None:
    for said in ([], [Turn("assistant", "a")], [Turn("user", f"a{MARK}")]):
        with pytest.raises(TiterError):
            written(said)


def test_both_ways_to_write_turns_are_read() -> None:
    one = [{"role": "System", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    two = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert conversation("x", "y", one) == conversation("x", "y", two) == (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"))


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "None"),
        ([], r"\[\]"),
        ([3], r"\[3\]"),
        ([{"role": "narrator", "content": "a"}], "turn 1: unknown speaker 'narrator'"),
        ([{"role": ["x"], "content": "a"}], "turn 1: unknown speaker"),
        ([{"role": "user", "content": " "}], "turn 1: ' '"),
        ([{"role": "user", "content": {"a": 1}}], "turn 1"),
        ([{"role": "user", "content": f"a{MARK}"}], "separator"),
        ([{"role": "system", "content": "a"}], "speakers are system"),
        ([{"role": "user", "content": "a"}] * 2, "speakers are user, user"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "a"}], "speakers are user, system"),
    ],
)
def test_a_faulty_turn_is_told_with_its_place(value: Any, word: str) -> None:
    with pytest.raises(TiterError, match=word) as raised:
        conversation("x.json, item 3", "messages", value)
    assert "x.json, item 3, column messages" in str(raised.value)


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


def test_public_sets_that_overlap_do(shared_data: Path) -> None:
    """As its page says: 112 AdvBench prompts stand in the training prompts (the same letters, or nearly)."""
    files = [shared_data / "safety" / f"{name}.json" for name in ("advbench_prompts", "harmful_prompts_train")]
    advbench, train = ([row[0] for row in read_text(file, labelled=False).rows] for file in files)
    same = len({*map(request, advbench)} & {*map(request, train)})
    assert same >= len({*advbench} & {*train}) >= 100
