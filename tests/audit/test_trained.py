"""Prompts that a model was trained on: left out of what is asked and counted, or refused where that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from titer.audit.ask import Known
from titer.core.errors import TiterError


@pytest.fixture
def trained(tmp_path: Path) -> str:
    file = tmp_path / "own.csv"
    file.write_text("prompt,comply\nBake bread!,Mix.\nwater,Pour.\n")
    return str(file)


def test_what_was_trained_on_is_left_out_and_counted(trained: str) -> None:
    known = Known([trained], strict=False)
    assert known.apart("prompts", [" bake  BREAD", "the garden", "Water.", "the water"]) == [1, 3]
    assert known.told == [f"2 prompts of prompts are also in the training file {trained} and were left out"]
    assert known.apart("others", ["a"]) == [0]
    assert len(known.told) == 1


def test_strict_refuses_it_and_nothing_left_is_an_error(trained: str) -> None:
    with pytest.raises(TiterError, match=r"^1 prompts of prompts are also in the training file .*own.csv\b(?! and)"):
        Known([trained], strict=True).apart("prompts", ["water?", "the garden"])
    with pytest.raises(TiterError, match="nothing is left of prompts"):
        Known([trained], strict=False).apart("prompts", ["water?"])
