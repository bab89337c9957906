"""The study of Vaccine on a real model: each question's report in a folder of its own, and one folder a question."""

from __future__ import annotations

from pathlib import Path

from tests.studies.conftest import Listener
from tests.studies.huang2024_text.conftest import TINY
from titer.core.run import Store
from titer.pipeline import Model, Pipeline
from titer.recipes.vaccine_text import TextScale
from titer.studies.engine.declare import Given
from titer.studies.engine.run import labs_of, place_of
from titer.studies.huang2024.text import VaccineOnText
from titer.studies.request import StudyRequest


def place(runs: Path, given: Given, scale: TextScale = TINY) -> str:
    store = Store(runs)
    return place_of(labs_of(StudyRequest("huang2024", given=given), VaccineOnText(), scale, Pipeline(store, Listener()))[0], store).name


def test_a_study_of_a_model_is_never_written_over_another(folder: Path, own: Path, base: Model, tmp_path: Path) -> None:
    first, fewer = (Given(base, folder), TINY), TINY.model_copy(update={"prompts": 2})
    others = [
        (Given(base, folder, own), TINY),
        (Given(base, folder), fewer),
        (Given(Model(base.name, "another", base.checkpoint), folder), TINY),
    ]
    assert place(tmp_path, *first) == "huang2024-bytes-demonstration"
    found = [place(tmp_path, *other) for other in others]
    assert len(set(found)) == 3
    assert all(name.startswith("huang2024-bytes-demonstration-") for name in found)
    assert [place(tmp_path, *study) for study in (first, *others)] == ["huang2024-bytes-demonstration", *found]


def test_a_base_that_is_called_as_a_model_of_the_study_is_told_from_it(folder: Path, base: Model, tmp_path: Path) -> None:
    given = Given(Model("sft", base.key, base.checkpoint), folder)
    lab = labs_of(StudyRequest("huang2024", given=given), VaccineOnText(), TINY, Pipeline(Store(tmp_path), Listener()))[0]
    assert [lab.called(name) for name in ("base", "sft")] == ["sft, the base", "sft"]
