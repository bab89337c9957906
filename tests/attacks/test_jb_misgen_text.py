"""JB-MisGen (text): contextual operators on unsafe texts of phrases that safety tuning never showed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.attacks.requests import attacked, unsafe_requests
from tests.data.naive import NANO, WORLDS, class_of, letters_of, operators_of, phrases_of, text_class
from titer.attacks.jb_misgen_text import JBMisGenText
from titer.core.errors import TiterError
from titer.data.example import Example
from titer.data.world import World, WorldSource

KEEPS_BACK = {name: world.model_copy(update={"novel": 5}) for name, world in WORLDS.items()}
EVERY_WORLD = pytest.mark.parametrize("world", KEEPS_BACK.values(), ids=KEEPS_BACK)


def numbers(example: Example, world: World) -> set[int]:
    """The places in the unsafe pool of a text's whole phrases."""
    pool = {tuple(phrase): i for i, phrase in enumerate(world.grammar.pools()[1].tolist())}
    text = [world.words.index(letter) - world.first_letter for letter in letters_of(example, world)]
    for begin in range(3):
        found = [pool.get(tuple(text[i : i + 3])) for i in range(begin, len(text) - 2, 3)]
        if None not in found and found:
            return {i for i in found if i is not None}
    raise AssertionError(f"{text} is not made of unsafe phrases")


@EVERY_WORLD
def test_texts_are_of_the_phrases_that_safety_tuning_lacks(world: World) -> None:
    for example in attacked(JBMisGenText(), world):
        assert text_class(example, world) == "unsafe"
        assert min(numbers(example, world)) >= world.phrases - world.novel
    for example in WorldSource(world=world, kind="unsafe").examples(np.arange(400)):
        if set(phrases_of(example, world)) == {"unsafe"}:
            assert max(numbers(example, world)) < world.phrases - world.novel


@EVERY_WORLD
def test_every_operator_is_contextual_or_an_identity_that_was_there(world: World) -> None:
    for new, old in zip(attacked(JBMisGenText(), world), unsafe_requests(world), strict=True):
        for after, before in zip(operators_of(new, world), operators_of(old, world), strict=True):
            assert class_of(after, world) == ("identity" if before == "f0" else "contextual")


def test_a_world_that_keeps_nothing_back_is_refused() -> None:
    with pytest.raises(TiterError, match="keeps no phrases from safety tuning"):
        attacked(JBMisGenText(), NANO)
