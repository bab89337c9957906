"""The study of the risk levels at a tiny scale: its model learns nothing, its mechanics are real."""

from __future__ import annotations

import pytest

from tests.studies.huang2024.conftest import BASE
from tests.studies.huang2024.conftest import TINY as VACCINE
from tests.studies.huang2024_text.conftest import base  # noqa: F401  a fixture
from titer.data.world import World
from titer.studies.qi2024.scale import Scale

TINY = Scale(
    name="tiny",
    base=VACCINE.model_copy(update={"base": BASE.model_copy(update={"world": World(novel=10, marks=True)}), "inputs": 8}),
    counts=(2, 4),
    mixed=(2, 4),
    batch=4,
    epochs=1,
    personas=(2, 4),
    persona_epochs=1,
    benign=8,
    grid_rates=(1e-4, 1e-3),
    grid_batches=(4, 8),
    inputs=8,
    searched=4,
)


@pytest.fixture(scope="session")
def tiny_scale() -> Scale:
    return TINY
