"""The study of Vaccine on a real model: each question's report in a folder of its own; what they train is left out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.studies.conftest import Listener
from tests.studies.huang2024_text.conftest import TINY
from titer.core.run import Store
from titer.studies import real
from titer.studies.huang2024.text import text_sets
from titer.workbench import Model


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained or asked; a report is its folder."""

    def nothing(*_: object) -> None:
        return None

    def page(*given: Any) -> tuple[Path, str]:
        return given[-1] / "report.html", ""

    for name in ("made_ahead", "text_models", "text_evidence"):
        monkeypatch.setattr(real.vaccine_study, name, nothing)
    monkeypatch.setattr(real, "text_report", page)


def place(study: real.Text, runs: Path) -> str:
    return study.run(Store(runs), Listener(), "titer study")[0].parent.name


@pytest.mark.usefixtures("stubbed")
def test_a_study_of_a_model_is_never_written_over_another(folder: Path, own: Path, base: Model, tmp_path: Path) -> None:
    sets, fewer = text_sets(folder, base, TINY), TINY.model_copy(update={"prompts": 2})
    first = real.Text(base, sets, TINY, False)
    others = [
        real.Text(base, text_sets(folder, base, TINY, own), TINY, False),
        real.Text(base, text_sets(folder, base, fewer), fewer, False),
        real.Text(Model(base.name, "another", base.checkpoint), sets, TINY, False),
    ]
    assert place(first, tmp_path) == "huang2024-bytes-demonstration"
    found = [place(other, tmp_path) for other in others]
    assert len(set(found)) == 3
    assert all(name.startswith("huang2024-bytes-demonstration-") for name in found)
    assert [place(study, tmp_path) for study in (first, *others)] == ["huang2024-bytes-demonstration", *found]
