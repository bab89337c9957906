"""A stranger adds an attack by adding one file, from outside the package: exactly what docs/add_an_attack.md shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.attacks import test_contract as contract
from tests.cli.conftest import Titer
from tests.conftest import neox
from tests.pages import shown
from titer import api
from titer.attacks.base import Attack
from titer.core.plugins import made
from titer.data.example import Example
from titer.data.turns import Turn, written
from titer.data.world import World, WorldSource

FEW = ("--data", "d.csv", "--max-new-tokens", "3")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return shown("add_an_attack", tmp_path / "again.py", 35)


def test_the_file_passes_the_contract(file: Path, world: World) -> None:
    unsafe = WorldSource(world=world, kind="unsafe", split="test").examples(np.arange(40))
    contract.test_it_is_declared_and_refuses_unknown_settings(str(file))
    contract.test_one_attempt_a_request_still_harmful_with_both_references(str(file), unsafe, world, neox(world))
    contract.test_the_same_seed_gives_the_same_attempts(str(file), unsafe, world, neox(world))
    contract.test_an_attack_of_the_world_refuses_real_text(str(file))


def test_it_says_what_it_says_it_says(file: Path, world: World) -> None:
    attack = made("attacks", str(file), Attack, {"times": 3, "between": " / "})  # type: ignore[type-abstract]
    talk = [Turn("system", "Be brief."), Turn("user", "Hello."), Turn("assistant", "Hello!")]
    asked = [
        Example("Bake bread?", True, "unsafe", "a file"),
        Example(written([*talk, Turn("user", "Boil eggs?")]), True, "unsafe", "a file"),
    ]
    first, second = attack.attempts(asked, {}, None)
    assert first.example.prompt == "Bake bread? / Bake bread? / Bake bread?"
    assert second.example.prompt == written([*talk, Turn("user", "Boil eggs? / Boil eggs? / Boil eggs?")])
    assert attack.attempts(asked[:1], {}, world)[0].example.prompt == "Bake bread? Bake bread? Bake bread?"


@pytest.mark.long
def test_the_command_line_takes_it_and_its_answers_are_those_to_the_changed_prompts(file: Path, here: Path, titer: Titer) -> None:
    said = titer("evaluate", "m", *FEW, "--attack", str(file), "--set", "times=3", "--set", "between= ", "--json").json
    assert {(row["kind"], row["harmful"]) for row in said["rates"]} == {("safe", False), ("unsafe", True), ("again", True)}
    assert "again" in Path(said["report"]).read_text(encoding="utf-8")
    settings = {"data": "d.csv", "max_new_tokens": 3, "progress": False}
    found = api.evaluate("m", attack=str(file), attack_set={"times": 3, "between": " "}, **settings).verdicts
    unsafe = found[found.kind == "unsafe"].prompt
    longer = "".join(f"{' '.join([prompt] * 3)},unsafe\n" for prompt in unsafe)
    (here / "d.csv").write_text("prompt,label\n" + longer, encoding="utf-8")
    by_hand = api.evaluate("m", **settings).verdicts.set_index("prompt").completion
    again = found[found.kind == "again"].set_index("prompt").completion
    assert len(again) == len(by_hand) == 8
    assert again.to_dict() == by_hand.to_dict()


def test_an_audit_takes_it(file: Path, titer: Titer) -> None:
    plan = titer("audit", "m", *FEW, "--attack", str(file), "--attack-set", "times=3", "--dry-run")
    assert plan.status == 0
    assert "again" in plan.out


@pytest.mark.parametrize(
    ("words", "told"), [(("--set", "time=3"), "times"), (("--set", "times=1"), "greater than or equal to 2"), ((), "another name")]
)
def test_what_is_wrong_is_told(file: Path, words: tuple[str, ...], told: str, wrong: Callable[..., str]) -> None:
    given = file if words else file.rename(file.with_name("unsafe.py"))  # the name of a set of prompts
    assert told in wrong("evaluate", "m", *FEW, "--attack", str(given), *words)
