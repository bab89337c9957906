"""Finds the break point of an attack: the first step at which a rate crosses a level. It is only known to lie between two judged steps.

The model is judged at steps s_0 < s_1 < ... (s_0 = 0: before the attack). So the break point t is interval-censored:
after < t <= by. If the rate never crosses, t > the last judged step; if it has crossed at the first judged step, t <= that step
(t = 0 at step 0). The first crossing counts, even if the curve returns. No point inside a gap is assumed: statistics over
seeds are bounds that hold wherever in its gap each t lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field, model_validator

from titer.core.config import Record
from titer.core.errors import TiterError
from titer.core.stats import wilson


class Span(NamedTuple):
    """The lower and the upper bound of a number; `high` may be infinity."""

    low: float
    high: float

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"> {self.low:g}"
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}-{self.high:g}"


class BreakPoint(Record):
    """The gap between two judged steps in which a curve first crosses a level. It is printed as 40-80, > 320, <= 5 or 0."""

    after: int | None = Field(ge=0, description="last judged step before the crossing; none if the first judged step had crossed")
    by: int | None = Field(ge=0, description="first judged step that had crossed; none if no step had")
    unsure: bool = Field(default=False, description="the 95 % Wilson interval of the rate at the crossing holds the level")

    @model_validator(mode="after")
    def _ordered(self) -> BreakPoint:
        if self.after is None and self.by is None:
            raise ValueError("a break point without any judged step")
        if self.after is not None and self.by is not None and self.after >= self.by:
            raise ValueError(f"judged at {self.after} before {self.by}")
        return self

    def __str__(self) -> str:
        if self.by is None:
            return f"> {self.after}"
        if self.after is None:
            return f"<= {self.by}" if self.by else "0"
        return f"{self.after}-{self.by}"

    @property
    def span(self) -> Span:
        """The bounds: (last judged step before the crossing, first at or after it); (last judged step, infinity) if it never crosses.

        If the first judged step is already beyond the level, the lower bound is 0.
        """
        return Span(float(self.after or 0), math.inf if self.by is None else float(self.by))

    @property
    def note(self) -> str:
        """A remark for the reader on how sure the break point is; "" if there is none."""
        return "the interval of the rate at the crossing holds the level" if self.unsure else ""


def break_point(
    steps: Sequence[int], rates: Sequence[float], level: float = 0.5, falling: bool = False, n: int | Sequence[int] | None = None
) -> BreakPoint:
    """Finds where a rate first is at `level` or above (compliance) or, with `falling`, first below it (refusal).

    `steps`: in any order, each once; a step whose rate is NaN was not judged. `n`: the number of requests behind each rate, or
    behind all; the crossing is marked unsure if its Wilson interval includes the level. Errors: no judged step; one judged
    twice; a step that is not a whole number.
    """
    if any(step != int(step) for step in steps):
        raise TiterError("break point: a step is not a whole number", expected="steps of the attack (or numbers of examples), not epochs")
    sizes = [n or 0] * len(steps) if n is None or isinstance(n, int) else list(n)
    curve = sorted(
        (int(step), float(rate), int(size)) for step, rate, size in zip(steps, rates, sizes, strict=True) if not math.isnan(rate)
    )
    twice = [a[0] for a, b in itertools.pairwise(curve) if a[0] == b[0]]
    if not curve or twice:
        what = f"step {twice[0]} is judged twice" if twice else "no judged step"
        raise TiterError(f"break point: {what}", expected="one rate for each judged step, with step 0 (before the attack) among them")
    first = next((k for k, (_, rate, _) in enumerate(curve) if (rate < level if falling else rate >= level)), None)
    if first is None:
        return BreakPoint(after=curve[-1][0], by=None)
    step, rate, size = curve[first]
    interval = wilson(round(rate * size), size)  # NaN without n, which holds no level
    unsure = interval.high >= level if falling else interval.low < level
    return BreakPoint(after=curve[first - 1][0] if first else None, by=step, unsure=unsure)


def order(first: BreakPoint, second: BreakPoint) -> str:
    """Tells whether `first` broke "later" or "earlier" than `second`; "undecided" if their gaps overlap or neither broke."""
    for told, a, b in (("later", first, second), ("earlier", second, first)):
        if a.after is not None and b.by is not None and a.after >= b.by:  # t_a > a.after >= b.by >= t_b
            return told
    return "undecided"


def median(points: Sequence[BreakPoint]) -> Span:
    """Bounds the median of the seeds' break points: the k-th smallest t lies between the k-th smallest lower and upper ends.

    Seeds that never broke count too, so the upper bound is infinity if half of them did not. These are bounds of this sample's
    median, not a confidence interval, which a few seeds cannot give. Errors: no point.
    """
    if not points:
        raise TiterError("the median of no break points", expected="one break point for each seed")
    lows, highs = (sorted(ends) for ends in zip(*(point.span for point in points), strict=True))
    middle = (len(points) - 1) // 2, len(points) // 2
    return Span(sum(lows[k] for k in middle) / 2, sum(highs[k] for k in middle) / 2)
