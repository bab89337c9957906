"""The table of architectures is what tiny models do: a handful at once, all of it among the slow tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.every_architecture import TABLE, Row, row, written
from tests.models.tiny import NAMES

HANDFUL = ("gpt2", "llama", "phi3", "lfm2", "mamba", "qwen3_moe", "xlm")


def told() -> dict[str, str]:
    """Architecture -> its line of the page."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0][2:]: line for line in lines[1:]}


def line_of(found: Row) -> str:
    return written([found]).splitlines()[-1]


def test_the_page_has_every_architecture_once() -> None:
    assert tuple(told()) == NAMES


@pytest.mark.long
@pytest.mark.parametrize("name", HANDFUL)
def test_the_page_tells_what_a_model_does(name: str, tmp_path: Path) -> None:
    assert line_of(row(name, tmp_path)) == told()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in HANDFUL])
def test_the_page_tells_what_every_other_model_does(name: str, tmp_path: Path) -> None:
    assert line_of(row(name, tmp_path)) == told()[name]
