"""Commands killed at random, and two equal ones at once, end with the undisturbed result. `tests/commands.py` runs many more."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Trial, furnish

pytestmark = pytest.mark.long

TRIED = ("finetune", "audit")  # the others: tests/commands.py; the demo: tests/test_kill.py


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial(tmp_path_factory.mktemp("commands"), TRIED)


@pytest.mark.parametrize("command", TRIED)
def test_a_killed_command_goes_on_and_ends_with_the_same_result(command: str, trial: Trial) -> None:
    trial.killed(command, trial.folder / f"killed-{command}", random.Random(1))


@pytest.mark.parametrize("command", TRIED)
def test_two_equal_commands_at_once_end_with_one_result(command: str, trial: Trial) -> None:
    trial.paired(command, trial.folder / f"paired-{command}", random.Random(2))


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path: Path) -> None:
    furnish(tmp_path)
    words = ["finetune", "m", "--data", "b.jsonl", "--examples", "8", "--batch", "4", "--epochs", "100000", "--lr", "1e-3"]
    with subprocess.Popen([sys.executable, "-m", "titer", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr is not None
        command.stderr.readline()  # it has begun
        command.terminate()
        assert "stopped. Run the same command again to go on from here." in command.stderr.read()
    assert command.returncode == 1
