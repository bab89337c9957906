"""The scripts of examples/, run as they stand on tiny models; none is longer than it promises."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.conftest import llama
from tests.studies.huang2024.conftest import TINY, relax
from titer.core import parallel
from titer.data.world import World
from titer.studies.sweep import Sweep

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[1] / "examples"
LETTERS = "abcdefghijklmnop"


@pytest.fixture
def here(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an aligned and a tuned model and the files that the scripts are given."""
    llama(world).save(tmp_path / "aligned")
    llama(world, 1).save(tmp_path / "tuned")
    rows = [f"{LETTERS[i]} {LETTERS[15 - i]},{'unsafe' if i % 2 else 'safe'}" for i in range(16)]
    (tmp_path / "prompts.csv").write_text("prompt,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    lines = {
        "task.jsonl": [{"question": f"n {a}", "answer": a} for a in LETTERS[:4]],
        "align.jsonl": [{"prompt": f"{a} b", "completion": " <null> <null>"} for a in LETTERS],
    }
    for name, found in lines.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, name: str, *words: str) -> None:
    file = EXAMPLES / f"{name}.py"
    assert file.read_text(encoding="utf-8").count("\n") <= 60
    monkeypatch.setattr(sys, "argv", [str(file), *words])
    runpy.run_path(str(file), run_name="__main__")


def test_an_audit_with_a_plot(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "audit", "aligned", "tuned", "prompts.csv", "moved.svg")
    said = capsys.readouterr().out
    assert "aligned → tuned: unsafe prompts refused" in said
    assert "prompts changed their outcome" in said
    assert "change of the share refused" in (here / "moved.svg").read_text(encoding="utf-8")


def test_a_repair_over_strengths(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "repair", "aligned", "tuned", "prompts.csv", "task.jsonl", "repaired")
    said = capsys.readouterr().out
    assert "best within the price: " in said
    shown = [line for line in said.splitlines() if line.startswith(("tuned {", "0 {", "0.25 {", "0.5 {", "0.75 {"))]
    assert len(shown) == 5
    assert "nan" not in "".join(shown)


def test_a_sweep(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At a tiny scale, in this process; tests/core/test_ray_cluster.py has the cluster."""
    monkeypatch.setattr(Sweep, "SCALES", {"nano": TINY})
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    monkeypatch.setattr("titer.studies.huang2024.attack.LEARNED", -1.0)
    relax(monkeypatch)
    run(monkeypatch, "sweep_on_ray", "runs", "processes")
    said = capsys.readouterr().out
    assert "under the worst attack of a grid of 4 trials against each: sft " in said
    assert "vaccine in its worst case: " in said
    assert (here / "runs").is_dir()


@pytest.mark.filterwarnings("ignore:.pin_memory.:UserWarning")  # on a machine without a GPU
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL 1.16 names a setting as transformers 5.23 did before
def test_vaccine_in_trl_watched(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl", reason="trl is not in the development set: make parity")
    run(monkeypatch, "vaccine_trl", "aligned", "align.jsonl", "prompts.csv", "out", "3")
    lines = [json.loads(line) for line in (here / "out" / "watch.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, 3]
    assert lines[1]["weight_change"] != lines[0]["weight_change"]
    assert (here / "out" / "model.safetensors").is_file()
    assert "stopped: no" in capsys.readouterr().out
