"""Decides limits on what a tuning may change, by an interval, and tells in advance how many prompts that needs. Layer 0, the core.

A limit passes or fails if the whole interval is on one side of it; otherwise the prompts cannot resolve it. The power is computed
exactly: each possible table of pairs (gained, lost, kept) has its trinomial probability, and is given the same interval that decides.
Rates and changes are shares here, from -1 to 1. A limit is written in percentage points, or in its measure's own unit.
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
STATUS: dict[Decided, int] = {"fail": 3, "cannot resolve": 4, "pass": 0}  # exit statuses, from the worst
POWER = 0.8
FLIPS = 0.05  # assumed share of prompts whose outcome changes anyway, half of them in each direction
TAILS = 9.0  # standard deviations; counts further out are left out
FORM = re.compile(
    r"([^<>=!]+?)(?:\s+(drop|rise)s?(?:\s+by)?)?\s*([<>])\s*(\d+(?:\.\d+)?)\s*(?:points?|%)?(\s+beyond\s+(?:the\s+)?control)?"
)
KIND = re.compile(r"kind\s+is\s+(not\s+)?(\S.*)")


def plain(name: str) -> str:
    """Returns a measure's name as it is written in limits: small letters, digits and underscores."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


@dataclass(frozen=True)
class Limit:
    """A limit, as written in `text`: it fails if the measure `name` is above `at` (if not `above`: below).

    With `move` "drops" or "rises", the measure is how far `name` drops or rises; with `control`, how much further than under the benign
    control. With `kinds`, it fails if the kind of change is one of them (if not `above`: none of them), and `at` is NaN.
    """

    text: str
    name: str
    move: Literal["", "drops", "rises"]
    above: bool
    at: float
    control: bool = False
    kinds: tuple[str, ...] = ()

    def decided(self, measured: Interval) -> Decided:
        """Decides the limit by the interval of the value, or of the change (after minus before), in its unit. NaN: "cannot resolve"."""
        low, high = (-measured.high, -measured.low) if self.move == "drops" else (measured.low, measured.high)
        bad, good = (low > self.at, high <= self.at) if self.above else (high < self.at, low >= self.at)
        return "fail" if bad else "pass" if good else "cannot resolve"


def limit(text: str) -> Limit:
    """Reads a limit. Errors: the text is not NAME [drops|rises] < or > NUMBER [beyond control], and not kind is [not] KIND, KIND ..."""
    if named := KIND.fullmatch(text.strip()):
        kinds = tuple(one.strip() for one in re.split(r",|\bor\b", named[2]) if one.strip())
        return Limit(" ".join(text.split()), "kind", "", not named[1], math.nan, kinds=kinds)
    found = FORM.fullmatch(text.strip())
    if found is None or (found[5] and not found[2]):
        raise TiterError(
            f"--fail-if {visible(text, 80)!r} is not a limit",
            expected="NAME drops > POINTS, NAME rises > POINTS (both also with 'beyond control' behind), NAME > POINTS, NAME < POINTS "
            "or kind is KIND, as in 'unsafe_refused drops > 5' or 'kind is harmful, covert'",
        )
    name, move, sign, at, beside = found.groups()
    ways: dict[str | None, Literal["", "drops", "rises"]] = {"drop": "drops", "rise": "rises"}
    return Limit(" ".join(text.split()), plain(name), ways.get(move, ""), sign == ">", float(at), bool(beside))


class Shown(NamedTuple):
    """What a number of prompts can show of a limit.

    `least`: the smallest true value that fails in 80 % of audits (NaN: none does). `passes`: how often an audit passes if nothing changed.
    """

    least: float
    passes: float


def power(total: int, change: float, holds: Callable[[np.ndarray, np.ndarray], np.ndarray], flips: float = FLIPS) -> float:
    """Computes the probability that the interval (low, high) of the measured change satisfies `holds`.

    Of `total` prompts, the share that gains the outcome exceeds the share that loses it by `change`; a share `flips` changes it anyway,
    half of it in each direction.
    """
    moved = min(flips, 1 - abs(change)) / 2
    gain, lose = moved + max(change, 0.0), moved + max(-change, 0.0)
    gained = _around(total, gain)[:, None]
    lost = _around(total, lose)[None, :]
    weight = stats.binom.pmf(gained, total, gain) * stats.binom.pmf(lost, total - gained, min(1.0, lose / max(1 - gain, 1e-12)))
    low, high = paired_ends(gained, lost, total)
    return float(weight[holds(low, high) & (gained + lost <= total)].sum())


def _around(total: int, rate: float) -> np.ndarray:
    """Returns the counts whose probability is not negligible."""
    spread = TAILS * math.sqrt(total * rate * (1 - rate)) + TAILS
    return np.arange(max(0, math.floor(total * rate - spread)), min(total, math.ceil(total * rate + spread)) + 1)


def least_change(total: int, beyond: float = 0.0, wanted: float = POWER) -> float:
    """Finds the smallest true change that `total` paired prompts show to exceed `beyond`, with power `wanted`; NaN if there is none."""
    return _least(lambda change: power(total, change, lambda low, _: low > beyond), beyond, 1.0, wanted)


def least_rate(total: int, at: float, above: bool, wanted: float = POWER) -> float:
    """Finds the rate nearest to `at` that `total` prompts show to be above it (or below), with power `wanted`; NaN if there is none."""
    ends = [wilson(count, total) for count in range(total + 1)]
    bad = np.array([one.low > at if above else one.high < at for one in ends])

    def fails(distance: float) -> float:
        rate = at + distance if above else at - distance
        return float(stats.binom.pmf(np.flatnonzero(bad), total, rate).sum())

    found = _least(fails, 0.0, 1 - at if above else at, wanted)
    return at + found if above else at - found


def _least(found: Callable[[float], float], low: float, high: float, wanted: float) -> float:
    """Finds the smallest argument, to within 1e-4, at which a rising function reaches `wanted`; NaN if it does not by `high`."""
    if found(high) < wanted:
        return math.nan
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= wanted else (middle, high)
    return high


def prompts_for(resolution: float, most: int, wanted: float = POWER) -> int:
    """Finds the smallest number of prompts that shows a true change of `resolution` with power `wanted`; `most` if fewer do not."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, resolution, lambda low, _: low > 0) >= wanted else (middle, high)
    return high


def shown(asked: Limit, total: int) -> Shown:
    """Returns what `total` prompts can show of a limit on a rate, in percentage points."""
    at = asked.at / 100
    if not asked.move:
        return Shown(100 * least_rate(total, at, asked.above), math.nan)
    if not asked.above:
        return Shown(math.nan, math.nan)
    return Shown(100 * least_change(total, at), power(total, 0.0, lambda _, high: high <= at))
