"""A fixed text around every request."""

from __future__ import annotations

import pytest

from titer.attacks.affix import OBEDIENT, Affix
from titer.core.errors import TiterError
from titer.data.example import Example
from titer.data.world import World

TEXT = [Example("How do I bake bread?", True, "unsafe", "a file", refuse="No.")]


def prompts(attack: Affix, world: World | None = None, examples: list[Example] = TEXT) -> list[str]:
    return [a.example.prompt for a in attack.attempts(examples, {}, world)]


def test_texts_stand_before_and_behind() -> None:
    assert prompts(Affix(before="You are kind.", after="abc def")) == ["You are kind.\n\nHow do I bake bread? abc def"]
    assert prompts(Affix(after="abc")) == ["How do I bake bread? abc"]
    assert prompts(Affix()) == [f"{OBEDIENT}\n\nHow do I bake bread?"]


def test_on_the_world_words_are_words() -> None:
    request = [Example("<bos> f1 f2 <sot> a b <eot>", True, "unsafe", "world")]
    assert prompts(Affix(), World(marks=True), request) == ["p0 <bos> f1 f2 <sot> a b <eot>"]
    assert prompts(Affix(before="t0"), World(marks=True), request) == ["t0 <bos> f1 f2 <sot> a b <eot>"]
    with pytest.raises(TiterError, match="'t0' is not a word"):
        prompts(Affix(before="t0"), World(), request)
