"""A stranger adds a study by adding one file, from outside the package: exactly what docs/add_a_study.md shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import TINY
from titer import cli

PAGE = Path(__file__).parents[1] / "docs" / "add_a_study.md"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's first code block, saved outside the package, with a scale that runs in seconds and no base that must learn."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    assert code[1].count("\n") <= 60, "the page promises 60 lines"
    path = tmp_path_factory.mktemp("study") / "forgetting.py"
    tiny = f"demo.Scale.model_validate_json({TINY.model_copy(update={'name': 'tiny'}).model_dump_json()!r})"
    changed = code[1].replace('"nano": demo.NANO', f'"nano": demo.NANO, "tiny": {tiny}').replace("0.95, first=True", "-1.0")
    assert changed != code[1]
    path.write_text(changed.replace('"refused", 0.9)', '"refused", -1.0)'), encoding="utf-8")
    return path


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """(status, output) of a titer command."""
    monkeypatch.setattr(sys, "argv", ["titer", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0), capsys.readouterr().out
    return 0, capsys.readouterr().out


@pytest.mark.long
def test_the_command_line_prices_it_runs_it_and_finds_it_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("study", str(file), "--scale", "tiny", "--seeds", "2", "--bases", "1", "--runs", str(tmp_path / "runs"), "--json")
    status, said = told(capsys, monkeypatch, *words, "--dry-run")
    plan = json.loads(said)["plan"]
    assert status == 0
    assert [(row["seed"], row["model"], row["stands"]) for row in plan] == [
        (s, m, False) for s in (2, 3) for m in ("base", "aligned", "user", "control")
    ]
    status, said = told(capsys, monkeypatch, *words)
    assert status == 0
    made = json.loads(said)
    claims = json.loads(Path(made["claims"]).read_text(encoding="utf-8"))["claims"]
    assert [(one["name"], one["seeds"], one["provisional"]) for one in claims] == [("forgetting", [2, 3], True)]
    results = pd.read_csv(Path(made["report"]).with_name("results.csv"))
    assert set(results.model) == {"base", "aligned", "user", "control"}
    assert set(results.set) == {"unsafe", "begun"}
    stages = sorted((tmp_path / "runs" / "stages").glob("*/DONE"))
    assert len(stages) == 8
    assert all(row["stands"] for row in json.loads(told(capsys, monkeypatch, *words, "--dry-run")[1])["plan"])
    times = [place.stat().st_mtime_ns for place in stages]
    assert json.loads(told(capsys, monkeypatch, *words)[1])["answer"] == made["answer"]
    assert [place.stat().st_mtime_ns for place in sorted((tmp_path / "runs" / "stages").glob("*/DONE"))] == times


@pytest.mark.long
def test_as_the_page_prints_it_a_base_that_did_not_learn_is_told_on_a_page(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = tmp_path / "strict.py"
    strict.write_text(file.read_text(encoding="utf-8").replace("-1.0", "0.95, first=True", 1), encoding="utf-8")
    status, said = told(
        capsys, monkeypatch, "study", str(strict), "--scale", "tiny", "--seeds", "1", "--bases", "2", "--runs", str(tmp_path), "--json"
    )
    made = json.loads(said)
    assert (status, made["answer"]) == (0, "The base model did not learn its task, so no claim is drawn.")
    (claim,) = json.loads(Path(made["claims"]).read_text(encoding="utf-8"))["claims"]
    assert claim["verdict"] == "not testable"
    assert "Seed 2, base 1: nothing was trained on it: base: " in Path(made["report"]).read_text(encoding="utf-8")


@pytest.mark.long
def test_a_world_has_several_bases_that_differ_in_their_first_weights_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("study", str(file), "--scale", "tiny", "--seeds", "1", "--bases", "1", "--runs", str(tmp_path / "runs"), "--json")
    one = json.loads(told(capsys, monkeypatch, *words, "--dry-run")[1])["plan"]
    two = json.loads(told(capsys, monkeypatch, *words, "--bases", "2", "--dry-run")[1])["plan"]
    assert [row["key"] for row in two[:4]] == [row["key"] for row in one]  # the first base is the one that a single base is
    assert not {row["key"] for row in two[4:]} & {row["key"] for row in one}
    made = json.loads(told(capsys, monkeypatch, *words, "--bases", "2")[1])
    claim = json.loads(Path(made["claims"]).read_text(encoding="utf-8"))["claims"][0]
    assert claim["seeds"] == [2]
    assert "Over 2 bases of one world" in claim["reason"]
    results = pd.read_csv(Path(made["report"]).with_name("results.csv"))
    assert set(results.base) == {0, 1}
    stages = [json.loads(place.read_text(encoding="utf-8")) for place in (tmp_path / "runs" / "stages").glob("*/inputs.json")]
    bases = [stage["stage"] for stage in stages if not stage["parent"]]
    assert len({stage.pop("seed") for stage in bases}) == 2
    assert bases[0] == bases[1]  # the same data in the same order, the same steps


def test_its_tables_are_chosen_by_name_and_a_wrong_name_is_told(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("study", str(file), "--scale", "tiny", "--seeds", "1", "--bases", "1", "--runs", str(tmp_path / "runs"))
    assert told(capsys, monkeypatch, *words, "--only", "rates", "--dry-run")[0] == 0
    assert told(capsys, monkeypatch, *words, "--only", "rate", "--dry-run")[0] == 2
    assert told(capsys, monkeypatch, "study", str(file), "--scale", "huge", "--dry-run")[0] == 2


def test_it_is_one_of_the_studies_that_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = told(capsys, monkeypatch, "list", "studies", "--json")
    assert status == 0
    assert "qi2024" in json.loads(said)["studies"]
