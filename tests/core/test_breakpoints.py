"""Break points: known answers, a naive loop, and bounds that hold for true times hidden between judged steps."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from titer.core.breakpoints import BreakPoint, break_point, median, order
from titer.core.errors import TiterError
from titer.core.stats import wilson

STEPS = (0, 5, 10, 20, 40, 80, 160, 320)
NEVER = BreakPoint(after=320, by=None)
AT_ONCE = BreakPoint(after=None, by=0)
EARLY = BreakPoint(after=None, by=5)


def gap(after: int, by: int) -> BreakPoint:
    return BreakPoint(after=after, by=by)


@pytest.mark.parametrize(
    ("steps", "rates", "printed", "span"),
    [
        (STEPS, (0, 0, 0, 0.1, 0.4, 0.5, 0.9, 1), "40-80", (40, 80)),
        (STEPS, (0, 0, 0, 0, 0, 0, 0, 0.49), "> 320", (320, math.inf)),
        (STEPS, (0.6,) * 8, "0", (0, 0)),
        (STEPS[1:], (0.6,) * 7, "<= 5", (0, 5)),
        (STEPS, (0, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), "0-5", (0, 5)),  # the first crossing, though the curve returns
        (STEPS, (0, 0, math.nan, math.nan, 0.6, 1, 1, 1), "5-40", (5, 40)),  # what was not judged closes no gap
        ((80, 0, 40), (0.9, 0, 0.2), "40-80", (40, 80)),
    ],
)
def test_known_curves(steps: tuple[int, ...], rates: tuple[float, ...], printed: str, span: tuple[float, float]) -> None:
    found = break_point(steps, rates)
    assert str(found) == printed
    assert found.span == span
    assert (found.by is None) == printed.startswith(">")
    falling = break_point(steps, [1 - rate - 1e-9 for rate in rates], falling=True)
    assert falling == found


def test_a_rising_rate_crosses_at_the_level_and_a_falling_one_below_it() -> None:
    assert str(break_point((0, 1), (0.0, 0.5))) == "0-1"
    assert str(break_point((0, 1), (1.0, 0.5), falling=True)) == "> 1"
    assert str(break_point((0, 1, 2), (0, 0.2, 0.3), level=0.3)) == "1-2"


def test_a_crossing_within_the_error_of_few_requests_is_marked() -> None:
    few, many = (break_point((0, 10), (0.0, 0.6), n=n) for n in (20, 400))
    assert wilson(12, 20).low < 0.5 < wilson(240, 400).low
    assert few.unsure
    assert "holds the level" in few.note
    assert not many.unsure
    assert many.note == ""
    assert break_point((0, 10), (1.0, 0.4), falling=True, n=20).unsure
    assert not break_point((0, 10), (1.0, 0.1), falling=True, n=[5, 20]).unsure
    assert not break_point((0, 10), (0.0, 0.6)).unsure  # no counts, no note
    assert not break_point((0, 10), (0.0, 0.4), n=20).unsure  # no crossing


def test_wrong_curves_are_refused() -> None:
    for steps, rates in (((), ()), ((0, 1), (math.nan, math.nan))):
        with pytest.raises(TiterError, match="no judged step"):
            break_point(steps, rates)
    with pytest.raises(TiterError, match="step 5 is judged twice"):
        break_point((0, 5, 5), (0, 0, 1))
    with pytest.raises(TiterError, match="not a whole number"):
        break_point((0, 0.5), (0, 1))  # type: ignore[arg-type]
    assert str(break_point((0.0, 5.0), (0, 1))) == "0-5"  # type: ignore[arg-type]
    for after, by in ((None, None), (5, 5), (10, 5), (-1, 5)):
        with pytest.raises(ValidationError):
            BreakPoint(after=after, by=by)


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1)), min_size=1, unique_by=lambda pair: pair[0]), st.floats(0.05, 0.95))
def test_the_crossing_is_that_of_a_loop(curve: list[tuple[int, float]], level: float) -> None:
    before: int | None = None
    expected = None
    for step, rate in sorted(curve):
        if rate >= level:
            expected = BreakPoint(after=before, by=step)
            break
        before = step
    found = break_point(*zip(*curve, strict=True), level)
    assert found == (expected or BreakPoint(after=before, by=None))


def test_order_of_two_defences() -> None:
    assert order(gap(40, 80), gap(10, 20)) == "later"
    assert order(gap(10, 20), gap(40, 80)) == "earlier"
    assert order(gap(20, 40), gap(10, 20)) == "later"  # t > 20 >= the other
    assert order(gap(20, 40), gap(20, 40)) == "undecided"
    assert order(gap(10, 40), gap(20, 80)) == "undecided"
    assert order(NEVER, gap(160, 320)) == "later"
    assert order(NEVER, NEVER) == "undecided"
    assert order(NEVER, BreakPoint(after=None, by=400)) == "undecided"
    assert order(AT_ONCE, gap(0, 5)) == "earlier"
    assert order(AT_ONCE, AT_ONCE) == "undecided"
    assert order(EARLY, AT_ONCE) == "undecided"  # it may have broken at 0 too


def test_the_median_keeps_what_never_broke() -> None:
    assert str(median([gap(40, 80), gap(10, 20), NEVER])) == "40-80"
    assert str(median([gap(40, 80), NEVER, NEVER])) == "> 320"
    assert median([gap(10, 20), gap(40, 80)]) == (25, 50)
    assert median([gap(10, 20), NEVER]) == (165, math.inf)
    assert str(median([AT_ONCE, AT_ONCE, EARLY])) == "0"
    assert str(median([EARLY])) == "0-5"
    assert median([gap(10, 40), gap(20, 30), gap(5, 80)]) == (10, 40)  # ends are sorted apart
    with pytest.raises(TiterError, match="no break point"):
        median([])


TIMES = st.floats(0, 1000) | st.sampled_from([0.0, 5.0, 320.0])


def judged(time: float, steps: tuple[int, ...]) -> BreakPoint:
    """The break point of a model that truly breaks at `time`, judged at `steps`."""
    return break_point(steps, [float(step >= time) for step in steps])


GRIDS = st.sets(st.integers(0, 1000), min_size=1, max_size=8).map(lambda steps: tuple(sorted(steps)))


@pytest.mark.long
@given(st.lists(st.tuples(TIMES, GRIDS), min_size=1, max_size=7))
def test_the_true_median_is_within_the_bounds(seeds: list[tuple[float, tuple[int, ...]]]) -> None:
    low, high = median([judged(time, steps) for time, steps in seeds])
    assert low <= statistics.median(time for time, _ in seeds) <= high


@given(TIMES, TIMES, GRIDS, GRIDS)
def test_a_decided_pair_is_right(one: float, two: float, first_steps: tuple[int, ...], second_steps: tuple[int, ...]) -> None:
    first, second = judged(one, first_steps), judged(two, second_steps)
    told = order(first, second)
    assert told == {"later": "earlier", "earlier": "later", "undecided": "undecided"}[order(second, first)]
    assert told == "undecided" or (told == "later") == (one > two)
    assert told == "undecided" or one != two
