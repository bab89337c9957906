"""JB-CO-Task: in each pair one unsafe operator beside one always-safe operator."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.attacks.requests import UNSAFE, attacked, kinds_of_pairs, unsafe_requests
from tests.data.naive import NANO, WORLDS, class_of, letters_of, operators_of, pairs, text_class
from titer.attacks.jb_co_task import JBCOTask
from titer.data.world import World

EVERY_WORLD = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


@EVERY_WORLD
def test_each_pair_has_one_unsafe_and_one_always_safe_operator(world: World) -> None:
    for example in attacked(JBCOTask(), world):
        for kinds in kinds_of_pairs(example, world):
            assert len(kinds) == 2
            assert "safe" in kinds
            assert (kinds - {"safe"}) <= UNSAFE[text_class(example, world)]


@EVERY_WORLD
def test_the_unsafe_operator_is_one_of_the_pair_it_replaces_and_the_text_is_kept(world: World) -> None:
    for new, old in zip(attacked(JBCOTask(), world), unsafe_requests(world), strict=True):
        assert letters_of(new, world) == letters_of(old, world)
        for after, before in zip(pairs(operators_of(new, world)), pairs(operators_of(old, world)), strict=True):
            assert {name for name in after if class_of(name, world) != "safe"} <= set(before) - {"f0"}


def test_the_unsafe_operator_stands_first_as_often_as_second() -> None:
    first = [class_of(operators_of(e, NANO)[0], NANO) == "safe" for e in attacked(JBCOTask(), NANO, 2000)]
    assert 900 < sum(first) < 1100


@EVERY_WORLD
def test_every_safe_operator_but_the_identity_is_drawn(world: World) -> None:
    counts = Counter(name for e in attacked(JBCOTask(), world, 1500) for name in operators_of(e, world) if class_of(name, world) == "safe")
    assert set(counts) == {f"f{o}" for o in range(1, world.safe)}
    assert min(counts.values()) > 0.8 * sum(counts.values()) / len(counts)
