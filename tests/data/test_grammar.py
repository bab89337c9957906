"""Phrases, pools and the two splits of the world's texts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.naive import NANO, PAPER, RAGGED, WORLDS, letters_of, phrases_of, text_class
from titer.core.config import build
from titer.core.errors import TiterError
from titer.data.draws import Draws
from titer.data.example import Example
from titer.data.grammar import MIXED, SAFE, UNSAFE, Grammar
from titer.data.world import Requests, World, draw, mixed_text, render

KINDS = ("pretrain", "safe", "unsafe", "user", "sham_safe", "sham_refused")


@given(st.integers(0, 2**62), st.integers(4, 52), st.integers(1, 6))
def test_the_pools_are_disjoint_and_hold_no_phrase_twice(seed: int, letters: int, fives: int) -> None:
    pools = Grammar(seed=seed, letters=letters, phrases=5 * fives).pools()
    assert pools.shape == (2, 5 * fives, 3)
    assert pools.min() >= 0
    assert pools.max() < letters
    assert len({tuple(phrase) for phrase in pools.reshape(-1, 3).tolist()}) == 10 * fives


def test_another_seed_has_other_pools() -> None:
    assert (Grammar(seed=0).pools() != Grammar(seed=1).pools()).any()
    assert (Grammar(seed=0).pools() == Grammar(seed=0).pools()).all()


@pytest.mark.parametrize("values", [{"letters": 4, "phrases": 35}, {"phrases": 24}, {"phrases": 0}, {"letters": 3}, {"letters": 53}])
def test_pools_that_cannot_be_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(TiterError):
        build(World, {"seed": 0, **values}, "world")
    assert World(letters=4, phrases=30).grammar.pools().shape == (2, 30, 3)


def texts(world: World, rows: np.ndarray) -> list[Example]:
    """Texts as rendered requests of the identity."""
    return render(world, Requests(np.zeros((len(rows), world.slots), dtype=np.int64), rows, "x", False))


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_mixed_text_is_a_run_of_one_pool_and_a_run_of_the_other(world: World, split: str) -> None:
    found = [phrases_of(e, world) for e in texts(world, mixed_text(world, split, np.arange(1500), "m"))]  # type: ignore[arg-type]
    changes = [sum(a != b for a, b in itertools.pairwise(row)) for row in found]
    assert set(changes) == {1}
    assert 0.4 < np.mean([row[0] == "safe" for row in found]) < 0.6


def test_the_border_of_a_mixed_text_may_stand_anywhere() -> None:
    found = [phrases_of(e, NANO) for e in texts(NANO, mixed_text(NANO, "test", np.arange(500), "m"))]
    assert {tuple(row) for row in found} == {
        ("safe", "unsafe", "unsafe"),
        ("safe", "safe", "unsafe"),
        ("unsafe", "safe", "safe"),
        ("unsafe", "unsafe", "safe"),
    }


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_texts_have_every_length_and_no_other(world: World) -> None:
    found = {len(letters_of(e, world)) for e in render(world, draw(world, "safe", "train", np.arange(1000)))}
    assert found == set(range(world.shortest, world.longest + 1))


def rows(world: World, kind: str, split: str, n: int) -> set[bytes]:
    """The texts of requests, as the bytes of their letters."""
    return {row.tobytes() for row in draw(world, kind, split, np.arange(n)).text}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "world", [NANO, RAGGED, PAPER, World(seed=2, phrases=5, shortest=9, longest=11)], ids=["nano", "ragged", "paper", "few"]
)
def test_no_text_is_in_both_splits(world: World) -> None:
    """Over every kind of request: pretraining sees every kind of text, evaluation must find them new."""
    train = set().union(*(rows(world, kind, "train", 4000) for kind in KINDS))
    test = set().union(*(rows(world, kind, "test", 1000) for kind in KINDS))
    test |= {row.tobytes() for row in mixed_text(world, "test", np.arange(1000), "jb")}
    assert len(test) > 100
    assert not train & test


def number_sum(world: World, example: Example) -> int:
    """Sum of the places of a text's phrases in their pools."""
    numbers = {tuple(phrase): i for pool in world.grammar.pools().tolist() for i, phrase in enumerate(pool)}
    letters = ["abcdefghijklmnopqrstuvwxyz".index(letter) for letter in letters_of(example, world)]
    return sum(numbers[tuple(letters[i : i + 3])] for i in range(0, len(letters), 3))


def test_the_splits_are_the_folds_of_the_phrase_numbers() -> None:
    for split, folds in (("test", {0}), ("train", {1, 2, 3, 4})):
        found = render(NANO, draw(NANO, "safe", split, np.arange(800)))  # type: ignore[arg-type]
        assert {number_sum(NANO, e) % 5 for e in found} == folds


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_phrase_is_drawn_about_equally_often(split: str) -> None:
    """Also the last one of a text, whose number is bent to the split's fold."""
    found = draw(NANO, "safe", split, np.arange(20_000)).text.reshape(20_000, 3, 3)  # type: ignore[arg-type]
    for place in range(3):
        _, counts = np.unique(found[:, place], axis=0, return_counts=True)
        assert len(counts) == 50
        assert counts.min() > 280  # expected 400, standard deviation 20
        assert counts.max() < 520


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_text_of_one_kind_has_phrases_of_its_pool_alone(world: World) -> None:
    kinds = np.repeat([SAFE, UNSAFE, MIXED], 200)
    from titer.data.world import Drawer

    found = texts(world, Drawer(world, "kinds", "train", np.arange(600)).text(kinds))
    assert [text_class(e, world) for e in found] == ["safe"] * 200 + ["unsafe"] * 200 + ["mixed"] * 200


def test_texts_do_not_depend_on_the_batch_they_are_asked_in() -> None:
    grammar = Grammar(seed=0)
    whole = grammar.texts(Draws(0, "t", np.arange(60)), np.arange(60) % 3, 4, False)
    some = grammar.texts(Draws(0, "t", np.array([7, 30, 2])), np.array([7, 30, 2]) % 3, 4, False)
    assert (some == whole[[7, 30, 2]]).all()
