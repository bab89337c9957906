"""Forms of a pretraining request: how much of its sequence is shown. Source: arXiv 2407.10264, appendix (section 1.6).

WHOLE: everything. TEXT_ONLY: operators become PAD, no output. FIRST_ONLY: no second output. SECOND_ONLY: text and its end
become PAD, the second output alone is trained. The shares of the forms move with the example's place in its stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from titer.core.config import Record

Ints = NDArray[np.int64]
Shares = tuple[float, float, float, float]
WHOLE, TEXT_ONLY, FIRST_ONLY, SECOND_ONLY = range(4)
PAPER_BATCH = 512


class Schedule(Record):
    """Shares (WHOLE, TEXT_ONLY, FIRST_ONLY, SECOND_ONLY): `first` for half the warm-up, then linearly to `last` at `end`.

    Both times count examples, not steps; the held-out split has `evaluation` throughout.
    """

    warmup: int = Field(default=20_000 * PAPER_BATCH, ge=0)
    end: int = Field(default=100_000 * PAPER_BATCH, ge=1)
    first: Shares = (0.1, 0.5, 0.2, 0.2)
    last: Shares = (0.2, 0.1, 0.3, 0.4)
    evaluation: Shares = (0.9, 0.0, 0.0, 0.1)

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if any(min(shares) < 0 or abs(sum(shares) - 1) > 1e-9 for shares in (self.first, self.last, self.evaluation)):
            raise ValueError("shares are not negative and add up to 1")
        if self.warmup // 2 >= self.end:
            raise ValueError(f"half the warm-up, {self.warmup // 2} examples, is not before the end, {self.end}")
        return self

    def shares(self, indices: Ints, held_out: bool = False) -> NDArray[np.float64]:
        """(n, 4): the shares at each place of the stream."""
        if held_out:
            return np.tile(np.asarray(self.evaluation), (len(indices), 1))
        begin = self.warmup // 2
        moved = np.clip((np.asarray(indices) - begin) / (self.end - begin), 0.0, 1.0)[:, None]
        return np.asarray((1 - moved) * np.asarray(self.first) + moved * np.asarray(self.last))

    def forms(self, uniform: NDArray[np.float64], indices: Ints, held_out: bool = False) -> Ints:
        """The form of each example from its uniform number in [0, 1). (n,)"""
        bounds = self.shares(indices, held_out).cumsum(1)[:, :3]
        return np.asarray((uniform[:, None] >= bounds).sum(1))
