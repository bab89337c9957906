"""`titer audit` as its user words it: the landscape's settings, and what its advice knows of a model that titer made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import LETTERS, Titer
from titer.commands.recorded_options import usual
from titer.models.checkpoint import open_checkpoint

Wrong = Callable[..., str]
AUDIT = ("audit", "m", "--data", "d.csv")


@pytest.fixture
def task(here: Path) -> Path:
    file = here / "task.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"a {c}", "comply": "b"}) + "\n" for c in LETTERS), encoding="utf-8")
    return file


def test_the_landscapes_settings_are_priced(titer: Titer) -> None:
    settings = ("--landscape-set", "points=3", "--landscape-set", "directions=1", "--landscape-set", "prompts=4")
    found = titer(*AUDIT, "--landscape", *settings, "--landscape-set", "tokens=2", "--dry-run", "--json").json
    assert found["landscape"].startswith("3 points, 12 answers, 24 new tokens")
    assert titer(*AUDIT, "--landscape", "--dry-run", "--json").json["landscape"].startswith("25 points")


def test_settings_of_no_landscape_are_an_error(wrong: Wrong) -> None:
    assert "--landscape-set without --landscape" in wrong(*AUDIT, "--landscape-set", "points=3")
    assert "did you mean 'points'" in wrong(*AUDIT, "--landscape", "--landscape-set", "point=3")
    assert "an even number of points has none at a = 0" in wrong(*AUDIT, "--landscape", "--landscape-set", "points=4")
    assert "--landscape-set 'points' is not NAME=VALUE" in wrong(*AUDIT, "--landscape", "--landscape-set", "points")


@pytest.mark.long
def test_how_a_model_was_tuned_stands_beside_it(titer: Titer, task: Path) -> None:
    tune = ("finetune", "m", "--data", "task.jsonl", "--examples", "12", "--epochs", "2", "--batch", "5", "--lr", "0.003", "--lora", "2")
    place = titer(*tune, "--json").json["model"]
    known = {"lr": "0.003", "epochs": "2", "batch": "5", "lora": "2", "examples": "12"}
    assert usual(Path(place)) == known
    assert titer(*tune, "--alpha", "4", "--schedule", "constant", "--to", "tuned").status == 0
    assert usual(Path("tuned")) == {**known, "alpha": "4", "schedule": "constant"}
    free = ("align", "m", "--data", "task.jsonl", "--steps", "4", "--method", "vaccine", "--set", "reuse=rows")
    assert "add --replay 8" in titer(*free).err
    assert usual(Path(titer(*free, "--replay", "2", "--json").json["model"]))["replay"] == "2"
    assert usual(Path("m")) == {}
    mark = json.loads(Path("tuned/.titer.json").read_text(encoding="utf-8"))
    mark["options"]["rate"] = mark["options"].pop("lr")  # as records had it once
    Path("tuned/.titer.json").write_text(json.dumps(mark), encoding="utf-8")
    assert usual(Path("tuned"))["lr"] == known["lr"]
    align = ("align", "m", "--data", "task.jsonl", "--steps", "2", "--batch", "3", "--to", "aligned")
    assert titer(*align).status == 0
    assert usual(Path("aligned")) == {"lr": "2e-05", "epochs": "1", "batch": "3", "examples": "6"}  # of 16
    assert open_checkpoint("tuned").key != open_checkpoint("m").key


@pytest.mark.parametrize(
    "said", ["[]", "{", '{"options": 3}', '{"options": {"lr": "1 --to x", "epochs": "1", "batch": "1"}}', '{"options": {"lr": "1"}}']
)
def test_a_record_that_is_not_one_says_nothing(here: Path, said: str) -> None:
    (here / "m" / ".titer.json").write_text(said, encoding="utf-8")
    (here / "inputs.json").write_text('{"stage": {"streams": []}}', encoding="utf-8")
    (here / "DONE").write_text("x", encoding="utf-8")
    assert usual(here / "m") == {}


def test_lisa_that_never_sees_its_task_is_refused_before_it_runs(wrong: Wrong, titer: Titer, task: Path) -> None:
    tune = ("finetune", "m", "--data", "task.jsonl", "--examples", "10", "--epochs", "1", "--batch", "1", "--method", "lisa")
    lisa = (*tune, "--stream", "alignment=a.jsonl")
    message = wrong(*lisa)
    assert "Lisa of 10 steps and k1 = 100" in message
    assert "--set k1=1 --set k2=9" in message
    assert "k1 = 10:" in wrong(*lisa, "--set", "k1=10", "--dry-run")
    assert titer(*lisa, "--set", "k1=1", "--set", "k2=9", "--dry-run").status == 0
