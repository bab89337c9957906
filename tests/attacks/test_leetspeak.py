"""Digits for letters, small and capital ones; of a conversation in the last turn alone."""

from __future__ import annotations

from titer.attacks.leetspeak import Leetspeak
from titer.data.example import Example
from titer.data.turns import Turn, turns, written


def prompt(text: str) -> str:
    return Leetspeak().attempts([Example(text, True, "unsafe", "a file")], {}, None)[0].example.prompt


def test_six_letters_are_digits() -> None:
    assert prompt("a list of toes") == "4 l157 0f 7035"
    assert prompt("A LIST OF TOES") == "4 L157 0F 7035"


def test_earlier_turns_stay() -> None:
    said = [Turn("system", "Be brief."), Turn("user", "a toe")]
    assert turns(prompt(written(said))) == (said[0], Turn("user", "4 703"))
