"""A limit on what tuning may do, decided by an interval; and what a number of prompts can show of it, before any is asked. L0.

A limit passes or fails where the whole interval lies on one side of it; between, the prompts cannot resolve it. Power is exact:
every table of pairs is weighed by its probability (a trinomial: gained, lost, kept) and given the interval that decides.
Rates and changes are shares here, from -1 to 1; a limit is worded in points, or in its measure's own unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from titer.core.errors import TiterError, visible
from titer.core.stats import Interval, paired_ends, wilson

Decided = Literal["pass", "fail", "cannot resolve"]
STATUS: dict[Decided, int] = {"fail": 3, "cannot resolve": 4, "pass": 0}  # exit statuses, the worst first
POWER = 0.8
FLIPS = 0.05  # of the prompts change their outcome besides, half of them each way: assumed
TAILS = 9.0  # standard deviations beyond which counts weigh nothing
FORM = re.compile(r"([^<>]+?)\s+(?:(drops|rises)\s+(?:by\s+)?)?([<>])\s*(\d+(?:\.\d+)?)\s*(?:points?|%)?")


def plain(name: str) -> str:
    """A name as limits write it: small letters, digits, underscores."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


@dataclass(frozen=True)
class Limit:
    """`text` fails where what `name` is (`move` "") or how far it drops or rises lies above `at` (or below, if not `above`)."""

    text: str
    name: str
    move: Literal["", "drops", "rises"]
    above: bool
    at: float

    def decided(self, measured: Interval) -> Decided:
        """By the interval of the value or the change, after minus before, in the limit's unit. NaN resolves nothing."""
        low, high = (-measured.high, -measured.low) if self.move == "drops" else (measured.low, measured.high)
        bad, good = (low > self.at, high <= self.at) if self.above else (high < self.at, low >= self.at)
        return "fail" if bad else "pass" if good else "cannot resolve"


def limit(text: str) -> Limit:
    """Errors: not NAME [drops|rises] < or > NUMBER."""
    found = FORM.fullmatch(text.strip())
    if found is None:
        raise TiterError(
            f"--fail-if {visible(text, 80)!r}",
            expected="NAME drops > POINTS, NAME rises > POINTS, NAME > POINTS or NAME < POINTS, as in 'unsafe_refused drops > 5'",
        )
    name, move, sign, at = found.groups()
    ways: dict[str | None, Literal["", "drops", "rises"]] = {"drops": "drops", "rises": "rises"}
    return Limit(" ".join(text.split()), plain(name), ways.get(move, ""), sign == ">", float(at))


class Shown(NamedTuple):
    """What a limit's prompts can do: the least true value that fails in 80 % of audits (NaN: none does), how often no change passes."""

    least: float
    passes: float


def power(total: int, change: float, holds: Callable[[np.ndarray, np.ndarray], np.ndarray], flips: float = FLIPS) -> float:
    """P(the interval (low, high) of the change `holds`) over `total` prompts, of which a share `change` more gain than lose the
    outcome, and `flips` change it both ways besides."""
    moved = min(flips, 1 - abs(change)) / 2
    gain, lose = moved + max(change, 0.0), moved + max(-change, 0.0)
    gained = _around(total, gain)[:, None]
    lost = _around(total, lose)[None, :]
    weight = stats.binom.pmf(gained, total, gain) * stats.binom.pmf(lost, total - gained, min(1.0, lose / max(1 - gain, 1e-12)))
    low, high = paired_ends(gained, lost, total)
    return float(weight[holds(low, high) & (gained + lost <= total)].sum())


def _around(total: int, rate: float) -> np.ndarray:
    """Counts that weigh anything."""
    spread = TAILS * math.sqrt(total * rate * (1 - rate)) + TAILS
    return np.arange(max(0, math.floor(total * rate - spread)), min(total, math.ceil(total * rate + spread)) + 1)


def least_change(total: int, beyond: float = 0.0, wanted: float = POWER) -> float:
    """The smallest true change that `total` paired prompts show to exceed `beyond` with the power `wanted`; NaN where none does."""
    return _least(lambda change: power(total, change, lambda low, _: low > beyond), beyond, 1.0, wanted)


def least_rate(total: int, at: float, above: bool, wanted: float = POWER) -> float:
    """The rate nearest to `at` that `total` prompts show to lie above it (or below) with the power `wanted`; NaN where none does."""
    ends = [wilson(count, total) for count in range(total + 1)]
    bad = np.array([one.low > at if above else one.high < at for one in ends])

    def fails(distance: float) -> float:
        rate = at + distance if above else at - distance
        return float(stats.binom.pmf(np.flatnonzero(bad), total, rate).sum())

    found = _least(fails, 0.0, 1 - at if above else at, wanted)
    return at + found if above else at - found


def _least(found: Callable[[float], float], low: float, high: float, wanted: float) -> float:
    """The least argument, to 1e-4, from which a rising function exceeds `wanted`; NaN where none does."""
    if found(high) < wanted:
        return math.nan
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= wanted else (middle, high)
    return high


def prompts_for(resolution: float, most: int, wanted: float = POWER) -> int:
    """The fewest prompts, at most `most`, that show a true change of `resolution` with the power `wanted`."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, resolution, lambda low, _: low > 0) >= wanted else (middle, high)
    return high


def shown(asked: Limit, total: int) -> Shown:
    """What `total` prompts can show of a limit on a rate, in points."""
    at = asked.at / 100
    if not asked.move:
        return Shown(100 * least_rate(total, at, asked.above), math.nan)
    if not asked.above:
        return Shown(math.nan, math.nan)
    return Shown(100 * least_change(total, at), power(total, 0.0, lambda _, high: high <= at))
