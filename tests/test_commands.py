"""Commands killed at random, and two equal ones at once, end with the undisturbed result. `tests/commands.py` runs many more."""

from __future__ import annotations

import random

import pytest

from tests.commands import Trial

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
