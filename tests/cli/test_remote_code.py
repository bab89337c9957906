"""`--trust-remote-code`: every command that measures or trains a model passes it on; without it the model's code is never imported."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.conftest import Titer
from tests.models.own import marked, own_llama, written
from titer import api
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM

TRUST = "--trust-remote-code"
EVALUATE = ("--data", "d.csv", "--prompts", "4", "--max-new-tokens", "2")
COMMANDS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", "own/m", *EVALUATE, "--dry-run"),
    "audit": ("audit", "own/m", "--data", "d.csv", "--dry-run"),
    "two models and a control": ("audit", "own/m", "own/tuned", "--control", "own/benign", "--data", "d.csv", "--dry-run"),
    "align": ("align", "own/m", "--data", "a.jsonl", "--steps", "1", "--dry-run"),
    "a model that a method reads": (
        *("align", "m", "--data", "a.jsonl", "--steps", "1", "--dry-run", "--lora", "2"),
        *("--method", "safe_lora", "--read", "unaligned=own/m", "--read", "aligned=m"),
    ),
    "finetune": ("finetune", "own/m", "--data", "t.jsonl", "--examples", "4", "--epochs", "1", "--dry-run"),
    "mechanisms": ("audit", "own/m", "own/tuned", "--data", "d.csv", "--mechanisms", "--dry-run"),
}


@pytest.fixture(autouse=True)
def own(here: Path, world: World) -> Path:
    """`own/m`, a model with code of its own, and two relatives; a user's task."""
    for seed, name in enumerate(("tuned", "benign"), start=1):
        own_llama(world, here / "own" / name, seed)
    rows = [{"prompt": f"a {letter}", "comply": "b"} for letter in "abcdefgh"]
    (here / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return own_llama(world, here / "own" / "m")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_model_with_code_of_its_own_is_refused_unless_the_option_is_given(
    titer: Titer, wrong: Callable[..., str], own: Path, name: str
) -> None:
    message = wrong(*COMMANDS[name])
    assert "needs code of its own" in message
    assert f"Where you trust its author and have read that code: {TRUST}" in message
    assert not list(marked(own).iterdir())
    found = titer(*COMMANDS[name], TRUST)
    assert found.status == 0, found


@pytest.mark.long
def test_evaluate_and_its_card(titer: Titer, own: Path) -> None:
    plain = titer("evaluate", "m", *EVALUATE)
    found = titer("evaluate", "own/m", *EVALUATE, TRUST)
    assert found.status == 0, found
    assert sorted(p.name for p in marked(own).iterdir()) == ["configuration", "modelling"]
    *said, last = found.out.splitlines()
    assert said == plain.out.splitlines()[:-1]
    card = titer("report", str(Path(last.removeprefix("Report: ")).parent), "--card", "own/m")
    assert card.status == 0, card
    assert TRUST in (own / "README.md").read_text()


@pytest.mark.long
def test_code_of_a_known_architecture_is_run_or_said_not_to_be(titer: Titer, own: Path) -> None:
    written(own, model_type="llama")
    found = titer("evaluate", "own/m", *EVALUATE)
    assert "m: its folder comes with code of its own (configuration_own.OwnLlamaConfig, modeling_own" in found.out
    assert not list(marked(own).iterdir())
    asked = titer("evaluate", "own/m", *EVALUATE, TRUST)
    assert sorted(p.name for p in marked(own).iterdir()) == ["configuration", "modelling"]
    assert "code of its own" not in asked.out
    pages = [Path(f.out.splitlines()[-1].removeprefix("Report: ")) for f in (found, asked)]
    assert ["which was not run" in page.read_text() for page in pages] == [True, False]


@pytest.mark.long
def test_audit(titer: Titer, own: Path) -> None:
    found = titer("audit", "own/m", "own/tuned", "--control", "own/benign", "--data", "d.csv", "--max-new-tokens", "2", TRUST)
    assert found.status == 0, found
    assert sorted(p.name for p in marked(own).iterdir()) == ["configuration", "modelling"]


@pytest.mark.long
@pytest.mark.parametrize("more", [(), ("--lora", "2", "--to", "named")])
def test_what_is_trained_from_it_has_its_code_and_wants_the_option_again(titer: Titer, own: Path, more: tuple[str, ...]) -> None:
    made = titer("finetune", "own/m", "--data", "t.jsonl", "--examples", "4", "--epochs", "1", *more, TRUST, "--json")
    assert made.status == 0, made
    place = made.json["model"]
    assert sorted(p.name for p in Path(place).glob("*.py")) == ["configuration_own.py", "modeling_own.py"]
    with pytest.raises(TiterError, match="needs code of its own"):
        open_checkpoint(place)
    assert open_checkpoint(place, trusted=True).key != open_checkpoint("own/m", trusted=True).key
    assert made.json["next"] == f"titer evaluate {place} {TRUST} --data PROMPTS.csv"
    following = shlex.split(made.json["next"].replace("PROMPTS.csv", "d.csv"))[1:]
    assert titer(*following, "--max-new-tokens", "2").status == 0
    assert titer("align", place, "--data", "a.jsonl", "--steps", "1", TRUST).status == 0


@pytest.mark.parametrize("command", ["lm_eval", "inspect_ai"])
def test_the_bridges(titer: Titer, wrong: Callable[..., str], monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    given: list[LM] = []
    module = f"titer.integrations.{command}"
    monkeypatch.setattr(f"{module}.must_be_installed", lambda: None)
    monkeypatch.setattr(f"{module}.evaluate", lambda lm, *_, **__: given.append(lm) or pd.DataFrame([{"value": 1}]))
    monkeypatch.setattr("titer.integrations.inspect_ai.metrics", lambda table: table)
    words = ("lm-eval" if command == "lm_eval" else "inspect", "own/m", "task")
    assert "needs code of its own" in wrong(*words)
    assert titer(*words, TRUST).status == 0
    assert [type(lm.model).__name__ for lm in given] == ["OwnLlamaForCausalLM"]


@pytest.mark.long
def test_the_studies_on_real_models_pass_it_on_and_those_of_the_world_refuse_it(wrong: Callable[..., str], here: Path) -> None:
    (here / "sets").mkdir()
    for study in ("huang2024", "qi2024"):
        words = ("study", study, "--base", "own/m", "--data", "sets", "--dry-run")
        assert "needs code of its own" in wrong(*words)
        assert "the folder sets lacks" in wrong(*words, TRUST)
    for study in ("jain2024", "huang2024", "qi2024"):
        assert f"{TRUST} do not belong here" in wrong("study", study, TRUST, "--dry-run")


def test_a_judge_s_model_is_refused_all_the_same(wrong: Callable[..., str], own: Path) -> None:
    assert "needs code of its own" in wrong("evaluate", "m", *EVALUATE, TRUST, "--judge", "guard", "--judge-set", "model=own/m")
    assert not list(marked(own).iterdir())


@pytest.mark.long
def test_from_python(own: Path) -> None:
    with pytest.raises(TiterError, match="needs code of its own"):
        api.evaluate("own/m", data="d.csv", progress=False)
    found = api.evaluate("own/m", data="d.csv", prompts=4, max_new_tokens=2, progress=False, trust_remote_code=True)
    assert len(found.verdicts) == 8
    aligned = api.align("own/m", data="a.jsonl", steps=1, progress=False, trust_remote_code=True)
    tuned = api.finetune(str(aligned.model), data="t.jsonl", examples=4, epochs=1, progress=False, trust_remote_code=True)
    audited = api.audit(
        str(aligned.model), str(tuned.model), data="d.csv", max_new_tokens=2, control="own/m", progress=False, trust_remote_code=True
    )
    assert audited.page.exists()
