"""JB-CO-Text: contextual operators on a text of both kinds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.attacks.requests import attacked, kinds_of_pairs, unsafe_requests
from tests.data.naive import NANO, WORLDS, class_of, letters_of, operators_of, phrases_of
from titer.attacks.jb_co_text import JBCOText
from titer.data.world import World, WorldSource

EVERY_WORLD = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


@EVERY_WORLD
def test_every_operator_is_contextual_or_an_identity_that_was_there(world: World) -> None:
    for new, old in zip(attacked(JBCOText(), world), unsafe_requests(world), strict=True):
        for after, before in zip(operators_of(new, world), operators_of(old, world), strict=True):
            assert class_of(after, world) == ("identity" if before == "f0" else "contextual")
        assert all("contextual" in kinds for kinds in kinds_of_pairs(new, world))


@EVERY_WORLD
def test_every_contextual_operator_is_drawn(world: World) -> None:
    found = {name for e in attacked(JBCOText(), world) for name in operators_of(e, world)} - {"f0"}
    assert len(found) == world.contextual


@EVERY_WORLD
def test_every_text_holds_phrases_of_both_pools(world: World) -> None:
    for example in attacked(JBCOText(), world):
        assert set(phrases_of(example, world)) == {"safe", "unsafe"}


@pytest.mark.long
@EVERY_WORLD
def test_no_text_is_one_that_training_may_show(world: World) -> None:
    """Mixed texts are part of pretraining; those of the attack are of the held-out split."""
    trained = {" ".join(letters_of(e, world)) for e in WorldSource(world=world, kind="pretrain").examples(np.arange(6000))}
    assert not trained & {" ".join(letters_of(e, world)) for e in attacked(JBCOText(), world)}


def test_texts_differ_between_requests_and_seeds() -> None:
    one, two = ([" ".join(letters_of(e, NANO)) for e in attacked(JBCOText(seed=seed), NANO)] for seed in (0, 1))
    assert len(set(one)) > 350
    assert one != two
