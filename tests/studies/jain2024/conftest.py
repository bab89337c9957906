"""One seed of the mechanistic study at a tiny scale, every part measured: its model learns nothing, its mechanics are real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.studies.conftest import Listener
from titer.core.run import Store
from titer.data.world import World
from titer.models.lm import Architecture
from titer.pipeline import Pipeline
from titer.recipes.jain2024 import Scale
from titer.studies.engine.found import Found
from titer.studies.engine.lab import Lab
from titer.studies.jain2024.study import Mechanisms

STUDY = Mechanisms()
TINY = Scale(
    name="tiny",
    world=World(novel=10),
    architecture=Architecture(layers=2, width=16, heads=2, positions=40),
    pretrain_steps=30,
    pretrain_batch=32,
    pretrain_warmup=5,
    align_steps=20,
    align_batch=16,
    align_warmup=4,
    pool=64,
    relearn_steps=10,
    relearn_batch=8,
    inputs=16,
)


@dataclass(frozen=True)
class Study:
    """What one seed left."""

    root: Path
    lab: Lab
    found: Found


def lab_of(root: Path, scale: Scale, seed: int, parts: Sequence[str] = tuple(STUDY.PARTS)) -> Lab:
    """A seed at work with the models of these parts."""
    lab = Lab(Pipeline(Store(root), Listener(), scale.save_every), STUDY, "jain2024", scale, seed, parts=tuple(parts))
    for batch in STUDY.further(lab):
        lab.grow(batch)
    return lab


def small_study(root: Path) -> Study:
    lab = lab_of(root, TINY, 5)
    return Study(root, lab, lab.found())


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(tmp_path_factory.mktemp("jain"))
