"""Basins and VISAGE on curves made by hand, and against naive forms on random ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.core.errors import TiterError
from titer.core.landscape import Basin, Visage, basin, visage, visage_window

GRID = [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]


def test_a_flat_curve_is_a_basin_of_at_least_the_grid() -> None:
    assert basin(GRID, [0.9] * 7, 0.05) == Basin(-1.5, 1.5, 3.0, 3.0, math.inf, True)


def test_a_step_is_between_its_points() -> None:
    found = basin(GRID, [0, 0, 0.8, 0.8, 0.8, 0.8, 0], 0.2)
    assert (found.left, found.right) == pytest.approx((-0.5 - 0.125, 1.0 + 0.125))  # 0.2 of a fall by 0.8 over half a unit
    assert found.width == pytest.approx(found.right - found.left)
    assert (found.least, found.most, found.at_least) == (1.5, 2.5, False)


def test_a_slope_leaves_where_the_line_says() -> None:
    a = np.linspace(-1, 1, 21)
    found = basin(a.tolist(), (1 - 0.4 * np.abs(a)).tolist(), 0.17)
    assert found.width == pytest.approx(2 * 0.17 / 0.4)
    assert found.least == pytest.approx(0.8)
    assert found.most == pytest.approx(1.0)


def test_a_line_that_crosses_from_one_side_to_the_other_leaves_on_the_far_side() -> None:
    found = basin([-1, 0, 1, 2], [0.5, 0.5, 0.6, 0.1], 0.2)  # 0.6 inside above, 0.1 outside below: it leaves at 0.3
    assert found.right == pytest.approx(1 + (0.6 - 0.3) / (0.6 - 0.1))


def test_only_the_neighbourhood_of_zero_counts_and_the_tolerance_is_within() -> None:
    assert basin(GRID, [1, 0, 1, 1, 1, 0, 1], 0.5).least == 1.0
    assert basin(GRID, [0.95, 0.95, 0.95, 1.0, 0.95, 0.95, 0.95], 0.05).at_least
    assert basin([0.0], [0.3], 0.1) == Basin(0.0, 0.0, 0.0, 0.0, math.inf, True)


def test_what_could_not_be_measured_ends_the_basin_as_the_grid_does() -> None:
    found = basin(GRID, [0, 1, 1, 1, 1, math.nan, 1], 0.1)
    assert (found.right, found.most, found.at_least) == (0.5, math.inf, True)
    assert found.least == 1.5


def test_the_order_of_points_does_not_matter() -> None:
    values = [0, 0.5, 1, 1, 1, 0.7, 0]
    turned = [3, 0, 6, 1, 5, 2, 4]
    assert basin([GRID[i] for i in turned], [values[i] for i in turned], 0.1) == basin(GRID, values, 0.1)
    success = [100, 80, 0, 0, 20, 100, 100]
    assert visage_window([GRID[i] for i in turned], [success[i] for i in turned]) == visage_window(GRID, success)


@pytest.mark.parametrize("a", [[-1.0, 0.5], [0.0, 0.0], [0.0]])
def test_a_grid_without_zero_or_with_doubles_is_refused(a: list[float]) -> None:
    with pytest.raises(TiterError):
        basin(a, [1.0, 1.0], 0.1)
    with pytest.raises(TiterError, match="measured point at a = 0"):
        basin([0.0, 1.0], [math.nan, 1.0], 0.1)


@given(
    st.integers(1, 6).flatmap(
        lambda half: st.tuples(st.just(half), st.lists(st.floats(0, 1), min_size=2 * half + 1, max_size=2 * half + 1)),
    ),
    st.floats(0.01, 0.5),
)
def test_the_basin_is_that_of_a_fine_walk(curve: tuple[int, list[float]], tolerance: float) -> None:
    """Walk the straight lines between points in small steps from 0 until the value leaves."""
    half, values = curve
    a = [k / half for k in range(-half, half + 1)]
    found = basin(a, values, tolerance)
    for sign, end in ((1, found.right), (-1, -found.left)):
        walk = np.arange(0, 1 + 1e-9, 1e-3)
        heights = np.interp(sign * walk, a, values)
        outside = np.flatnonzero(np.abs(heights - values[half]) > tolerance + 1e-9)
        expected = walk[outside[0]] if outside.size else 1.0
        assert end == pytest.approx(expected, abs=2e-3)
    assert found.least - 1e-9 <= found.width <= found.most


@pytest.mark.parametrize("half", [0, 1, 2])
def test_visage_of_a_symmetric_step_of_any_width_is_100(half: int) -> None:
    curve = [0.0 if abs(k) <= half else 100.0 for k in range(-3, 4)]
    assert visage(curve) == Visage(100.0, 2 * half + 1, False)
    assert visage_window(GRID, curve) == Visage(100.0, 2 * half + 1, False)


def test_visage_of_all_and_of_nothing() -> None:
    assert visage([0.0] * 7) == Visage(100.0, 7, False)
    assert visage_window(GRID, [0.0] * 7) == Visage(100.0, 7, False)
    assert visage([100.0] * 7) == Visage(0.0, 0, True)
    assert visage_window(GRID, [100.0] * 7) == Visage(0.0, 0, True)
    assert visage([]) == Visage(0.0, 0, True)


def test_the_two_forms_part_at_a_hole_and_at_the_edges() -> None:
    hole = [100, 0, 100, 40, 100, 20, 100]
    assert visage(hole) == Visage(pytest.approx((100 + 60 + 80) / 3), 3, False)  # the formula: points below alone
    assert visage_window(GRID, hole) == Visage(pytest.approx((100 + 0 + 60 + 0 + 80) / 5), 5, False)  # averaged through the holes
    tail = [50, 100, 0, 0, 100, 100, 100]  # the first crossing from the left is behind the tail
    assert visage_window(GRID, tail) == Visage(100.0, 2, False)
    assert visage(tail) == Visage(pytest.approx((50 + 100 + 100) / 3), 3, False)
    assert visage([99.995, 0]).points == 2  # below 100, though the code's 99.99 does not see it
    assert visage_window([0, 1], [99.995, 0]) == Visage(100.0, 1, False)


def test_visage_leaves_out_what_was_not_measured_and_refuses_what_is_no_per_cent() -> None:
    assert visage([math.nan, 50.0, 100.0]) == Visage(50.0, 1, False)
    with pytest.raises(TiterError, match="0 to 100"):
        visage([0.5, 101.0])


@given(st.lists(st.sampled_from([0.0, 12.5, 50.0, 87.5, 100.0]), min_size=1, max_size=12))
def test_visage_is_the_formula_in_a_loop(curve: list[float]) -> None:
    total, count = 0.0, 0
    for s in curve:
        if s < 100:
            total, count = total + 100 - s, count + 1
    assert visage(curve) == Visage(pytest.approx(total / count) if count else 0.0, count, count == 0)
