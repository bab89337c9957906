"""The rules of a verdict, and claims.json as a reader of another program meets it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from titer.core.claims import Claim, Statement, decide, settle, write_claims
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


def settled(*values: float, **changes: Any) -> Claim:
    """Of worlds with one base each."""
    return settle(STATED, {seed: [one] for seed, one in enumerate(values)}, changes.pop("control", 0.05), **changes)


def test_one_base_has_no_interval_and_decides_nothing() -> None:
    claim = settled(0.4)
    assert (claim.value, claim.interval, claim.verdict, claim.provisional) == (0.4, None, "inconclusive", True)
    assert "--bases" in claim.reason


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_worlds_have_their_interval_over_worlds_and_three_are_not_provisional(seeds: int) -> None:
    values = [0.2 + 0.05 * i for i in range(seeds)]
    claim = settled(*values)
    assert claim.interval == pytest.approx(t_interval(values)[1:])
    assert claim.value == pytest.approx(sum(values) / seeds)
    assert (claim.provisional, claim.seeds) == (seeds < 3, tuple(range(seeds)))
    assert f"Over {seeds} worlds, one base each" in claim.reason


def test_one_world_is_judged_over_its_bases_and_is_provisional() -> None:
    claim = settle(STATED, {0: [0.4, 0.5, 0.6]}, 0.05)
    found = t_interval([0.4, 0.5, 0.6])
    assert (claim.value, claim.interval, claim.seeds, claim.provisional) == (found.value, pytest.approx(found[1:]), (0,), True)
    assert claim.verdict == "supported"
    assert "Over 3 bases of one world, which lie 0.1 apart" in claim.reason


def test_several_worlds_are_judged_over_their_means() -> None:
    claim = settle(STATED, {0: [0.0, 1.0], 1: [0.6, 0.4], 2: [0.5, 0.5]}, 0.05)
    assert claim.interval == pytest.approx((0.5, 0.5))  # the worlds agree, however far their bases lie apart
    assert (claim.verdict, claim.provisional, claim.seeds) == ("supported", False, (0, 1, 2))
    assert "Over the means of 3 worlds, 2 bases each" in claim.reason


def test_worlds_of_different_numbers_of_bases_say_so() -> None:
    assert "Over the means of 2 worlds, 1 to 2 bases each" in settle(STATED, {0: [0.4], 1: [0.5, 0.6]}, 0.05).reason


@pytest.mark.parametrize(
    ("values", "where"), [((0.4, 0.4), "above"), ((0.0, 0.0), "below"), ((0.0, 0.5), "includes the margin"), ((0.4, NAN), "not a number")]
)
def test_the_reason_says_where_the_interval_lies_and_the_note(values: tuple[float, ...], where: str) -> None:
    reason = settled(*values, note="only a leaning").reason
    assert where in reason
    assert "only a leaning" in reason


@pytest.mark.parametrize("values", [(NAN,), (0.4, NAN), (1.0, 1.01, NAN)])
def test_numbers_that_are_not_finite_support_nothing_and_are_not_dropped(values: tuple[float, ...]) -> None:
    claim = settled(*values)
    assert (claim.verdict, claim.interval, claim.value) == ("inconclusive", None, None)


def test_a_failed_precondition_hides_every_number() -> None:
    claim = settled(0.4, 0.4, failed="the base learned nothing")
    assert (claim.verdict, claim.value, claim.interval, claim.control.value) == ("not testable", None, None, None)
    assert claim.reason.startswith("the base learned nothing")
    assert "0.4" not in claim.reason


def test_a_control_that_is_not_finite_is_left_out() -> None:
    assert settled(0.4, control=NAN).control.value is None


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def written(tmp_path: Path, *claims: Claim) -> list[dict[str, Any]]:
    write_claims(tmp_path / "claims.json", claims)
    found = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"), parse_constant=refuse_constant)
    assert list(found) == ["claims"]
    return found["claims"]


def test_claims_json_has_exactly_the_declared_keys(tmp_path: Path) -> None:
    (claim,) = written(tmp_path, settled(0.4, 0.4))
    assert set(claim) == KEYS
    assert set(claim["control"]) == {"name", "value"}
    assert (claim["interval"], claim["seeds"], claim["margin"]) == (pytest.approx([0.4, 0.4]), [0, 1], 0.1)
    assert (claim["paper_value"], claim["control"]) == ("0.5", {"name": "b", "value": 0.05})


def test_claims_json_is_strict_whatever_the_numbers(tmp_path: Path) -> None:
    rows = written(tmp_path, settled(NAN, control=INF), settled(NAN, NAN, 1.0), settled(NAN, failed="no"))
    assert [row["value"] for row in rows] == [None, None, None]
    assert [row["interval"] for row in rows] == [None, None, None]


def test_claims_json_of_no_claims(tmp_path: Path) -> None:
    assert written(tmp_path) == []
