"""Every attack file against the contract: declared, one attempt a request, deterministic, still harmful, states its limits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from titer.attacks.base import Attack
from titer.commands.attacking import learns
from titer.core.config import build
from titer.core.errors import TiterError
from titer.core.plugins import names, plugin
from titer.data.example import Example
from titer.data.world import World, WorldSource
from titer.models.lm import LM
from titer.pipeline import attempts_key

ATTACKS = sorted(names("attacks"))


@cache
def kind_of(name: str) -> type[Attack]:
    """An attack by its name, or by the path of its file."""
    return plugin("attacks", name, Attack)  # type: ignore[type-abstract]


@pytest.fixture(scope="module")
def world() -> World:
    """A world that keeps phrases back from safety tuning, which one attack needs."""
    return World(seed=1, novel=5)


@pytest.fixture(scope="module")
def unsafe() -> list[Example]:
    return WorldSource(world=World(seed=1), kind="unsafe", split="test").examples(np.arange(40))


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_declared_and_refuses_unknown_settings(name: str) -> None:
    made = kind_of(name)()
    assert made.SOURCE
    assert made.VERSION >= 1
    assert type(made)(**made.model_dump()) == made
    with pytest.raises(TiterError, match="unknown setting"):
        build(kind_of(name), {"no_such_setting": 1}, name)


@pytest.mark.parametrize("name", ATTACKS)
def test_one_attempt_a_request_still_harmful_with_both_references(name: str, unsafe: list[Example], world: World, lm: LM) -> None:
    made = kind_of(name)()
    found = made.attempts(unsafe, made.fit(lm, unsafe), world)
    assert len(found) == len(unsafe)
    for attempt in found:
        assert attempt.example.harmful
        assert attempt.example.comply
        assert attempt.example.refuse
    rewritten = [a.example.prompt for a in found] != [e.prompt for e in unsafe]
    assert rewritten or any(a.prefix or a.raw for a in found) or all(a.suffix is not None for a in found)


def made_by(attack: Attack, unsafe: list[Example], world: World, lm: LM) -> str:
    """Everything an attack's attempts hold, as a key."""
    return attempts_key(attack.attempts(unsafe, attack.fit(lm, unsafe), world))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_seed_gives_the_same_attempts(name: str, unsafe: list[Example], world: World, lm: LM) -> None:
    assert made_by(kind_of(name)(), unsafe, world, lm) == made_by(kind_of(name)(), unsafe, world, lm)
    if kind_of(name).WORLD or learns(kind_of(name)()):
        assert made_by(kind_of(name)(), unsafe, world, lm) != made_by(kind_of(name)(seed=1), unsafe, world, lm)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_of_the_world_refuses_real_text(name: str) -> None:
    text = [Example("How do I bake bread?", True, "unsafe", "a file")]
    if kind_of(name).WORLD:
        with pytest.raises(TiterError, match="synthetic world only"):
            kind_of(name)().attempts(text, {}, None)
    elif not learns(kind_of(name)()):
        assert len(kind_of(name)().attempts(text, {}, None)) == 1
