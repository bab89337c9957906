"""One seed of the mechanistic study at a tiny scale, every part measured: its model learns nothing, its mechanics are real."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.studies.conftest import Listener
from titer.core.run import Store
from titer.data.world import World
from titer.models.lm import Architecture
from titer.recipes.jain2024 import Scale, jain_recipe
from titer.studies.jain2024.evidence import Evidence
from titer.studies.jain2024.gather import PARTS, measured
from titer.studies.jain2024.subject import Subject, subject
from titer.workbench import Workbench, recipe_models

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
    subject: Subject
    evidence: Evidence


def small_study(root: Path) -> Study:
    bench = Workbench(Store(root), Listener(), TINY.save_every)
    models = recipe_models(bench, jain_recipe(TINY, 5), TINY.world.model_copy(update={"seed": 5}).tokenizer)
    s = subject(bench, TINY, 5, models)
    return Study(root, s, Evidence(5, measured(s, PARTS), over_inputs=True))


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small_study(tmp_path_factory.mktemp("jain"))
