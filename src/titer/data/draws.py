"""Random numbers that depend only on (seed, purpose, example, slot): there is no state, and they can be drawn in any order, vectorised.

The generator is counter-based: splitmix64 (Steele, Lea & Flood 2014) of the example's key plus the slot. Two runs, or two
ranks, that ask for example i get the same example i.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
WORD = 2**64
T = TypeVar("T")


def seed_of(*parts: object) -> int:
    """Hashes any printable values to a 63-bit seed, which is the same in every process and on every platform."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies splitmix64's finaliser (its mixing step) to `x`, in place, and returns it."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


class Draws:
    """Random numbers for the examples `indices` (n,), for one seed and purpose. The number in slot s of example i never changes."""

    def __init__(self, seed: int, purpose: str, indices: NDArray[np.int64]) -> None:
        base = np.uint64(seed_of(seed, purpose))
        self._keys = scramble(np.asarray(indices).astype(np.uint64) * GOLDEN + base)

    def after(self, slots: int) -> Draws:
        """Returns the same examples' draws, shifted: its slot 0 is slot `slots` here. Another function can so use slots of its own."""
        moved = copy.copy(self)
        moved._keys = self._keys + np.uint64(slots * int(GOLDEN) % WORD)
        return moved

    def _words(self, slots: NDArray[np.int64] | int) -> NDArray[np.uint64]:
        steps = (np.atleast_1d(np.asarray(slots)).astype(np.uint64) + np.uint64(1)) * GOLDEN
        return scramble(self._keys[:, None] + steps[None, :])

    def below(self, bound: int | NDArray[np.int64], slots: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Draws integers in [0, bound), of shape (n,) for one slot or (n, k) for k slots. `bound`: one number, or (n,), one per example."""
        high = self._words(slots) >> np.uint64(32)
        limit = np.asarray(bound).astype(np.uint64)
        drawn = ((high * (limit[:, None] if limit.ndim else limit)) >> np.uint64(32)).astype(np.int64)
        return drawn[:, 0] if np.ndim(slots) == 0 else drawn

    def uniform(self, slot: int) -> NDArray[np.float64]:
        """Draws floats in [0, 1), one per example, of shape (n,)."""
        return (self._words(slot)[:, 0] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def drawn(items: Sequence[T], limit: int | None = None) -> list[T]:
    """Samples at most `limit` items (None: all): the first ones of an order drawn with seed 0, so a smaller sample is part of a larger."""
    return [items[i] for i in permutation(0, "drawn", len(items))[:limit]]


def permutation(seed: int, purpose: str, n: int) -> NDArray[np.int64]:
    """Returns the permutation of 0..n-1 that (seed, purpose) determines."""
    return np.random.default_rng(seed_of(seed, purpose)).permutation(n).astype(np.int64)
