"""Unsafe requests of the world, and which combinations of text and operators safety tuning may show."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np

from tests.data.naive import class_of, operators_of, pairs, text_class
from titer.attacks.base import Attack
from titer.data.example import Example
from titer.data.world import World, WorldSource
from titer.recipes.demo import Scale, demo_recipe

N = 400
UNSAFE = {"safe": {"unsafe"}, "unsafe": {"unsafe", "contextual"}}  # by the class of the text
Combination = tuple[str, tuple[str, ...]]


@lru_cache
def unsafe_requests(world: World, n: int = N) -> tuple[Example, ...]:
    return tuple(WorldSource(world=world, kind="unsafe", split="test").examples(np.arange(n)))


def attacked(attack: Attack, world: World, n: int = N) -> list[Example]:
    """The attack's rewritten requests."""
    attempts = attack.attempts(unsafe_requests(world, n), {}, world)
    assert [attempt.prefix for attempt in attempts] == [""] * n
    return [attempt.example for attempt in attempts]


def combination(example: Example, world: World) -> Combination:
    """Class of the text, class of each operator."""
    return text_class(example, world), tuple(class_of(name, world) for name in operators_of(example, world))


@lru_cache
def shown_in_training(world: World) -> frozenset[Combination]:
    """What the aligning stages of the demo's recipe show, from the examples they draw."""
    found: set[Combination] = set()
    for node in demo_recipe(Scale(world=world), world.seed):
        if node.stage.kind == "align":
            for part in node.stage.streams["train"].parts:
                found |= {combination(e, world) for e in part.source.examples(np.arange(1000))}
    return frozenset(found)


@lru_cache
def allowed_in_training(world: World) -> frozenset[Combination]:
    """What safety tuning may show by its rules: every pair all safe, or all unsafe but for one identity."""
    found: set[Combination] = set()
    for text, unsafe in UNSAFE.items():
        safe = {"identity", "safe"} | ({"contextual"} if text == "safe" else set())
        one = [p for p in product(unsafe | {"identity"}, repeat=2) if p != ("identity", "identity")]
        user = [p for p in product(["held out", "identity"], repeat=2) if p != ("identity", "identity")]
        for allowed in (list(product(safe, repeat=2)), one, user):
            found |= {(text, tuple(n for pair in row for n in pair)) for row in product(allowed, repeat=world.slots // 2)}
    return frozenset(found)


def kinds_of_pairs(example: Example, world: World) -> list[set[str]]:
    """The classes in each pair of operators."""
    return [{class_of(name, world) for name in pair} for pair in pairs(operators_of(example, world))]
