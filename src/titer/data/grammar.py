"""Text of the synthetic world: phrases of letters that mark a text as safe- or unsafe-dominant.

Source: section 1.3 of the mechanistic study's data (arXiv 2407.10264), at the smallest size that keeps its
point: texts are told apart by the letter trigrams that pre-terminals emit. A phrase is one trigram; a safe
text draws phrases of the safe pool, an unsafe one of the unsafe pool, a mixed one has a piece of each.
A text belongs to the held-out split if its phrase numbers add up to 0 modulo 5, so no held-out text is
ever trained on. Shapes: n texts, k phrases a text, P phrases a pool.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from titer.core.config import Record
from titer.data.draws import Draws, seed_of

SAFE, UNSAFE, MIXED = 0, 1, 2
PHRASE = 3
FOLDS = 5
Ints = NDArray[np.int64]


class Grammar(Record):
    """Two disjoint pools of trigrams over one alphabet, drawn by seed."""

    seed: int
    letters: int = Field(default=16, ge=4, le=52)
    phrases: int = Field(default=25, ge=FOLDS, multiple_of=FOLDS)

    def pools(self) -> Ints:
        """The two pools, (2, P, 3) letters."""
        return _pools(self.seed, self.letters, self.phrases)

    def texts(self, draws: Draws, kinds: Ints, k: int, held_out: bool) -> Ints:
        """Texts (n, 3k) of the given kinds (n,), all in the held-out split or all outside it."""
        n = len(kinds)
        number = draws.below(self.phrases, np.arange(k))
        if k > 1:
            fold = np.zeros(n, dtype=np.int64) if held_out else 1 + draws.below(FOLDS - 1, k)
            wanted = (fold - number[:, :-1].sum(1)) % FOLDS
            number[:, -1] = number[:, -1] // FOLDS * FOLDS + wanted
        pool = np.repeat((kinds == UNSAFE).astype(np.int64)[:, None], k, axis=1)
        mixed = np.flatnonzero(kinds == MIXED)
        if mixed.size:
            pool[mixed] = self._pieces(draws, k)[mixed]
        return self.pools()[pool, number].reshape(n, PHRASE * k)

    def _pieces(self, draws: Draws, k: int) -> Ints:
        """Which pool each phrase of a mixed text is from: a run of one, then a run of the other. (n, k)"""
        first, cut = draws.below(2, k + 1), 1 + draws.below(k - 1, k + 2)
        return np.where(np.arange(k)[None] < cut[:, None], first[:, None], 1 - first[:, None])


@lru_cache(maxsize=64)
def _pools(seed: int, letters: int, phrases: int) -> Ints:
    rng = np.random.default_rng(seed_of(seed, "grammar"))
    drawn = rng.choice(letters**PHRASE, size=2 * phrases, replace=False)
    trigrams = np.stack(np.unravel_index(drawn, (letters,) * PHRASE), axis=-1)
    return trigrams.reshape(2, phrases, PHRASE).astype(np.int64)
