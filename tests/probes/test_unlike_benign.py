"""What of a tune is unlike benign ones: the probe and the limit against closed forms, false alarms counted, drift cancelled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from titer.core.errors import TiterError
from titer.probes.unlike_benign import RIDGE, Reader, apart, beyond, moved, told_apart, unlike_benign

LAYERS, N, D = 2, 40, 6


def noise(seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(scale * rng.standard_normal((N, D))) for _ in range(LAYERS)]


def plus(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[torch.Tensor]:
    return [a + b for a, b in zip(one, other, strict=True)]


def test_the_direction_is_fisher_s_with_a_ridge() -> None:
    """Against (C + r I)^-1 (mean - mean) by a plain inverse, and scored so that the classes' means lie at 0 and 1."""
    one, other = noise(0), plus(noise(1), [torch.ones(1, D)] * LAYERS)
    reader = Reader(one, other)
    for (weight, _), p, n in zip(reader.weights, one, other, strict=True):
        within = torch.cat([p - p.mean(0), n - n.mean(0)])
        c = within.T @ within / len(within)
        expected = torch.linalg.inv(c + RIDGE * torch.trace(c) / D * torch.eye(D, dtype=c.dtype)) @ (p.mean(0) - n.mean(0))
        assert torch.allclose(weight, expected / (expected @ (p.mean(0) - n.mean(0))), atol=1e-9)
    assert float(reader.scores(one).mean()) == pytest.approx(1)
    assert float(reader.scores(other).mean()) == pytest.approx(0, abs=1e-9)


def test_a_constant_shift_is_told_apart_and_nothing_or_dealt_labels_are_not() -> None:
    base = noise(0)
    shifted = plus(base, [torch.full((1, D), 3.0)] * LAYERS)
    assert told_apart(shifted, base) == 1.0
    assert np.mean([told_apart(shifted, base, seed) for seed in range(40)]) == pytest.approx(0.5, abs=0.1)
    assert told_apart(base, base) == 0.5


def test_benign_tunes_that_drift_are_told_apart_too() -> None:
    """Which is why AUROC alone says nothing: each model has an offset of its own."""
    tuned, *controls = [
        plus(noise(i, 0.1), [5 * torch.from_numpy(np.random.default_rng(90 + i).standard_normal((1, D)))] * 2) for i in range(4)
    ]
    found = apart(tuned, controls)
    assert found["tuned"] > 0.99
    assert found["benign"] > 0.99
    assert np.isnan(apart(tuned, controls[:1])["benign"])


def test_how_far_it_moved_is_a_mean_of_logarithms() -> None:
    before = noise(3)
    assert moved(before, [1.25 * a for a in before]) == pytest.approx(np.log(0.25))
    with pytest.raises(TiterError, match="did not move"):
        moved(before, before)


def test_the_limit_is_student_s_prediction_interval() -> None:
    controls = [0.1, 0.4, 0.2]
    one = beyond(0.9, controls)
    spread = np.std(controls, ddof=1) * np.sqrt(1 + 1 / 3)
    assert one.limit == pytest.approx(np.mean(controls) + stats.t(2).ppf(0.95) * spread)
    assert one.p == pytest.approx(stats.t(2).sf((0.9 - np.mean(controls)) / spread))
    assert np.isnan(beyond(0.9, [0.1]).limit)
    assert np.isnan(beyond(0.9, []).p)


@pytest.mark.parametrize("k", [2, 3, 6])
def test_one_benign_tune_in_twenty_is_flagged(k: int) -> None:
    drawn = np.random.default_rng(k).standard_normal((4000, k + 1))
    share = np.mean([row[0] > beyond(row[0], row[1:].tolist()).limit for row in drawn])
    assert share == pytest.approx(0.05, abs=0.011)  # three standard errors


def tunes(odd: float, size: float = 1.0) -> tuple[dict[str, list[torch.Tensor]], ...]:
    """(before, a tune that moves plain prompts by `size` and odd ones by `odd` times that, five benign ones that differ by a little)."""
    before = {"plain": noise(0), "odd": noise(1)}

    def tune(seed: int, size: float, odd: float) -> dict[str, list[torch.Tensor]]:
        own = float(np.exp(0.05 * np.random.default_rng(seed).standard_normal()))
        return {
            "plain": plus(before["plain"], noise(seed, 0.1 * size)),
            "odd": plus(before["odd"], noise(seed + 50, 0.1 * size * odd * own)),
        }

    return before, tune(10, size, odd), *(tune(seed, 1.0, 1.0) for seed in range(11, 16))


@pytest.mark.parametrize(("odd", "size", "flagged"), [(3.0, 1.0, True), (1.0, 1.0, False), (1.0, 10.0, False), (3.0, 0.1, True)])
def test_odd_prompts_that_moved_more_are_flagged_and_drift_is_not(odd: float, size: float, flagged: bool) -> None:
    before, tuned, *controls = tunes(odd, size)
    found = unlike_benign(before, tuned, controls)
    assert set(found.measure) == {"drift", "odd beyond plain", "probe"}
    (row,) = found[found.measure == "odd beyond plain"].itertuples()
    assert bool(row.flagged) == flagged
    assert row.value - row.control == pytest.approx(np.log(odd), abs=0.2)
    assert not found[found.measure != "odd beyond plain"].flagged.any()


def test_one_control_says_nothing() -> None:
    before, tuned, control, *_ = tunes(3.0)
    assert not unlike_benign(before, tuned, [control]).flagged.any()
