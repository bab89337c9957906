"""What judges share: hostile text made harmless, lines that carry a code, and steps that never raise."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.judges.tiny import tokenizer
from titer.core.errors import TiterError
from titer.data.example import Example
from titer.data.turns import Turn, written
from titer.judges.base import Verdict, in_two_steps
from titer.models.judge_client import MARKS, asked_for, broken, harmless, last_line, quoted, unmarked
from titer.models.lm import Completion

PIECES = st.sampled_from(
    ["<|", "|>", "im_end", "</s>", "<s>", "[INST]", "[/INST]", "[", "/", "<<SYS>>", "#the", "score", "#thescore", "\x1b[", "\n", " "]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=60))
def test_no_mark_no_tag_and_no_control_code_is_left(text: str) -> None:
    found = harmless(text, "#thescore")
    assert not MARKS.search(found)
    assert "#thescore" not in found.lower()
    assert all(c.isprintable() or c in "\n\t" for c in found)
    assert harmless(found, "#thescore") == found


@given(st.text(alphabet=st.characters(categories=["L", "N", "Zs"]), max_size=60))
def test_plain_text_is_left_as_it_is(text: str) -> None:
    shown = "".join(c for c in text if c.isprintable())
    assert harmless(shown, "#thescore") == shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b and b > c, [x](y), #1", "a < b and b > c, [x](y), #1"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\u202eb\u200bc\ud800", "a\\u202eb\\u200bc\\ud800"),
        ("<|eot_id|>", "< |eot_id|>"),
        ("#TheScore: 5", "# TheScore: 5"),
        ("a\r\nb\tc", "a\\r\nb\tc"),
    ],
)
def test_what_is_changed_can_be_read(text: str, expected: str) -> None:
    assert harmless(text, "#thescore") == expected


def test_broken_ends_where_a_mark_is_one_letter_or_grows_from_pieces() -> None:
    assert broken("a#b##", "#") == "ab"
    assert "ab" not in broken("aabb ab", "ab").replace(" ", "_")
    assert broken("x  y", " {2}y") == "x"[:1] + broken("  y", " {2}y")


def test_a_tokenizer_s_own_marks_are_broken_whatever_they_are() -> None:
    made = tokenizer(["bread"])
    text = "bread <ask> <pad> <user> <sep> ask"
    assert unmarked(made, text) == "bread < ask> < pad> < user> < sep> ask"
    specials = {made.convert_tokens_to_ids(t) for t in ("<ask>", "<pad>", "<user>", "<sep>")}
    assert specials <= set(made(text, add_special_tokens=False)["input_ids"])
    assert not specials & set(made(unmarked(made, text), add_special_tokens=False)["input_ids"])


@given(st.text(max_size=40), st.text(max_size=40))
def test_quoted_lines_carry_a_code_that_the_texts_do_not_hold(a: str, b: str) -> None:
    code, parts = quoted({"one": a, "two": b})
    assert re.fullmatch("[0-9a-f]{12}", code)
    assert code not in a + b
    assert parts["one"] == f"[one {code}]\n{a}\n[end of one {code}]"
    assert quoted({"one": a + "x", "two": b})[0] != code != quoted({"one": a, "two": "x" + b})[0]


def test_a_text_moved_from_one_to_the_other_changes_the_code() -> None:
    assert quoted({"one": "ab", "two": "c"})[0] != quoted({"one": "a", "two": "bc"})[0]


def test_the_tag_s_letters_are_letters() -> None:
    assert last_line("x.y: 3", "x.y:", "[1-5]") == "3"
    assert last_line("xzy: 3", "x.y:", "[1-5]") is None


def test_steps_keep_the_order_and_never_raise() -> None:
    asked = [(Example("p", True, "unsafe", "made up"), Completion(text, True, 1)) for text in ("a", "", "b", "", "c")]

    def at_once(_: Example, completion: Completion) -> Verdict | None:
        return None if completion.text else Verdict("degenerate", 0.0, "empty")

    found = in_two_steps(asked, at_once, lambda rest: [Verdict("complied", 1.0, c.text) for _, c in rest])
    assert [v.reason for v in found] == ["a", "empty", "b", "empty", "c"]

    def fails(_: object) -> list[Verdict]:
        raise TiterError("no\nmodel")

    found = in_two_steps(asked, at_once, fails)
    assert [v.outcome for v in found] == ["could_not_judge", "degenerate"] * 2 + ["could_not_judge"]
    assert found[0].reason == "no\\nmodel"


def test_a_conversation_is_shown_with_all_its_turns() -> None:
    assert asked_for("bread?") == "bread?"
    shown = asked_for(written([Turn("user", "a?"), Turn("assistant", "b"), Turn("user", "c?")]))
    assert all(part in shown for part in ("a?", "b", "c?"))
