"""`--processes 2` and a launcher of one's own on the command line: the weights of one process, one store, one voice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.commands import furnish
from tests.methods.contract import largest_gap
from titer.cli import app
from titer.core import ranks
from titer.core.errors import TiterError

pytestmark = pytest.mark.long
TOLERANCE = 1e-5  # as test_ranks.py measured it
WORDS = ["finetune", "m", "--data", "b.jsonl", "--examples", "8", "--batch", "4", "--epochs", "2", "--lr", "1e-2", "--json"]
ACCELERATE = ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2", "--num_machines", "1"]
PLAIN = ["--mixed_precision", "no", "--dynamo_backend", "no"]  # so that no configuration of this machine's user is read
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def ran(folder: Path, *words: str, launch: list[str] | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, from `folder`."""
    command = [sys.executable, *(launch or []), "-m", "titer", *words]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False
    )


def weights(folder: Path, runs: str) -> dict[str, object]:
    (file,) = (folder / runs / "stages").glob("*/model/model.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    furnish(made)
    alone = ran(made, *WORDS, "--runs", "one")
    assert alone.returncode == 0, alone.stderr
    return made


def test_two_processes_train_the_model_of_one_and_speak_once(folder: Path) -> None:
    two = ran(folder, *WORDS, "--runs", "two", "--to", "tuned", "--processes", "2")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count('"model"') == 1
    assert largest_gap(weights(folder, "one"), weights(folder, "two")) < TOLERANCE
    assert largest_gap(load_file(folder / "tuned" / "model.safetensors"), weights(folder, "two")) == 0
    names = [[place.name for place in (folder / runs / "stages").iterdir() if place.is_dir()] for runs in ("one", "two")]
    assert names[0] == names[1], "the key is that of one process"


@pytest.mark.parametrize("how", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]], ids=["DDP", "FSDP"])
def test_accelerate_launch_trains_the_model_of_one(folder: Path, how: list[str]) -> None:
    parts = ran(folder, *WORDS, "--runs", how[0], launch=[*ACCELERATE, *PLAIN, *how])
    assert parts.returncode == 0, parts.stderr
    assert parts.stdout.count('"model"') == 1
    assert largest_gap(weights(folder, "one"), weights(folder, how[0])) < TOLERANCE


def test_what_stands_is_found_by_all_and_trained_by_none(folder: Path) -> None:
    again = ran(folder, *WORDS, "--runs", "one", launch=LAUNCH)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count('"model"') == 1


def test_what_is_wrong_is_told_before_anything_is_launched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[list[str]] = []

    def execv(_: str, words: list[str]) -> None:
        launched.append(words)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.chdir(folder)
    wrong = CliRunner().invoke(app, ["finetune", "m", "--data", "none.jsonl", "--processes", "2"])
    assert isinstance(wrong.exception, TiterError)
    assert launched == []
    monkeypatch.setattr(sys, "argv", ["titer", *WORDS, "--processes", "2"])
    assert CliRunner().invoke(app, [*WORDS, "--processes", "2"]).exit_code == 0
    assert launched == [[sys.executable, *LAUNCH, "-m", "titer", *WORDS, "--processes", "2"]]


def test_deepspeed_is_not_supported_and_one_process_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.several(), ranks.first()) == (False, True)
    ranks.sharded.cache_clear()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(TiterError, match="DEEPSPEED, which is not supported"):
        ranks.sharded()
