"""The audit's tests have the models, prompts and pipeline of the study tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies.conftest import pipeline, prompts, saved
from titer.data.sources import TextData, read_text

__all__ = ["pipeline", "prompts", "saved"]


@pytest.fixture
def data(prompts: Path) -> TextData:
    return read_text(prompts)
