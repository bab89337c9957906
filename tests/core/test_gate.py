"""Limits are decided by the interval; power is that of an enumeration of every outcome."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from titer.core.errors import TiterError
from titer.core.gate import least_change, least_rate, limit, power, prompts_for, shown
from titer.core.stats import Interval, paired_difference, wilson


def enumerated(total: int, change: float, flips: float, beyond: float) -> float:
    """P(interval above `beyond`), over all 3^n ways in which n prompts can turn."""
    gain, lose = flips / 2 + change, flips / 2
    chances = {1: gain, -1: lose, 0: 1 - gain - lose}
    found = 0.0
    for turns in product((1, -1, 0), repeat=total):
        if paired_difference(turns.count(1), turns.count(-1), total).low > beyond:
            found += math.prod(chances[turn] for turn in turns)
    return found


@pytest.mark.parametrize(("total", "change", "beyond"), [(7, 0.6, 0.0), (8, 0.7, 0.1), (6, 0.0, 0.0)])
def test_power_is_that_of_every_outcome(total: int, change: float, beyond: float) -> None:
    assert power(total, change, lambda low, _: low > beyond, 0.1) == pytest.approx(enumerated(total, change, 0.1, beyond), abs=1e-12)


def test_power_of_many_prompts_is_what_draws_show() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(400, [0.025, 0.125, 0.85], size=4000)  # a drop of 10 points
    share = np.mean([paired_difference(int(g), int(lost), 400).high < -0.05 for g, lost, _ in drawn])
    assert power(400, -0.1, lambda _, high: high < -0.05) == pytest.approx(share, abs=0.03)
    assert power(400, 0.1, lambda low, _: low > 0.05) == pytest.approx(power(400, -0.1, lambda _, high: high < -0.05))


def test_the_least_change_is_the_first_that_is_shown() -> None:
    for total, beyond in ((60, 0.0), (200, 0.05)):
        least = least_change(total, beyond)
        assert power(total, least, lambda low, _, b=beyond: low > b) >= 0.8 > power(total, least - 2e-4, lambda low, _, b=beyond: low > b)
    assert math.isnan(least_change(4, 0.9))
    assert least_change(400) < least_change(200) < least_change(50)


def test_the_least_rate_against_every_count() -> None:
    least = least_rate(40, 0.5, above=False)
    chance = sum(math.comb(40, k) * least**k * (1 - least) ** (40 - k) for k in range(41) if wilson(k, 40).high < 0.5)
    assert chance == pytest.approx(0.8, abs=2e-3)
    assert least_rate(40, 0.5, above=True) == pytest.approx(1 - least)
    assert math.isnan(least_rate(3, 0.9, above=True))


def test_the_fewest_prompts() -> None:
    found = prompts_for(0.05, 10_000)
    assert least_change(found) <= 0.0501
    assert least_change(found - 20) > 0.05
    assert shown(limit("a drops > 5"), found).passes > 0.8  # no change passes at least as often as one of 5 points is shown
    assert prompts_for(0.05, 100) == 100


@pytest.mark.parametrize(
    ("text", "interval", "decided"),
    [
        ("a drops > 5", (-0.2, -30.0, -10.0), "fail"),
        ("a drops > 5", (-6.0, -9.0, -3.0), "cannot resolve"),
        ("a drops > 5", (0.0, -5.0, 5.0), "pass"),
        ("a drops > 5", (20.0, 10.0, 30.0), "pass"),
        ("a rises by > 5 points", (20.0, 10.0, 30.0), "fail"),
        ("a rises > 5", (-20.0, -30.0, 6.0), "cannot resolve"),
        ("a < 90", (80.0, 70.0, 89.9), "fail"),
        ("a < 90%", (95.0, 90.0, 97.0), "pass"),
        ("a > 1.5", (2.0, 1.0, 3.0), "cannot resolve"),
        ("a drops < 20", (-5.0, -9.0, -1.0), "fail"),
        ("a drops > 5", (math.nan, math.nan, math.nan), "cannot resolve"),
    ],
)
def test_a_limit_is_decided_by_the_whole_interval(text: str, interval: tuple[float, float, float], decided: str) -> None:
    assert limit(text).decided(Interval(*interval)) == decided


def test_names_are_read_as_they_are_written() -> None:
    assert limit("GSM8K, false context refused  rises > 3").name == "gsm8k_false_context_refused"
    assert limit("a drop > 5").move == "drops"
    assert [(one.name, one.move) for one in map(limit, ("a drops>5", "a>5%"))] == [("a", "drops"), ("a", "")]
    beside = limit("a drops > 5 points beyond the control")
    assert (beside.control, beside.at, limit("a drops > 5").control) == (True, 5.0, False)
    named = limit("kind is not benign, rounding or cannot say")
    assert (named.kinds, named.above) == (("benign", "rounding", "cannot say"), False)
    for wrong in (
        "",
        "a",
        "a drops",
        "kind is",
        "a > 5 beyond control",
        "a drops > x",
        "a drops > -5",
        "a = 5",
        "a => 5",
        "a =< 5",
        "!a > 5",
        "a drops > 5 or b > 3",
    ):
        with pytest.raises(TiterError, match="--fail-if"):
            limit(wrong)
