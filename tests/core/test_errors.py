"""The one error a user sees, and text that a terminal shows and does not obey."""

from __future__ import annotations

import ast
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from titer.core.errors import TiterError, nearest, unknown, visible

OBEYED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, direction and format marks, half characters, line breaks
ANY_TEXT = st.text(st.characters(), max_size=60)


@given(ANY_TEXT, st.integers(1, 80))
@example("\x1b[31mred\x07", 80)
@example("\u202eabc\u2066", 80)
@example("a\r\nb\tc\x85\u2028", 80)
@example("\ud800", 80)
@example("\x00" * 100, 20)
def test_nothing_visible_is_obeyed_and_nothing_is_too_long(text: str, limit: int) -> None:
    shown = visible(text, limit)
    assert len(shown) <= limit
    assert not {unicodedata.category(c) for c in shown} & OBEYED
    shown.encode("utf-8")


@given(st.text("abc äé漢 !", max_size=50))
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    assert visible(text, 50) == text


@given(st.text("abc", min_size=11, max_size=60))
def test_what_is_cut_says_so(text: str) -> None:
    assert visible(text, 10) == text[:9] + "…"


def test_control_codes_are_spelt_out_so_that_a_reader_can_tell_them_apart() -> None:
    assert visible("a\x1bb\nc") == "a\\x1bb\\nc"


def test_an_error_says_what_was_expected_and_what_to_do_next() -> None:
    error = TiterError("no such thing.", expected="a thing.", next_step="look again", status=1)
    assert str(error) == "no such thing. Expected: a thing. Next: look again"
    assert (error.what, error.status) == ("no such thing.", 1)
    assert str(TiterError("no such thing")) == "no such thing."
    assert TiterError("x").status == 2


@pytest.mark.parametrize(("name", "expected"), [("vacine", "vaccine"), ("SFT", ""), ("lisaa", "lisa"), ("", ""), ("qqqq", "")])
def test_the_nearest_name_is_near_or_none(name: str, expected: str) -> None:
    assert nearest(name, ["vaccine", "lisa", "sft"]) == expected


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TiterError, match=r"unknown judge 'refusa'.*one of exact, refusal.*did you mean 'refusal'\? try it") as raised:
        unknown("judge", "refusa", ["refusal", "exact"], "try it")
    assert raised.value.status == 2


def test_of_many_names_the_nearest_are_listed() -> None:
    with pytest.raises(TiterError, match=r"one of 60 names; the nearest are judge_7, .*did you mean 'judge_7'\?") as raised:
        unknown("judge", "judg_7", [f"judge_{i}" for i in range(60)])
    assert str(raised.value).count("judge_") == 6


def test_an_unknown_name_where_none_is_known() -> None:
    with pytest.raises(TiterError, match="none is known here"):
        unknown("judge", "x", [])


def test_an_unknown_name_cannot_send_control_codes() -> None:
    with pytest.raises(TiterError) as raised:
        unknown("judge", "\x1b[2J", ["exact"])
    assert "\x1b" not in str(raised.value)


@pytest.mark.long
def test_every_error_says_what_was_expected_or_what_to_do_next() -> None:
    found = 0
    for file in (Path(__file__).parents[2] / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TiterError":
                found += 1
                assert {word.arg for word in node.keywords} & {"expected", "next_step"}, f"{file}, line {node.lineno}"
    assert found > 100
