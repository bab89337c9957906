"""The difference of two rates over the same inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from titer.core.stats import paired_difference


def test_against_the_formula_in_another_form() -> None:
    gained, lost, total = 3, 12, 60  # Agresti and Min: half an input more in each of the four cells
    kept = (total - gained - lost) / 2 + 0.5
    cells = np.array([[kept, lost + 0.5], [gained + 0.5, kept]]) / (total + 2)
    difference = cells[1, 0] - cells[0, 1]
    variance = (cells[1, 0] + cells[0, 1] - difference**2) / (total + 2)
    found = paired_difference(gained, lost, total)
    assert found.value == pytest.approx(-9 / 60)
    assert (found.low + found.high) / 2 == pytest.approx(difference)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)


def test_signs_ends_and_nothing() -> None:
    assert paired_difference(5, 0, 5).value == 1.0
    assert paired_difference(5, 0, 5).high == 1.0
    up, down = paired_difference(4, 1, 20), paired_difference(1, 4, 20)
    assert (up.low, up.high) == pytest.approx((-down.high, -down.low))
    assert paired_difference(0, 0, 50).low < 0 < paired_difference(0, 0, 50).high  # no flip is no proof of none
    assert math.isnan(paired_difference(0, 0, 0).value)


def test_it_covers_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(80, [0.1, 0.25, 0.65], size=400)  # gained, lost, the rest
    inside = [low <= -0.15 <= high for _, low, high in (paired_difference(int(g), int(lost), 80) for g, lost, _ in drawn)]
    assert np.mean(inside) > 0.92
