"""Kappa, accuracy and corrected rates: published values, naive and numeric second forms, coverage by simulation, edge cases."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from titer.core import stats
from titer.core.agreement import Accuracy, accuracy, agreement, confusion, corrected_rate, kappa
from titer.core.stats import wilson

Z = 1.959963984540054
TABLES = st.integers(2, 4).flatmap(lambda c: st.lists(st.lists(st.integers(0, 40), min_size=c, max_size=c), min_size=c, max_size=c))


def naive_kappa(cells: np.ndarray) -> float:
    """Cohen's kappa of cell shares, pair by pair of inputs drawn alone."""
    size, total = len(cells), cells.sum()
    agreed = sum(cells[i, i] for i in range(size)) / total
    chance = sum(cells[i, :].sum() * cells[:, i].sum() for i in range(size)) / total**2
    return (agreed - chance) / (1 - chance)


def delta_error(table: np.ndarray) -> float:
    """Standard error of kappa by the delta method with numeric derivatives: multinomial counts."""
    p, step = table / table.sum(), 1e-6
    slopes = np.zeros_like(p)
    for i, j in product(range(len(p)), repeat=2):
        up, down = p.copy(), p.copy()
        up[i, j] += step
        down[i, j] -= step
        slopes[i, j] = (naive_kappa(up) - naive_kappa(down)) / (2 * step)
    return math.sqrt(((p * slopes**2).sum() - (p * slopes).sum() ** 2) / table.sum())


def test_kappa_and_its_interval_as_published() -> None:
    """SAS's printed example of PROC FREQ; Fleiss's example of 100 subjects and three diagnoses (kappa 0.676)."""
    assert kappa([[0, 4, 1], [0, 8, 0], [0, 1, 5]]) == pytest.approx((0.4842, 0.2137, 0.7547), abs=6e-5)
    assert kappa([[75, 1, 4], [5, 4, 1], [0, 0, 10]]).value == pytest.approx(0.676, abs=5e-4)


def test_kappa_against_a_library() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not in the development set: make parity")
    rng = np.random.default_rng(0)
    first, second = rng.choice(["a", "b", "c"], (2, 60))
    second = np.where(rng.random(60) < 0.5, first, second)
    assert kappa(confusion(list(first), list(second), "abc")).value == pytest.approx(metrics.cohen_kappa_score(first, second))


@settings(max_examples=50)
@given(TABLES)
def test_kappa_and_its_error_against_second_forms(rows: list[list[int]]) -> None:
    table = np.array(rows)
    assume(table.sum() and table.sum(0) @ table.sum(1) < table.sum() ** 2)
    found = kappa(table)
    assert found.value == pytest.approx(naive_kappa(table.astype(float)), abs=1e-12)
    assert -1 <= found.low <= found.value <= found.high <= 1
    error = delta_error(table.astype(float))
    if error > 1e-3:
        assert found.low == pytest.approx(max(-1, found.value - Z * error), abs=1e-6)
        assert found.high == pytest.approx(min(1, found.value + Z * error), abs=1e-6)


@settings(max_examples=50)
@given(TABLES, st.randoms(use_true_random=False))
def test_kappa_knows_no_order_of_raters_or_categories(rows: list[list[int]], random) -> None:  # type: ignore[no-untyped-def]
    table = np.array(rows)
    order = list(range(len(table)))
    random.shuffle(order)
    assume(table.sum())
    usual = kappa(table)
    for other in (kappa(table.T), kappa(table[np.ix_(order, order)])):
        assert other == pytest.approx(usual, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("table", [[[0, 0], [0, 0]], [[7, 0], [0, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]]])
def test_nought_by_nought_is_no_kappa(table: list[list[int]]) -> None:
    assert all(math.isnan(number) for number in kappa(table))


def test_full_agreement_is_not_certain() -> None:
    few, many = kappa([[3, 0], [0, 3]]), kappa([[300, 0], [0, 300]])
    assert few.value == many.value == many.high == 1.0
    assert few.low == pytest.approx((wilson(6, 6).low - 0.5) / 0.5)
    assert few.low < 0.3
    assert 0.98 < many.low < 1
    opposed = kappa([[0, 3], [3, 0]])
    assert (opposed.value, opposed.low, opposed.high) == pytest.approx((-1, -1, -few.low))


def test_a_constant_rater_agrees_by_chance_alone() -> None:
    found = kappa([[30, 0], [10, 0]])
    assert found.value == pytest.approx(0)
    assert found.low < 0 < found.high


@pytest.mark.parametrize("cells", [(0.4, 0.1, 0.1, 0.4), (0.75, 0.1, 0.05, 0.1), (0.2, 0.25, 0.3, 0.25)])
def test_kappas_interval_covers_the_true_one(cells: tuple[float, ...]) -> None:
    true = naive_kappa(np.array(cells).reshape(2, 2))
    drawn = np.random.default_rng(1).multinomial(200, cells, size=400)
    inside = [found.low <= true <= found.high for found in (kappa(counts.reshape(2, 2)) for counts in drawn)]
    assert 0.92 < np.mean(inside) < 0.98


def test_a_table_counts_what_it_says() -> None:
    first, second = ["a", "a", "b", "c", "c", "c"], ["a", "b", "b", "c", "c", "a"]
    assert confusion(first, second, "abc").tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert confusion([], [], "ab").tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="none of a, b"):
        confusion(first, second, "ab")
    with pytest.raises(ValueError, match="6 and 1 ratings"):
        confusion(first, ["a"], "abc")


def test_what_is_unrated_is_left_out_and_counted() -> None:
    first = ["a", "a", "b", "x", "b", "x"]
    second = ["a", "b", "b", "a", "x", "x"]
    found = agreement(first, second, "ab", "x")
    assert (found.n, found.left_out, found.share_left_out) == (3, 3, 0.5)
    assert found.agreed == wilson(2, 3)
    assert found.kappa == kappa([[1, 1], [0, 1]])
    nothing = agreement(["x"], ["x"], "ab", "x")
    assert (nothing.n, nothing.share_left_out) == (0, 1.0)
    assert math.isnan(nothing.kappa.value)
    assert math.isnan(nothing.agreed.value)
    assert math.isnan(agreement([], [], "ab").share_left_out)


def test_sensitivity_and_specificity_are_wilsons_rates() -> None:
    said, true = [True, True, False, True, False, False, False], [True, True, True, False, False, False, False]
    found = accuracy(said, true)
    assert found == (2, 3, 3, 4)
    assert found.sensitivity == wilson(2, 3)
    assert found.specificity == wilson(3, 4)
    assert math.isnan(accuracy([], []).sensitivity.value)
    with pytest.raises(ValueError, match="1 ratings of 2"):
        accuracy([True], [True, False])


def naive_corrected(count: int, n: int, rater: Accuracy) -> tuple[float, float, float]:
    """Lang and Reiczigel's interval by numeric derivatives of Rogan and Gladen's formula at the adjusted shares, and their shift."""
    hits, positives, rejections, negatives = rater

    def rate(x: float, se: float, sp: float) -> float:
        return (x + sp - 1) / (se + sp - 1)

    at = np.array([(count + Z**2 / 2) / (n + Z**2), (hits + 1) / (positives + 2), (rejections + 1) / (negatives + 2)])
    errors = at * (1 - at) / np.array([n + Z**2, positives + 2, negatives + 2])
    slopes = [(rate(*(at + step)) - rate(*(at - step))) / 2e-6 for step in np.eye(3) * 1e-6]
    centre = rate(*at)
    middle = centre + 2 * Z**2 * (centre * errors[1] - (1 - centre) * errors[2])
    half = Z * math.sqrt(sum(slope**2 * error for slope, error in zip(slopes, errors, strict=True)))
    point = rate(count / n, hits / positives, rejections / negatives)
    low, value, high = np.clip([middle - half, point, middle + half], 0, 1)
    return value, min(low, value), max(high, value)


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(40, 200), st.integers(40, 200), st.data())
def test_a_corrected_rate_against_numeric_derivatives(n: int, positives: int, negatives: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    rater = Accuracy(
        data.draw(st.integers(3 * positives // 4, positives)), positives, data.draw(st.integers(3 * negatives // 4, negatives)), negatives
    )
    found = corrected_rate(count, n, rater)
    assert found.reason == ""
    assert found[:3] == pytest.approx(naive_corrected(count, n, rater), abs=1e-6)
    assert 0 <= found.low <= found.value <= found.high <= 1


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(30, 200), st.integers(30, 200), st.data())
def test_a_rate_and_its_complement_are_corrected_alike(n: int, positives: int, negatives: int, data: st.DataObject) -> None:
    """No is a rating too: its sensitivity is the specificity of yes."""
    count, hits, rejections = (data.draw(st.integers(0, most)) for most in (n, positives, negatives))
    yes = corrected_rate(count, n, Accuracy(hits, positives, rejections, negatives))
    no = corrected_rate(n - count, n, Accuracy(rejections, negatives, hits, positives))
    assert (no.value, no.low, no.high) == pytest.approx((1 - yes.value, 1 - yes.high, 1 - yes.low), abs=1e-9, nan_ok=True)
    assert no.reason == yes.reason


def test_a_perfect_rater_changes_nothing_but_the_width() -> None:
    rate = wilson(30, 100)
    found = corrected_rate(30, 100, Accuracy(10**7, 10**7, 10**7, 10**7))
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((rate.low, rate.high), abs=0.002)  # Agresti and Coull's, as wide as Wilson's
    unsure = corrected_rate(30, 100, Accuracy(20, 20, 20, 20))
    assert unsure.high - unsure.low > found.high - found.low


def test_rates_beyond_what_the_errors_explain_are_cut() -> None:
    rater = Accuracy(80, 100, 70, 100)
    assert corrected_rate(5, 100, rater)[:2] == (0.0, 0.0)
    assert corrected_rate(99, 100, rater)[0] == corrected_rate(99, 100, rater)[2] == 1.0
    assert corrected_rate(55, 100, rater).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("n", "rater", "reason"),
    [
        (0, Accuracy(9, 10, 9, 10), "nothing was rated"),
        (10, Accuracy(0, 0, 9, 10), "no true case"),
        (10, Accuracy(9, 10, 0, 0), "no other case"),
        (10, Accuracy(5, 10, 5, 10), "at most 1"),
        (10, Accuracy(1, 3, 2, 3), "at most 1"),
        (10, Accuracy(2, 10, 3, 10), "at most 1"),
    ],
)
def test_what_cannot_be_corrected_says_why(n: int, rater: Accuracy, reason: str) -> None:
    found = corrected_rate(0, n, rater)
    assert all(math.isnan(number) for number in found[:3])
    assert reason in found.reason


def test_a_rater_that_may_be_no_better_than_chance_says_nothing() -> None:
    found = corrected_rate(50, 100, Accuracy(6, 10, 5, 10))
    assert (found.low, found.high) == (0, 1)
    assert "not shown" in found.reason


@pytest.mark.parametrize(
    ("rate", "se", "sp", "sizes"),
    [(0.3, 0.85, 0.8, (200, 60, 60)), (0.05, 0.95, 0.9, (200, 90, 350)), (0.9, 0.7, 0.95, (100, 40, 40)), (0.0, 0.9, 0.9, (100, 50, 50))],
)
def test_the_corrected_interval_covers_the_true_rate(
    monkeypatch: pytest.MonkeyPatch, rate: float, se: float, sp: float, sizes: tuple[int, int, int]
) -> None:
    """The rate as rated covers far less."""
    monkeypatch.setattr(stats, "wilson", lru_cache(wilson))  # the same few samples come again and again
    rng = np.random.default_rng(2)
    drawn = zip(
        *(rng.binomial(size, p, 400) for size, p in zip(sizes, (rate * se + (1 - rate) * (1 - sp), se, sp), strict=True)), strict=True
    )
    inside, naive = [], []
    for count, hits, rejections in drawn:
        found = corrected_rate(int(count), sizes[0], Accuracy(int(hits), sizes[1], int(rejections), sizes[2]))
        plain = stats.wilson(int(count), sizes[0])
        inside.append(found.low <= rate <= found.high)
        naive.append(plain.low <= rate <= plain.high)
    assert np.mean(inside) >= 0.935
    assert np.mean(naive) < 0.85
