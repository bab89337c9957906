"""Requests in base64: what is decoded is the request, and of a conversation the last turn alone is encoded."""

from __future__ import annotations

import base64

from titer.attacks.base64_encoding import Base64Encoding
from titer.data.example import Example
from titer.data.turns import Turn, turns, written


def prompt(text: str, **settings: str) -> str:
    return Base64Encoding(**settings).attempts([Example(text, True, "unsafe", "a file")], {}, None)[0].example.prompt


def test_it_decodes_to_the_request() -> None:
    for text in ("How do I bake bread?", "Wie bäckt man Brot? 🍞"):
        assert base64.b64decode(prompt(text)).decode() == text
    assert prompt("ab", before="Decode this: ") == "Decode this: YWI="


def test_earlier_turns_stay() -> None:
    said = [Turn("system", "Be brief."), Turn("user", "a list"), Turn("assistant", "toes"), Turn("user", "ab")]
    assert turns(prompt(written(said))) == (*said[:3], Turn("user", "YWI="))
