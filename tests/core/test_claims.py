"""The rules of a verdict, and claims.json as a reader of another program meets it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from titer.core.claims import Claim, Statement, decide, settle, settle_over_bases, write_claims
from titer.core.stats import Interval, t_interval

KEYS = {
    "name",
    "statement",
    "source",
    "paper_value",
    "statistic",
    "value",
    "interval",
    "seeds",
    "control",
    "margin",
    "verdict",
    "provisional",
    "reason",
}
NAN, INF = math.nan, math.inf
STATED = Statement(name="n", statement="s", source="p", statistic="a - b", control="b", margin=0.1, paper_value="0.5")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.2, 0.3, "supported"),
        (-0.3, 0.0, "not supported"),
        (0.0, 0.2, "inconclusive"),
        (0.1, 0.2, "inconclusive"),  # touching the margin is not above it
        (0.0, 0.1, "inconclusive"),
        (NAN, NAN, "inconclusive"),
        (NAN, 0.0, "inconclusive"),
        (0.2, INF, "inconclusive"),
        (-INF, 0.0, "inconclusive"),
    ],
)
def test_the_interval_against_the_margin_decides(low: float, high: float, verdict: str) -> None:
    assert decide(Interval(0.1, low, high), 0.1) == verdict


def settled(*values: Interval, **changes: Any) -> Claim:
    return settle(STATED, values, changes.pop("control", 0.05), range(len(values)), **changes)


def test_one_seed_has_its_interval_over_inputs_and_is_provisional() -> None:
    claim = settled(Interval(0.4, 0.3, 0.5))
    assert (claim.value, claim.interval, claim.verdict, claim.provisional) == (0.4, pytest.approx((0.3, 0.5)), "supported", True)


def test_two_seeds_have_their_interval_over_inputs_and_are_provisional() -> None:
    """Student's interval over two values would be 12.7 times the half-distance; inputs are what is counted here."""
    claim = settled(Interval(0.3, 0.2, 0.4), Interval(0.5, 0.4, 0.6))
    half = math.hypot(0.1, 0.1) / 2
    assert claim.interval == pytest.approx((0.4 - half, 0.4 + half))
    assert claim.provisional


@pytest.mark.parametrize("seeds", [3, 5])
def test_three_seeds_have_their_interval_over_seeds_and_are_not_provisional(seeds: int) -> None:
    values = [0.2 + 0.05 * i for i in range(seeds)]
    claim = settled(*[Interval(v, v - 9, v + 9) for v in values])
    expected = t_interval(values)
    assert claim.interval == pytest.approx((expected.low, expected.high))
    assert claim.value == pytest.approx(sum(values) / seeds)
    assert (claim.provisional, claim.seeds) == (False, tuple(range(seeds)))


def test_the_inputs_of_one_seed_do_not_make_seeds_agree() -> None:
    """Narrow intervals over inputs, seeds that disagree: the seeds decide."""
    assert settled(*[Interval(v, v - 0.001, v + 0.001) for v in (0.0, 0.5, 1.0)]).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("interval", "where"), [((0.4, 0.3, 0.5), "above"), ((0.0, -0.1, 0.05), "below"), ((0.1, 0.0, 0.2), "holds the margin")]
)
def test_the_reason_says_where_the_interval_lies_and_the_note(interval: tuple[float, float, float], where: str) -> None:
    reason = settled(Interval(*interval), note="only a leaning").reason
    assert where in reason
    assert "only a leaning" in reason


@pytest.mark.parametrize("value", [Interval(NAN, NAN, NAN), Interval(0.4, NAN, NAN), Interval(0.4, -INF, INF)])
def test_numbers_that_are_not_finite_support_nothing(value: Interval) -> None:
    claim = settled(value)
    assert claim.verdict == "inconclusive"
    assert claim.interval is None
    assert claim.value is None or claim.value == 0.4


def test_one_bad_seed_spoils_the_verdict_and_is_not_dropped() -> None:
    values = [Interval(v, 0.9, 1.1) for v in (1.0, 1.01, NAN)]
    assert settled(*values).verdict == "inconclusive"


def test_a_failed_precondition_hides_every_number() -> None:
    claim = settled(Interval(0.4, 0.3, 0.5), failed="the base learned nothing")
    assert (claim.verdict, claim.value, claim.interval, claim.control.value) == ("not testable", None, None, None)
    assert claim.reason.startswith("the base learned nothing")
    assert "0.4" not in claim.reason


def test_a_control_that_is_not_finite_is_left_out() -> None:
    assert settled(Interval(0.4, 0.3, 0.5), control=NAN).control.value is None


@pytest.mark.parametrize("seeds", [(), (0,), (0, 1, 2)])
def test_each_seed_needs_its_value(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="seeds"):
        settle(STATED, [Interval(0, 0, 0)] * 2 if seeds else [], 0.0, seeds)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def written(tmp_path: Path, *claims: Claim) -> list[dict[str, Any]]:
    write_claims(tmp_path / "claims.json", claims)
    found = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"), parse_constant=refuse_constant)
    assert list(found) == ["claims"]
    return found["claims"]


def test_claims_json_has_exactly_the_declared_keys(tmp_path: Path) -> None:
    (claim,) = written(tmp_path, settled(Interval(0.4, 0.3, 0.5)))
    assert set(claim) == KEYS
    assert set(claim["control"]) == {"name", "value"}
    assert (claim["interval"], claim["seeds"], claim["margin"]) == (pytest.approx([0.3, 0.5]), [0], 0.1)
    assert (claim["paper_value"], claim["control"]) == ("0.5", {"name": "b", "value": 0.05})


def test_claims_json_is_strict_whatever_the_numbers(tmp_path: Path) -> None:
    bad = Interval(NAN, -INF, INF)
    rows = written(tmp_path, settled(bad, control=INF), settled(bad, bad, bad), settled(bad, failed="no"))
    assert [row["value"] for row in rows] == [None, None, None]
    assert [row["interval"] for row in rows] == [None, None, None]


def test_claims_json_of_no_claims(tmp_path: Path) -> None:
    assert written(tmp_path) == []


def test_one_world_is_judged_over_its_bases_and_is_provisional() -> None:
    claim = settle_over_bases(STATED, {0: [0.4, 0.5, 0.6]}, 0.05)
    found = t_interval([0.4, 0.5, 0.6])
    assert (claim.value, claim.interval, claim.seeds, claim.provisional) == (found.value, pytest.approx(found[1:]), (0,), True)
    assert claim.verdict == "supported"
    assert "Over 3 bases of one world, which lie 0.1 apart" in claim.reason


def test_several_worlds_are_judged_over_their_means() -> None:
    claim = settle_over_bases(STATED, {0: [0.0, 1.0], 1: [0.6, 0.4], 2: [0.5, 0.5]}, 0.05)
    assert claim.interval == pytest.approx((0.5, 0.5))  # the worlds agree, however far their bases lie apart
    assert (claim.verdict, claim.provisional, claim.seeds) == ("supported", False, (0, 1, 2))
    assert "Over the means of 3 worlds, 2 bases each" in claim.reason


def test_one_base_decides_nothing() -> None:
    assert settle_over_bases(STATED, {0: [0.4]}, 0.05).verdict == "inconclusive"
