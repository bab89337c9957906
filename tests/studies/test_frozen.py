"""The keys of the stages that users have trained are those that were frozen: on every machine (`frozen.py` checks the numbers on one)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY as DEMO
from tests.studies.frozen import FOLDER
from tests.studies.huang2024.conftest import TINY as HUANG
from tests.studies.jain2024.conftest import TINY as JAIN
from tests.studies.qi2024.conftest import TINY as QI
from titer.core.parallel import Silent
from titer.core.run import Store
from titer.pipeline import Pipeline
from titer.studies.demo import Demo
from titer.studies.engine.declare import Study
from titer.studies.engine.run import chooser_of, labs_of
from titer.studies.huang2024.defences import EQUAL
from titer.studies.huang2024.study import Vaccine
from titer.studies.jain2024.study import Mechanisms
from titer.studies.qi2024.study import RiskLevels
from titer.studies.request import StudyRequest

FROZEN: dict[str, tuple[Study, Any, StudyRequest]] = {
    "demo-tiny": (Demo(), DEMO, StudyRequest("demo", seeds=(1,), bases=2)),
    "jain2024-tiny": (Mechanisms(), JAIN, StudyRequest("jain2024", bases=1)),
    "qi2024-tiny": (RiskLevels(), QI, StudyRequest("qi2024", bases=1)),
}


@pytest.mark.parametrize("name", FROZEN)
def test_stages_have_the_keys_that_were_frozen(name: str, tmp_path: Path) -> None:
    study, scale, order = FROZEN[name]
    labs = labs_of(order, study, scale, Pipeline(Store(tmp_path), Silent()), plan=True)
    for lab in labs:
        for batch in study.further(lab):
            lab.grow(batch)
    found = {lab.key(node) for lab in labs for node in lab.nodes}
    assert sorted(found) == (FOLDER / name / "stages.txt").read_text(encoding="utf-8").split()


def test_vaccine_s_stages_have_the_keys_that_were_frozen(tmp_path: Path) -> None:
    """But those of the alignments of equal loss, whose length is known when losses are; the radius is the one that was chosen."""
    study = Vaccine()
    order = StudyRequest("huang2024", seeds=range(1), bases=1, only=tuple(part for part in study.PARTS if part not in ("search", "cost")))
    pipeline = Pipeline(Store(tmp_path), Silent())
    found = set()
    for lab in [*chooser_of(order, study, HUANG, pipeline, plan=True), *labs_of(order, study, HUANG, pipeline, plan=True)]:
        if lab.seed not in study.CHOSEN_ON:
            lab.chosen = study.assumed(HUANG)._replace(rho=HUANG.rhos[0])
        for batch in study.further(lab):
            lab.grow(batch)
        found |= {lab.key(name) for name in lab.nodes if not name.startswith(EQUAL) and not re.match(r"SFT, \d+ steps, alignment", name)}
    frozen = (FOLDER / "huang2024-tiny" / "stages.txt").read_text(encoding="utf-8").split()
    assert len(found) > 100
    assert found <= set(frozen)
