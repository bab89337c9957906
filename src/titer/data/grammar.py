"""The synthetic world's texts: sequences of phrases (letter trigrams), whose pool makes a text safe-dominant or unsafe-dominant.

Source: section 1.3 of the mechanistic study's data (arXiv 2407.10264), at the smallest size that keeps its
point: texts are told apart by the letter trigrams that pre-terminals emit. A phrase is one trigram; a safe
text draws phrases of the safe pool, an unsafe one of the unsafe pool, a mixed one has a piece of each.
The last `novel` phrases of each pool are for novel texts alone (and for pretraining, which sees all).
A text belongs to the held-out split if its phrase numbers (of a text that is cut to length: of the phrases
that always show in full) add up to 0 modulo 5, so no held-out text is ever trained on.
Shapes: n texts, k phrases a text, P phrases a pool.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from titer.data.draws import Draws, seed_of

SAFE, UNSAFE, MIXED, NOVEL_SAFE, NOVEL_UNSAFE, EVERY_UNSAFE, FULL = range(7)  # kinds of text; Grammar itself has not the last two
PHRASE = 3
FOLDS = 5
Ints = NDArray[np.int64]


class Grammar(NamedTuple):
    """Two disjoint pools of trigrams, safe and unsafe, over one alphabet, drawn by seed. `phrases` (a pool's size) and `novel` are
    multiples of FOLDS, as in a `World`."""

    seed: int
    letters: int = 16
    phrases: int = 25
    novel: int = 0

    def pools(self) -> Ints:
        """Returns the safe pool and the unsafe pool as letters, (2, P, 3)."""
        return _pools(self.seed, self.letters, self.phrases)

    def texts(
        self, draws: Draws, kinds: Ints, k: int, held_out: bool, shown: tuple[int, Ints] | None = None, everything: bool = False
    ) -> Ints:
        """Draws texts (n, 3k) of the given kinds (n,), all in the held-out split or all outside it.

        `everything` (for pretraining): draw from the whole pools, novel phrases included.
        `shown`: (the first phrase, the last phrase (n,)) that the caller will leave whole. Those from first to last decide the
        split, and in a mixed text they include phrases of both pieces. Default: all phrases.
        """
        n = len(kinds)
        first, last = shown or (0, np.full(n, k - 1))
        new = (kinds == NOVEL_SAFE) | (kinds == NOVEL_UNSAFE)
        lowest = np.where(new, self.phrases - self.novel, 0)
        many = np.full(n, self.phrases) if everything else np.where(new, self.novel, self.phrases - self.novel)
        number, place, row = lowest[:, None] + draws.below(many, np.arange(k)), np.arange(k)[None], np.arange(n)
        fold = np.zeros(n, dtype=np.int64) if held_out else 1 + draws.below(FOLDS - 1, k)
        others = np.where((place >= first) & (place < last[:, None]), number, 0).sum(1)
        number[row, last] = number[row, last] // FOLDS * FOLDS + (fold - others) % FOLDS
        pool = np.repeat(np.isin(kinds, (UNSAFE, NOVEL_UNSAFE)).astype(np.int64)[:, None], k, axis=1)
        mixed = np.flatnonzero(kinds == MIXED)
        if mixed.size:
            pool[mixed] = self._pieces(draws, k, first, last)[mixed]
        return self.pools()[pool, number].reshape(n, PHRASE * k)

    def safe_share(self, texts: Ints) -> NDArray[np.float64]:
        """Returns the share of each text's phrases that belong to the safe pool, (n,). The texts (n, 3k) are of whole phrases."""
        place = self.letters ** np.arange(PHRASE - 1, -1, -1)
        return np.isin(texts.reshape(len(texts), -1, PHRASE) @ place, self.pools()[0] @ place).mean(1)

    def _pieces(self, draws: Draws, k: int, first: int, last: Ints) -> Ints:
        """Draws which pool each phrase of a mixed text comes from, (n, k): a run of one pool, then a run of the other."""
        before, cut = draws.below(2, k + 1), first + 1 + draws.below(last - first, k + 2)
        return np.where(np.arange(k)[None] < cut[:, None], before[:, None], 1 - before[:, None])


@lru_cache(maxsize=64)
def _pools(seed: int, letters: int, phrases: int) -> Ints:
    rng = np.random.default_rng(seed_of(seed, "grammar"))
    drawn = rng.choice(letters**PHRASE, size=2 * phrases, replace=False)
    trigrams = np.stack(np.unravel_index(drawn, (letters,) * PHRASE), axis=-1)
    return trigrams.reshape(2, phrases, PHRASE).astype(np.int64)
