"""Fixtures of the model tests: one tiny model of each supported family, fresh for every test."""

from __future__ import annotations

import pytest

from tests.models.families import SUPPORTED
from titer.data.world import World
from titer.models.lm import LM


@pytest.fixture(params=sorted(SUPPORTED))
def family(request: pytest.FixtureRequest, world: World) -> LM:
    """A tiny model of one family, in evaluation mode."""
    lm = SUPPORTED[request.param](world)
    lm.model.eval()
    return lm
