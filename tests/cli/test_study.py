"""`titer study`: wrong names, the price of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Titer

Wrong = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("jain2023",), ("unknown study 'jain2023'", "jain2024")),
        (("jain2024", "--scale", "nan"), ("unknown scale 'nan'", "nano")),
        (("jain2024", "--only", "fig33,soft"), ("unknown part 'fig33'", "fig3")),
        (("jain2024", "--base", "m"), ("jain2024 has no form on a real model", "titer audit BASE ALIGNED --data prompts.csv --mechanisms")),
        (("demo", "--base", "m", "--data", "d.csv"), ("demo has no form on a real model", "titer audit BASE ALIGNED")),
        (("jain2024", "--data", "d.csv"), ("--data and --prompts belong to real models", "--base")),
        (("huang2023",), ("unknown study 'huang2023'", "huang2024")),
        (("huang2024", "--scale", "nan"), ("unknown scale 'nan'", "nano")),
        (("huang2024", "--only", "tabel6"), ("unknown part 'tabel6'", "table6")),
        (("huang2024", "--part", "cor"), ("unknown part of the study 'cor'", "core")),
        (("huang2024", "--seeds", "101"), ("--seeds", "100")),
        (("huang2024", "--data", "d.csv"), ("--data and --prompts belong to real models", "--base")),
        (("huang2024", "--alpha", "4"), ("--alpha do not belong here", "titer study --help")),
        (("huang2024", "--base", "m"), ("no folder of data sets", "--data FOLDER")),
        (("huang2024", "--base", "m", "--data", ".", "--scale", "demo"), ("unknown scale 'demo'", "demonstration")),
    ],
)
def test_wrong_input_names_what_is_near(wrong: Wrong, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    message = wrong("study", *arguments)
    for word in words:
        assert word in message


def test_a_dry_run_prices_every_training_and_runs_none(titer: Titer, here: Path) -> None:
    found = titer("study", "jain2024", "--seeds", "2", "--dry-run", "--json").json["plan"]
    assert {row["seed"] for row in found} == {0, 1}
    assert sum(row["model"] == "base" for row in found) == 4, "two bases of each world"
    assert all(row["tflop"] > 0 and not row["stands"] for row in found)
    assert not (here / "runs").exists()
    told = titer("study", "jain2024", "--seeds", "1", "--dry-run").out
    assert " hours" in told


@pytest.mark.long
def test_a_dry_run_of_huang2024_prices_what_the_parts_need_and_runs_none(titer: Titer, here: Path) -> None:
    found = titer("study", "huang2024", "--seeds", "1", "--only", "table6", "--dry-run", "--json").json["plan"]
    assert {row["seed"] for row in found} == {100, 0}, "the seed that chooses is priced too"
    assert all(row["tflop"] > 0 and row["steps"] > 0 and not row["stands"] for row in found)
    assert sum(row["kind"] == "finetune" and row["seed"] == 0 for row in found) == 60, "two bases, three alignments of each"
    assert not (here / "runs").exists()
    assert "hours" in titer("study", "huang2024", "--seeds", "1", "--only", "table6", "--dry-run", "--flops", "1e12").out


@pytest.mark.long
def test_a_dry_run_of_kinds_leaves_out_the_seed_that_was_looked_at_and_trains_what_another_study_does(titer: Titer, here: Path) -> None:
    plan = titer("study", "kinds", "--seeds", "2", "--bases", "1", "--only", "named", "--dry-run", "--json").json["plan"]
    assert {row["seed"] for row in plan} == {1, 2}
    assert {"base", "aligned", "backdoor", "explicit 50", "explicit 100"} <= {row["model"] for row in plan}
    assert not (here / "runs").exists()
