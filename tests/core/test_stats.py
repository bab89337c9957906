"""Intervals against published worked examples and independent formulas; separation against naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from titer.core.stats import auroc, bootstrap, d_prime, over_bases, rate_difference, t_interval, wilson

Z = 1.959963984540054

# Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3 (Wilson's score without correction)
ONE_RATE = [((81, 263), (0.2553, 0.3662)), ((15, 148), (0.0624, 0.1605)), ((0, 20), (0.0, 0.1611)), ((1, 29), (0.0061, 0.1718))]

# Newcombe, Statistics in Medicine 17 (1998), 873-890, table II, method 10
TWO_RATES = [
    ((56, 70), (48, 80), (0.0524, 0.3339)),
    ((9, 10), (3, 10), (0.1705, 0.8090)),
    ((6, 7), (2, 7), (0.0582, 0.8062)),
    ((5, 56), (0, 29), (-0.0381, 0.1926)),
    ((0, 10), (0, 20), (-0.1611, 0.2775)),
    ((0, 10), (0, 10), (-0.2775, 0.2775)),
    ((10, 10), (0, 20), (0.6791, 1.0)),
    ((10, 10), (0, 10), (0.6075, 1.0)),
]


@pytest.mark.parametrize(("sample", "ends"), ONE_RATE)
def test_wilson_gives_the_published_intervals(sample: tuple[int, int], ends: tuple[float, float]) -> None:
    found = wilson(*sample)
    assert found.value == pytest.approx(sample[0] / sample[1])
    assert (found.low, found.high) == pytest.approx(ends, abs=6e-5)


def solved(successes: int, total: int, z: float) -> tuple[float, float]:
    """Wilson's ends as the two rates at which the score statistic is exactly z, by the quadratic formula."""
    rate, square = successes / total, z * z
    a, b, c = 1 + square / total, -(2 * rate + square / total), rate * rate
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@given(st.integers(1, 3000), st.data(), st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_wilson_solves_the_score_equation(total: int, data: st.DataObject, level: float) -> None:
    successes = data.draw(st.integers(0, total))
    found = wilson(successes, total, level)
    assert (found.low, found.high) == pytest.approx(solved(successes, total, float(norm.ppf(0.5 + level / 2))), abs=1e-9)
    assert (found.low, found.high) == binomtest(successes, total).proportion_ci(level, method="wilson")


def test_wilson_of_nothing_is_not_a_number() -> None:
    assert all(math.isnan(number) for number in wilson(0, 0))


def test_wilson_covers_true_rates_as_often_as_it_says() -> None:
    """Exactly, by the binomial law; one rate's coverage jumps with the counts, their average does not."""
    ends = [wilson(k, 60) for k in range(61)]
    low, high = (np.array([getattr(end, name) for end in ends]) for name in ("low", "high"))
    covered = [binom.pmf(np.arange(61), 60, p)[(low <= p) & (p <= high)].sum() for p in np.linspace(0.05, 0.95, 91)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.005)
    assert min(covered) > 0.9


@pytest.mark.parametrize(("first", "second", "ends"), TWO_RATES)
def test_rate_difference_gives_the_published_intervals(first: tuple[int, int], second: tuple[int, int], ends: tuple[float, float]) -> None:
    found = rate_difference(first, second)
    assert found.value == pytest.approx(first[0] / first[1] - second[0] / second[1])
    assert (found.low, found.high) == pytest.approx(ends, abs=6e-5)


@given(st.integers(1, 200), st.integers(1, 200), st.data())
def test_rate_difference_turns_its_sign_with_its_samples(n: int, m: int, data: st.DataObject) -> None:
    first, second = (data.draw(st.integers(0, n)), n), (data.draw(st.integers(0, m)), m)
    there, back = rate_difference(first, second), rate_difference(second, first)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert -1 - 1e-12 <= there.low <= there.value <= there.high <= 1 + 1e-12


def test_rate_difference_with_an_empty_sample_is_not_a_number() -> None:
    assert all(math.isnan(number) for number in rate_difference((0, 0), (3, 10)))


def test_t_interval_of_a_textbook_sample() -> None:
    """Mean 10.2, s = 0.6595, n = 9: 10.2 -+ 2.306 s / 3 (Student's table, 8 degrees of freedom)."""
    sample = [9.1, 9.6, 9.9, 10.1, 10.2, 10.3, 10.5, 10.8, 11.3]
    mean = sum(sample) / 9
    half = 2.306 * math.sqrt(sum((x - mean) ** 2 for x in sample) / 8) / 3
    assert t_interval(sample) == pytest.approx((mean, mean - half, mean + half), abs=2e-4)


def test_t_interval_of_two_values_uses_the_widest_quantile() -> None:
    assert t_interval([0.0, 2.0]) == pytest.approx((1.0, 1 - 12.7062, 1 + 12.7062), abs=1e-3)


def test_t_interval_needs_two_values() -> None:
    assert t_interval([3.0]).value == 3.0
    assert all(math.isnan(number) for number in (*t_interval([]), *t_interval([3.0])[1:]))


def test_t_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [t_interval(row) for row in rng.normal(2.0, 3.0, size=(1500, 4))]
    assert 0.93 < np.mean([one.low <= 2.0 <= one.high for one in found]) < 0.97


def naive_auroc(positive: list[int], negative: list[int]) -> float:
    won = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return won / (len(positive) * len(negative))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30), st.lists(st.integers(-4, 4), min_size=1, max_size=30))
def test_auroc_is_the_share_of_pairs_won_with_ties_half(positive: list[int], negative: list[int]) -> None:
    assert auroc(positive, negative) == pytest.approx(naive_auroc(positive, negative), abs=1e-12)


def test_auroc_of_the_three_plain_cases() -> None:
    assert auroc([3, 4], [1, 2]) == 1.0
    assert auroc([1, 2], [3, 4]) == 0.0
    assert auroc([5, 5, 5], [5, 5]) == 0.5


def test_auroc_of_an_empty_class_is_not_a_number() -> None:
    assert math.isnan(auroc([], [1.0]))
    assert math.isnan(auroc([1.0], []))


def test_d_prime_by_hand() -> None:
    """Means 4 and 1, variances 4 and 1: 3 / sqrt(2.5)."""
    assert d_prime([2, 4, 6], [0, 1, 2]) == pytest.approx(3 / math.sqrt(2.5))


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True), st.integers(1, 9), st.integers(-9, 9))
def test_d_prime_ignores_a_common_scale_and_shift(values: list[int], scale: int, shift: int) -> None:
    other = [value + 3 for value in values]
    moved = d_prime([scale * v + shift for v in other], [scale * v + shift for v in values])
    assert moved == pytest.approx(d_prime(other, values))
    assert d_prime(values, other) == pytest.approx(-d_prime(other, values))


@pytest.mark.parametrize(("positive", "negative"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_d_prime_without_spread_is_not_a_number(positive: list[float], negative: list[float]) -> None:
    assert math.isnan(d_prime(positive, negative))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() - b.mean())


@pytest.mark.long
def test_bootstrap_covers_the_true_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = []
    for seed in range(150):
        found = bootstrap(difference, [rng.normal(1, 1, 60), rng.normal(0, 2, 60)], seed, rounds=150)
        hits.append(found.low <= 1.0 <= found.high)
    assert 0.88 <= np.mean(hits) <= 0.99


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    sample = np.random.default_rng(4).normal(5, 2, 400)
    found = bootstrap(lambda a: float(a.mean()), [sample], 0, rounds=3000)
    half = Z * sample.std(ddof=1) / 20
    assert found == pytest.approx((sample.mean(), sample.mean() - half, sample.mean() + half), abs=0.03)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=70), st.integers(0, 99))
def test_rounds_taken_at_once_are_the_loop_s_bit_for_bit(sample: list[float], seed: int) -> None:
    for statistic in (np.mean, np.median):
        one_by_one = bootstrap(lambda a, of=statistic: float(of(a)), [sample], seed, rounds=30)  # type: ignore[misc]
        assert bootstrap(statistic, [sample], seed, rounds=30) == one_by_one


def test_bootstrap_is_a_function_of_its_seed() -> None:
    samples = [np.arange(30.0), np.arange(20.0)]
    assert bootstrap(difference, samples, 7) == bootstrap(difference, samples, 7)
    assert bootstrap(difference, samples, 7) != bootstrap(difference, samples, 8)


def test_bootstrap_keeps_the_rows_of_a_table_together() -> None:
    """Resampling whole rows: a statistic of two equal columns stays exactly 0."""
    table = np.stack([np.arange(40.0), np.arange(40.0)], axis=1)
    assert bootstrap(lambda t: float((t[:, 0] - t[:, 1]).sum()), [table], 0) == (0.0, 0.0, 0.0)


def test_bases_of_one_world_and_the_means_of_several() -> None:
    one, spread = over_bases([[0.1, 0.2, 0.6]])
    assert one == t_interval([0.1, 0.2, 0.6])
    assert spread == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    several, within = over_bases([[0.1, 0.3], [0.4], [0.7, 0.9, 1.1]])
    assert several == t_interval([0.2, 0.4, 0.9])  # each world once, however many bases it has
    assert within == pytest.approx(math.sqrt((0.02 + 0.08) / (1 + 2)))  # sums of squares over degrees of freedom
    assert math.isnan(over_bases([[0.1], [0.2]])[1])
    assert math.isnan(over_bases([[0.1]])[0].low)
