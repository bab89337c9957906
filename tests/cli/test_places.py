"""No report replaces another question's: audits and evaluations of models and data of the same names, told by their pages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Titer
from tests.conftest import llama
from titer.data.world import World

AUDIT = ("audit", "a/checkpoint-500", "--data", "d.csv", "--max-new-tokens", "2")
EVALUATE = ("evaluate", "a/checkpoint-500", "--data", "d.csv", "--max-new-tokens", "2")


@pytest.fixture(autouse=True)
def models(here: Path, world: World) -> None:
    """Two models of one folder name, other prompts in a file of the same name."""
    shutil.copytree(here / "m", here / "a" / "checkpoint-500")
    llama(world, 5).save(here / "b" / "checkpoint-500")
    rows = (here / "d.csv").read_text(encoding="utf-8").splitlines()
    (here / "other").mkdir()
    (here / "other" / "d.csv").write_text("\n".join(rows[:-2]) + "\n", encoding="utf-8")


def folder(titer: Titer, *command: str) -> str:
    """The folder of the page that a command names."""
    page = Path(titer(*command, "--json").json["report"])
    assert page.is_file()
    return page.parent.name


def changed(command: tuple[str, ...], old: str, new: str) -> tuple[str, ...]:
    return tuple(new if word == old else word for word in command)


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "plain"), [pytest.param(AUDIT, "audit-checkpoint-500", marks=pytest.mark.long), (EVALUATE, "evaluate-checkpoint-500-d")]
)
def test_another_question_leaves_the_first_report_alone(titer: Titer, here: Path, command: tuple[str, ...], plain: str) -> None:
    assert folder(titer, *command) == plain
    before = {p.name: p.read_bytes() for p in (here / "runs" / plain).iterdir() if p.is_file()}
    others = [
        changed(command, "a/checkpoint-500", "b/checkpoint-500"),
        changed(command, "d.csv", "other/d.csv"),
        changed(command, "2", "3"),
        (*command, "--judge-set", "where=anywhere"),
        (*command, "--prompts", "5"),
    ]
    found = [folder(titer, *other) for other in others]
    assert len({plain, *found}) == len(others) + 1
    assert all(name.startswith(f"{plain}-") and len(name) == len(plain) + 7 for name in found)
    assert {p.name: p.read_bytes() for p in (here / "runs" / plain).iterdir() if p.is_file()} == before
    assert folder(titer, *command) == plain
    assert titer(*others[0]).out.splitlines()[-1] == f"Report: runs/{found[0]}/report.html"
    assert [folder(titer, *other) for other in others] == found
    assert titer("report", found[0]).out.splitlines()[1] == f"Report: runs/{found[0]}/report.html"


@pytest.mark.long
def test_the_same_model_from_another_place_is_the_same_question(titer: Titer, here: Path) -> None:
    assert folder(titer, *AUDIT) == "audit-checkpoint-500"
    shutil.copytree(here / "m", here / "c" / "checkpoint-500")
    assert folder(titer, *changed(AUDIT, "a/checkpoint-500", "c/checkpoint-500")) == "audit-checkpoint-500"


@pytest.mark.long
def test_an_attack_s_settings_and_a_second_judge_are_the_question_s(titer: Titer) -> None:
    attacks = [("--attack", "prefill"), ("--attack", "prefill", "--set", "opening=Well,"), ("--second-judge", "refusal")]
    assert len({folder(titer, *EVALUATE, *one) for one in ((), *attacks)}) == 4


@pytest.mark.long
def test_an_older_report_is_kept(titer: Titer, here: Path) -> None:
    old = here / "runs" / "audit-checkpoint-500"
    old.mkdir(parents=True)
    (old / "report.html").write_text("old", encoding="utf-8")
    assert folder(titer, *AUDIT).startswith("audit-checkpoint-500-")
    assert [p.name for p in old.iterdir()] == ["report.html"]
    assert (old / "report.html").read_text(encoding="utf-8") == "old"


@pytest.mark.long
def test_the_mechanisms_are_the_question_s(titer: Titer) -> None:
    assert folder(titer, *AUDIT) == "audit-checkpoint-500"
    assert folder(titer, *AUDIT, "--mechanisms").startswith("audit-checkpoint-500-")
    assert folder(titer, *AUDIT) == "audit-checkpoint-500"
