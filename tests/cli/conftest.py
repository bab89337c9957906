"""Fixtures of the command-line tests: `titer` in this process, in a folder of the test's own, with a tiny model in it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.conftest import llama
from titer import cli
from titer.data.world import World

LETTERS = "abcdefghijklmnop"
COMMAND = cache(typer.main.get_command)  # made of the same options at every call: longer than most commands here run


@dataclass(frozen=True)
class Result:
    """What a command left: its exit status and its two streams."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one strict JSON text."""
        return json.loads(self.out, parse_constant=pytest.fail)


Titer = Callable[..., Result]


@pytest.fixture(scope="session")
def model_folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny saved Llama."""
    folder = tmp_path_factory.mktemp("saved") / "m"
    llama(world).save(folder)
    return folder


@pytest.fixture
def here(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a model `m`, its data `d.csv` (8 safe, 8 unsafe prompts of letters), an empty cache."""
    shutil.copytree(model_folder, tmp_path / "m")
    rows = [f"{LETTERS[i]} {LETTERS[15 - i]},{'unsafe' if i % 2 else 'safe'}" for i in range(16)]
    (tmp_path / "d.csv").write_text("prompt,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    answers = [{"prompt": f"{LETTERS[i]} {LETTERS[i + 1]}", "refuse": "<null> <null>"} for i in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TITER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def titer(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Titer:
    """Run a command as its user would; anything but an exit is a traceback, and fails the test."""

    monkeypatch.setattr("typer.main.get_command", COMMAND)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["titer", *arguments])
        capsys.readouterr()
        status: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        assert isinstance(status, int)
        assert "Traceback" not in captured.err
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def wrong(titer: Titer) -> Callable[..., str]:
    """Run a command that must fail with status 2 (or the given one), nothing on standard output; returns its message."""

    def run(*arguments: str, status: int = 2) -> str:
        found = titer(*arguments)
        assert found.status == status, found
        assert found.out == ""
        assert found.err.startswith("titer: ") or "Error: " in found.err or "Usage: " in found.err
        return found.err

    return run
