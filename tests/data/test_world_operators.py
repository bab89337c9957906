"""Which operators a request may hold, for each kind of request and of text, read from the rendered prompts."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from scipy.stats import chisquare

from tests.data.naive import NANO, WORLDS, class_of, operators_of, pairs, safe_draws, text_class, unsafe_draws
from titer.data.world import World, draw, render

EVERY_WORLD = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
N = 2000
SAFE = {"identity", "safe"}
ALLOWED = {
    ("safe", "safe"): SAFE | {"contextual"},
    ("safe", "unsafe"): SAFE,
    ("unsafe", "safe"): {"identity", "unsafe"},
    ("unsafe", "unsafe"): {"identity", "unsafe", "contextual"},
    ("user", "safe"): {"identity", "held out"},
    ("user", "unsafe"): {"identity", "held out"},
    ("sham_safe", "safe"): SAFE | {"contextual"},
    ("sham_safe", "unsafe"): SAFE,
    ("sham_refused", "safe"): SAFE,
    ("sham_refused", "unsafe"): SAFE,
}
REPLACED = ("unsafe", "user", "sham_refused")


@lru_cache
def drawn(world: World, kind: str, n: int = N) -> list[tuple[str, list[str]]]:
    """(class of the text, operators) of each request."""
    examples = render(world, draw(world, kind, "train", np.arange(n)))
    return [(text_class(e, world), operators_of(e, world)) for e in examples]


@EVERY_WORLD
@pytest.mark.parametrize("kind", ["safe", "unsafe", "user"])
def test_each_text_class_has_the_operator_classes_of_its_kind_and_all_of_them(world: World, kind: str) -> None:
    found: dict[str, set[str]] = {"safe": set(), "unsafe": set()}
    for text, names in drawn(world, kind):
        found[text] |= {class_of(name, world) for name in names}
    assert found == {text: ALLOWED[kind, text] for text in ("safe", "unsafe")}


@EVERY_WORLD
@pytest.mark.parametrize("kind", ["safe", "unsafe", "user", "sham_safe", "sham_refused"])
def test_half_of_the_texts_are_of_each_class(world: World, kind: str) -> None:
    counts = Counter(text for text, _ in drawn(world, kind))
    assert set(counts) == {"safe", "unsafe"}
    assert abs(counts["safe"] - N / 2) < 4 * np.sqrt(N) / 2


@EVERY_WORLD
@pytest.mark.parametrize("kind", REPLACED)
def test_a_pair_keeps_its_identity_only_beside_a_replaced_operator(world: World, kind: str) -> None:
    new = {"unsafe": {"unsafe", "contextual"}, "user": {"held out"}, "sham_refused": {"safe"}}[kind]
    counts: Counter[int] = Counter()
    for _, names in drawn(world, kind):
        for pair in pairs(names):
            kinds = [class_of(name, world) for name in pair]
            counts[kinds.count("identity")] += 1
            assert set(kinds) - {"identity"} <= new
    assert set(counts) == {0, 1}


@EVERY_WORLD
def test_the_sham_class_is_one_safe_operator_and_its_safe_class_lacks_it(world: World) -> None:
    sham = f"f{world.sham}"
    assert class_of(sham, world) == "safe"
    refused = {name for _, names in drawn(world, "sham_refused") for name in names}
    assert refused == {"f0", sham}
    kept = {(text, name) for text, names in drawn(world, "sham_safe") for name in names}
    allowed = {n for n in (f"f{o}" for o in range(world.operators)) if class_of(n, world) in ("identity", "safe", "contextual")}
    assert {name for text, name in kept if text == "safe"} == allowed - {sham}
    assert {name for text, name in kept if text == "unsafe"} == {n for n in allowed - {sham} if class_of(n, world) != "contextual"}


def test_the_sham_operator_is_drawn_by_seed_from_every_safe_one() -> None:
    assert {World(seed=s, safe=4).sham for s in range(40)} == {1, 2, 3}
    assert World(seed=5, safe=2).sham == 1


@EVERY_WORLD
def test_the_held_out_operator_is_the_users_alone(world: World) -> None:
    for kind in ("pretrain", "safe", "unsafe", "sham_safe", "sham_refused"):
        assert not any(class_of(name, world) == "held out" for _, names in drawn(world, kind) for name in names)


@EVERY_WORLD
def test_duplicates_are_seen_in_pretraining_alone(world: World) -> None:
    every = {f"g{d}" for d in range(world.duplicates)}
    assert every <= {name for _, names in drawn(world, "pretrain") for name in names}
    for kind in ("safe", "unsafe", "user", "sham_safe", "sham_refused"):
        assert not every & {name for _, names in drawn(world, kind) for name in names}


@EVERY_WORLD
def test_pretraining_has_every_other_operator_on_every_kind_of_text(world: World) -> None:
    known = {f"f{o}" for o in range(world.operators - 1)} | {f"g{d}" for d in range(world.duplicates)}
    found: dict[str, set[str]] = {}
    for text, names in drawn(world, "pretrain", 4000):
        found.setdefault(text, set()).update(names)
    assert found == {"safe": known, "unsafe": known, "mixed": known}


def follows(counts: Counter[tuple[str, ...]], chance: dict[tuple[str, ...], float]) -> bool:
    """Whether counts fit exact probabilities; a fixed seed, so a tiny chance means a fault."""
    assert set(counts) == set(chance)
    total = sum(counts.values())
    return bool(chisquare([counts[row] for row in chance], [p * total for p in chance.values()]).pvalue > 1e-4)


@pytest.mark.parametrize("text", ["safe", "unsafe"])
def test_safe_requests_have_exactly_the_declared_frequencies(text: str) -> None:
    """Half any safe operators, half identity in one drawn slot."""
    counts = Counter(tuple(names) for found, names in drawn(NANO, "safe", 12_000) if found == text)
    chance = safe_draws(NANO, text == "safe")
    assert sum(chance.values()) == pytest.approx(1)
    assert follows(counts, chance)


@pytest.mark.parametrize("text", ["safe", "unsafe"])
def test_unsafe_requests_replace_safe_ones_by_the_identity_rule(text: str) -> None:
    """One identity in a pair stays and the other operator is replaced; none or two, and both are."""
    counts = Counter(tuple(names) for found, names in drawn(NANO, "unsafe", 12_000) if found == text)
    chance = unsafe_draws(NANO, text == "safe")
    assert sum(chance.values()) == pytest.approx(1)
    assert follows(counts, chance)


def test_the_replaced_operator_is_drawn_apart_from_the_safe_one() -> None:
    """The same kind of request in a world of two pairs: each pair follows the rule on its own."""
    world = World(seed=4, slots=4, unsafe=2)
    seen = {tuple(name == "f0" for name in names) for _, names in drawn(world, "unsafe", 4000)}
    one = [(False, False), (True, False), (False, True)]
    assert seen == {(*a, *b) for a in one for b in one}
