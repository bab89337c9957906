"""Models that are only measured, trainings that ended early, and a page that counts verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import pytest

from tests.conftest import TINY
from tests.studies.conftest import Listener
from titer.core import parallel
from titer.core.claims import Claim
from titer.core.run import Store
from titer.data.world import World
from titer.pipeline import Model
from titer.recipes import demo
from titer.recipes.node import Node
from titer.studies.engine.declare import Measure, Page, Question, Row, Seed, Study
from titer.studies.engine.found import Found
from titer.studies.engine.run import run_study
from titer.studies.engine.terms import rate
from titer.studies.request import StudyRequest
from titer.tables import direct, requests


class Quiet(Study):
    """The aligned model is measured and asked nothing."""

    SOURCE = "a paper"
    SCALES = MappingProxyType({"tiny": TINY})

    def nodes(self, scale: demo.Scale, source: World) -> list[Node]:
        aligned = demo.align(scale, source, "SSFT", ("unsafe", "refuse"), "safe")
        return [Node("base", demo.pretrain(scale, source), None), Node("aligned", aligned, "base")]

    def questions(self, lab: Seed) -> list[Question]:
        return [Question("safe", direct(requests(lab.world, "safe", 4)), lambda name: name == "base")]

    def measures(self, lab: Seed) -> list[Measure]:
        def called(lab: Seed, base: Model, model: Model) -> pd.DataFrame:
            return pd.DataFrame([{"pair": f"{base.name}, {model.name}"}])

        return [Measure("names", called, [("base", "aligned")])]

    def claims(self, scale: demo.Scale) -> list[Row]:
        return [Row("one", "It is so.", "", "a statistic", rate("base", "safe"), rate("base", "safe"), "itself")]

    def page(self, found: Sequence[Found], scale: demo.Scale) -> Page:
        assert found[0].tables["names"].pair.tolist() == ["base, aligned"], "measures see models under the recipe's names"
        assert set(found[0].tables["rates"].model) == {"base"}
        return Page("Asked.", self.__doc__ or "")

    def concluded(self, page: Page, claims: Sequence[Claim]) -> Page:
        return replace(page, answer=f"{page.answer} {len(claims)} claim, {claims[0].verdict}.")


@pytest.mark.long
def test_a_model_may_be_measured_only_and_an_answer_may_count_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    _, answer = run_study(Quiet(), StudyRequest("quiet", "tiny", (0,), bases=1), TINY, Store(tmp_path), Listener(), "titer study quiet")
    assert answer == "Asked. 1 claim, inconclusive."


def test_a_training_that_ended_early_speaks_of_the_claims_that_name_its_model() -> None:
    found = Found(2, None, {}, stopped={"a": "the loss is not finite"}, faults={"b": "b: no"})
    assert found.fault(("a",)) == "seed 2: a was stopped: the loss is not finite"
    assert found.fault(("a", "b")) == "seed 2: a was stopped: the loss is not finite; b: no"
    assert found.fault(()) == "seed 2: b: no"
    assert not found.fault(("c",))
