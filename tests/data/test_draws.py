"""Draws addressed by (seed, purpose, example, slot): no order, no state, uniform, purposes apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from titer.data.draws import GOLDEN, Draws, permutation, scramble, seed_of

N = 20_000
LIKELY = 1e-4  # the seeds are fixed: a chance below this is a fault, not bad luck


def test_splitmix64_gives_its_published_sequence() -> None:
    """The reference implementation's first three outputs for the seed 0."""
    steps = np.arange(1, 4).astype(np.uint64) * GOLDEN
    assert [f"{int(x):016X}" for x in scramble(steps)] == ["E220A8397B1DCDAF", "6E789E6AA1B965F4", "06C45D188009454F"]


def plain(seed: int, purpose: str, index: int, slot: int) -> int:
    """One 64-bit word of a draw, in Python's own integers."""

    def mix(x: int) -> int:
        x ^= x >> 30
        x = x * 0xBF58476D1CE4E5B9 % 2**64
        x ^= x >> 27
        x = x * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    base = int.from_bytes(hashlib.sha256(f"{seed}\x1f{purpose}".encode()).digest()[:8], "big") >> 1
    return mix((mix((index * golden + base) % 2**64) + (slot + 1) * golden) % 2**64)


@given(st.integers(0, 2**63), st.text(max_size=5), st.integers(0, 2**40), st.integers(0, 300), st.integers(1, 2**31))
def test_a_draw_is_the_word_at_its_address(seed: int, purpose: str, index: int, slot: int, bound: int) -> None:
    word, draws = plain(seed, purpose, index, slot), Draws(seed, purpose, np.array([index]))
    assert draws.below(bound, slot).tolist() == [((word >> 32) * bound) >> 32]
    assert draws.uniform(slot).tolist() == [(word >> 11) / 2**53]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=30), st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_order_and_company_change_nothing(indices: list[int], slots: list[int]) -> None:
    whole = Draws(3, "x", np.arange(501)).below(97, np.arange(41))
    some = Draws(3, "x", np.asarray(indices)).below(97, np.asarray(slots))
    assert (some == whole[np.ix_(indices, slots)]).all()
    assert (Draws(3, "x", np.asarray(indices)).below(97, slots[0]) == some[:, 0]).all()


def test_asking_does_not_change_the_next_answer() -> None:
    draws = Draws(0, "x", np.arange(50))
    first = draws.below(10, np.arange(4))
    draws.uniform(2)
    assert (draws.below(10, np.arange(4)) == first).all()


@given(st.integers(0, 200), st.integers(0, 50))
def test_after_moves_the_slots(moved: int, slot: int) -> None:
    draws = Draws(0, "x", np.arange(20))
    assert (draws.after(moved).below(1000, slot) == draws.below(1000, slot + moved)).all()


def test_a_bound_for_each_example() -> None:
    draws, bounds = Draws(0, "x", np.arange(N)), np.arange(N) % 7 + 1
    found = draws.below(bounds, 3)
    assert (found >= 0).all()
    assert (found < bounds).all()
    assert all((found[bounds == b] == draws.below(b, 3)[bounds == b]).all() for b in range(1, 8))


def fits(counts: np.ndarray) -> bool:
    return bool(chisquare(counts.ravel()).pvalue > LIKELY)


@pytest.mark.parametrize("bound", [2, 3, 7, 25, 1000])
@pytest.mark.parametrize("slot", [0, 1, 90])
def test_draws_are_uniform_over_examples(bound: int, slot: int) -> None:
    assert fits(np.bincount(Draws(5, "uniform", np.arange(N)).below(bound, slot), minlength=bound))


def test_draws_are_uniform_over_slots_of_one_example() -> None:
    assert fits(np.bincount(Draws(5, "uniform", np.array([12])).below(16, np.arange(N))[0], minlength=16))


def test_floats_are_uniform_on_the_unit_interval() -> None:
    found = Draws(5, "uniform", np.arange(N)).uniform(0)
    assert ((found >= 0) & (found < 1)).all()
    assert kstest(found, "uniform").pvalue > LIKELY


def base() -> Draws:
    return Draws(5, "a", np.arange(N))


@pytest.mark.parametrize(
    "other",
    [
        lambda: Draws(5, "b", np.arange(N)),  # another purpose
        lambda: Draws(6, "a", np.arange(N)),  # another seed
        lambda: Draws(5, "a", np.arange(N) + 1),  # the next example
        lambda: Draws(5, "a", np.arange(N)).after(1),  # the next slot
    ],
)
def test_neighbours_in_any_direction_are_independent(other: Callable[[], Draws]) -> None:
    joint = base().below(8, 0) * 8 + other().below(8, 0)
    assert fits(np.bincount(joint, minlength=64))


def test_the_parts_of_a_seed_are_told_apart() -> None:
    assert seed_of("ab") != seed_of("a", "b")
    assert seed_of(1, 23) != seed_of(12, 3)
    assert seed_of(1) == seed_of("1")
    assert seed_of("x") == int(hashlib.sha256(b"x").hexdigest()[:16], 16) // 2
    assert all(0 <= seed_of(i) < 2**63 for i in range(200))


@given(st.integers(0, 2**63), st.integers(1, 200))
def test_a_permutation_holds_each_number_once(seed: int, n: int) -> None:
    found = permutation(seed, "p", n)
    assert sorted(found.tolist()) == list(range(n))
    assert (found == permutation(seed, "p", n)).all()


def test_permutations_of_other_seeds_and_purposes_differ() -> None:
    found = [permutation(s, p, 50).tolist() for s, p in ((0, "p"), (0, "q"), (1, "p"))]
    assert all(a != b for a, b in pairwise([*found, found[0]]))
