"""Tables on disk: what is read is what was written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.core.tables import read_table, write_table


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "table.jsonl"


def back(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    write_table(file, table)
    return read_table(file)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_floats_come_back_bit_for_bit(file: Path, values: list[float]) -> None:
    found = back(file, pd.DataFrame({"x": np.asarray(values, dtype=float)})).x.to_numpy(dtype=float)
    assert found.tobytes() == np.asarray(values, dtype=float).tobytes()


@pytest.mark.long
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_integers_come_back_exact(file: Path, values: list[int]) -> None:
    assert back(file, pd.DataFrame({"x": values})).x.tolist() == values


@pytest.mark.long
@given(st.lists(st.text(st.characters(), max_size=12), min_size=1, max_size=6))
def test_any_text_survives(file: Path, values: list[str]) -> None:
    """Control characters, newlines of every kind, half characters, numbers and null in words."""
    assert back(file, pd.DataFrame({"s": pd.array(values, dtype=object)})).s.tolist() == values


@pytest.mark.parametrize("value", ["1", "1.0", "nan", "NaN", "null", "true", "", "007", "1e5", "\n", "\x00\x1b[31m", "\u2028", "a\r\nb"])
def test_text_that_looks_like_something_else_stays_text(file: Path, value: str) -> None:
    found = back(file, pd.DataFrame({"s": [value, "other"]})).s.tolist()
    assert found == [value, "other"]
    assert all(type(item) is str for item in found)


def test_one_row_is_one_line_whatever_it_holds(file: Path) -> None:
    write_table(file, pd.DataFrame({"s": ["a\nb\r\u2028", "c"]}))
    assert len(file.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_null_on_disk_and_nan_when_read(file: Path, value: float) -> None:
    found = back(file, pd.DataFrame({"x": [1.5, value]}))
    assert [json.loads(line)["x"] for line in file.read_text(encoding="utf-8").splitlines()] == [1.5, None]
    assert found.x.dtype == np.float64
    assert math.isnan(found.x[1])


def test_a_column_of_nothing_but_nan_is_still_a_column_of_numbers(file: Path) -> None:
    found = back(file, pd.DataFrame({"x": [math.nan, math.nan], "y": [1, 2]}))
    assert found.x.dtype == np.float64
    assert (found.x - found.y).isna().all()


def test_types_and_the_order_of_columns_are_kept(file: Path) -> None:
    table = pd.DataFrame({"z": [1, 2], "a": [True, False], "m": [0.5, 1.0], "s": ["x", "y"]})
    pd.testing.assert_frame_equal(back(file, table), table)


def test_numpy_scalars_are_plain_numbers(file: Path) -> None:
    table = pd.DataFrame({"x": pd.array([np.float32(0.1), np.int32(3), np.bool_(True)], dtype=object)})
    write_table(file, table)
    values = [json.loads(line)["x"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert values == [float(np.float32(0.1)), 3, True]


def test_an_absent_text_reads_as_missing(file: Path) -> None:
    assert back(file, pd.DataFrame({"s": ["x", None]})).s.isna().tolist() == [False, True]
