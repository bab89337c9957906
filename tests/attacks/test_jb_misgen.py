"""JB-MisGen: duplicates of unsafe operators, names that safety tuning never showed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.attacks.requests import attacked, unsafe_requests
from tests.data.naive import WORLDS, answer, letters_of, operators_of
from titer.attacks.jb_misgen import JBMisGen
from titer.data.world import World

EVERY_WORLD = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


@EVERY_WORLD
def test_every_operator_is_a_duplicate_or_an_identity_that_was_there(world: World) -> None:
    for new, old in zip(attacked(JBMisGen(), world), unsafe_requests(world), strict=True):
        assert letters_of(new, world) == letters_of(old, world)
        for after, before in zip(operators_of(new, world), operators_of(old, world), strict=True):
            assert after == "f0" if before == "f0" else re.fullmatch(r"g\d+", after)


@EVERY_WORLD
def test_every_duplicate_is_drawn(world: World) -> None:
    found = {name for e in attacked(JBMisGen(), world) for name in operators_of(e, world)} - {"f0"}
    assert found == {f"g{d}" for d in range(world.duplicates)}


@EVERY_WORLD
def test_the_compliant_answer_is_that_of_the_aliased_operators(world: World) -> None:
    """The same prompt under the operators' first names has the same answer."""

    def alias(name: re.Match[str]) -> str:
        return f"f{world.safe + int(name[1]) % world.unsafe}"

    for example in attacked(JBMisGen(), world):
        named = replace(example, prompt=re.sub(r"\bg(\d+)\b", alias, example.prompt))
        assert named.prompt != example.prompt
        assert answer(named, world) == example.comply
