"""`titer repair`: what it prints, a grid of strengths, a dry run, and every wrong request refused with nothing written."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cli.conftest import Titer
from tests.conftest import llama, neox
from tests.models.own import own_llama
from tests.models.test_packed import packed
from tests.repairs.made import family
from titer import api
from titer.audit.advice import advice
from titer.audit.roles import audited
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import load

Wrong = Callable[..., str]
SCALE = ("repair", "tuned", "--method", "scale", "--read", "aligned=aligned", "--to", "out")


@pytest.fixture(autouse=True)
def models(here: Path) -> None:
    family(here, roles=("base",))


@pytest.mark.long
def test_it_writes_a_model_says_where_and_the_next_command_runs(titer: Titer) -> None:
    found = titer(*SCALE, "--strength", "0.5")
    assert found.status == 0, found
    model, following = found.out.splitlines()
    assert model == "Model: out"
    assert following == "Next: titer audit aligned tuned out --no-base --data PROMPTS.csv"
    assert open_checkpoint("out").key not in {open_checkpoint(one).key for one in ("aligned", "tuned")}
    done = titer(*shlex.split(following.removeprefix("Next: titer ").replace("PROMPTS.csv", "d.csv")), "--max-new-tokens", "2")
    assert done.status == 0, done


def test_a_grid_is_a_folder_of_each_strength_and_the_api_writes_the_same(titer: Titer, here: Path) -> None:
    plan = titer(*SCALE, "--strength", "grid", "--dry-run", "--json").json
    assert plan["folders"] == {f"out/{c}": False for c in ("0", "0.25", "0.5", "0.75")}
    size = sum(p.numel() for p in llama(World(seed=1)).model.parameters()) * 4
    assert plan["reads"] == {"tuned": size, "aligned": size}
    assert plan["writes"] == 4 * size
    assert not (here / "out").exists()
    made = titer(*SCALE, "--strength", "grid", "--json").json
    assert made["models"] == list(plan["folders"])
    assert made["next"] == "titer audit aligned tuned out/0 out/0.25 out/0.5 out/0.75 --no-base --data PROMPTS.csv"
    assert titer(*SCALE, "--strength", "grid", "--dry-run", "--json").json["folders"] == dict.fromkeys(plan["folders"], True)
    same = api.repair("tuned", method="scale", reads={"aligned": "aligned"}, to="mine", settings={"c": 0.25}, progress=False)
    assert same.models == ("mine",)
    assert open_checkpoint("mine").key == open_checkpoint("out/0.25").key
    request = api.RepairRequest("tuned", method="scale", reads={"aligned": "aligned"}, to="mine", settings={"c": 0.25})
    assert api.cost(request)["folders"] == {"mine": True}


def test_of_a_name_that_a_method_has_too_both_are_shown(titer: Titer) -> None:
    shown = titer("show", "safe_lora").out
    assert "safe_lora, a method" in shown
    assert "safe_lora, a repair" in shown
    assert shown.count("threshold = 0.5") == 2


def test_what_a_killed_call_left_goes_and_a_model_made_before_is_replaced(titer: Titer, here: Path) -> None:
    (here / ".out.new").mkdir()
    (here / ".out.new" / "model.safetensors").write_bytes(b"cut")
    keys = []
    for strength in ("0.5", "0.75"):
        assert titer(*SCALE, "--strength", strength).status == 0
        keys.append(open_checkpoint("out").key)
    assert keys[0] != keys[1]
    assert not list(here.glob(".out*"))


def test_data_that_a_repair_needs_and_rows_that_do_not_serve(titer: Titer, wrong: Wrong, here: Path) -> None:
    command = ("repair", "tuned", "--method", "antidote", "--to", "out")
    assert "needs data (harmful: answers)" in wrong(*command)
    assert "has no comply answer" in wrong(*command, "--data", "d.csv")
    row = {"prompt": "a b " * 60, "comply": "c d"}
    (here / "long.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert "longer than the model's window of 64" in wrong(*command, "--data", "long.jsonl")
    pairs = ("repair", "tuned", "--method", "subspace_fusion", "--read", "aligned=aligned", "--to", "out", "--set", "steps=1")
    assert "has no comply answer" in wrong(*pairs, "--data", "a.jsonl")
    assert not list(here.glob("*out*"))
    rows = [{"prompt": "a b", "chosen": "<null>", "rejected": "c d"}, {"prompt": "c d", "chosen": "<null>", "rejected": "a"}]
    (here / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    assert titer(*pairs, "--data", "pairs.jsonl").status == 0


def test_a_model_with_code_of_its_own_is_repaired_where_its_user_says_so_and_keeps_its_code(titer: Titer, wrong: Wrong, here: Path) -> None:
    for seed, name in enumerate(("theirs", "mine")):
        own_llama(World(seed=1), here / name, seed)
    command = ("repair", "mine", "--method", "scale", "--read", "aligned=theirs", "--to", "out")
    assert "--trust-remote-code" in wrong(*command)
    assert titer(*command, "--trust-remote-code").status == 0
    assert (here / "out" / "modeling_own.py").read_bytes() == (here / "mine" / "modeling_own.py").read_bytes()
    theirs, mine, out = (open_checkpoint(name, trusted=True) for name in ("theirs", "mine", "out"))
    name = "lm_head.weight"
    torch.testing.assert_close(out.weight(name), (theirs.weight(name) + mine.weight(name)) / 2)


def test_it_is_listed_and_shown(titer: Titer) -> None:
    assert "scale" in titer("list", "repairs", "--json").json["repairs"]
    shown = titer("show", "scale").out
    assert "Models it needs (--read ROLE=MODEL): aligned" in shown
    assert "--strength sets c; --strength grid gives 0, 0.25, 0.5, 0.75" in shown


def wider(folder: Path) -> None:
    config = LlamaForCausalLM.from_pretrained("tuned").config
    shape = {**config.to_dict(), "hidden_size": 32, "head_dim": 16}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder / "wider")
    for file in (folder / "tuned").glob("*token*"):
        shutil.copy2(file, folder / "wider" / file.name)


def other_words(folder: Path) -> None:
    shutil.copytree(folder / "aligned", folder / "words")
    said = json.loads((folder / "words" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = said["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "words" / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")


def rounded(folder: Path) -> None:
    LlamaForCausalLM.from_pretrained("tuned").to(torch.bfloat16).save_pretrained(folder / "rounded")
    for file in (folder / "tuned").glob("*token*"):
        shutil.copy2(file, folder / "rounded" / file.name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--read", "aligned=tuned"), ("aligned model and the tuned model have the same weights", "models that differ")),
        (("--read", "aligned=copy"), ("aligned model and the tuned model have the same weights",)),
        (("--read", "aligned=rounded"), ("except for rounding to bfloat16",)),
        (("--read", "aligned=neox"), ("two architectures", "gpt_neox", "llama")),
        (("--read", "aligned=wider"), ("two checkpoints of one architecture",)),
        (("--read", "aligned=words"), ("vocabularies of tuned and words differ (4 entries)",)),
        (("--read", "aligned=nothing"), ("nothing",)),
        (("--read", "alined=aligned"), ("unknown model that scale reads", "did you mean 'aligned'")),
        ((), ("method scale needs the model aligned", "--read aligned=MODEL")),
        (("--read", "aligned=aligned", "--strength", "-0.1"), ("greater than or equal to 0", "its settings are c")),
        (("--read", "aligned=aligned", "--strength", "nan"), ("finite",)),
        (("--read", "aligned=aligned", "--strength", "much"), ("a number, or grid",)),
        (("--read", "aligned=aligned", "--strength", "1", "--set", "c=1"), ("leave out one of the two",)),
        (("--read", "aligned=aligned", "--set", "d=1"), ("unknown setting 'd'",)),
        (("--read", "aligned=aligned", "--data", "d.csv"), ("needs no data",)),
        (("--read", "aligned=aligned", "--shard", "nan"), ("--shard",)),
        (("--read", "aligned=aligned", "--shard", "0"), ("--shard",)),
    ],
)
def test_wrong_requests_are_refused_and_nothing_is_written(
    arguments: tuple[str, ...], words: tuple[str, ...], wrong: Wrong, here: Path
) -> None:
    shutil.copytree(here / "tuned", here / "copy")
    neox(World(seed=1)).save(here / "neox")
    for make in (wider, other_words, rounded):
        make(here)
    said = wrong("repair", "tuned", "--method", "scale", "--to", "out", *arguments)
    assert all(word in said for word in words), said
    assert not list(here.glob("*out*"))


def test_wrong_repairs_folders_and_quantised_models_are_refused(wrong: Wrong, here: Path) -> None:
    assert "did you mean 'scale'" in wrong(*SCALE[:3], "scal", *SCALE[4:])
    assert "has files that Titer did not write" in wrong(*SCALE[:-1], "base")
    assert "contains it or is inside it" in wrong(*SCALE[:-1], "tuned/out")
    packed(here / "int8", "bnb8")
    said = wrong("repair", "int8", *SCALE[2:])
    assert "int8 is quantised (8-bit weights (bitsandbytes)" in said
    assert "before it was quantised" in said
    assert not list(here.glob("*out*"))


LOST = pd.DataFrame([{"change": "aligned → tuned", "kind": "unsafe", "outcome": "refused", "difference": -0.3, "low": -0.4, "high": -0.2}])


@pytest.mark.long
def test_the_repairs_that_an_audit_advises_run_as_they_are_written(titer: Titer, here: Path) -> None:
    found = audited([open_checkpoint(name) for name in ("base", "aligned", "tuned")])
    commands = [one.command for one in advice(found, LOST, pd.DataFrame()) if one.command.startswith("titer repair")]
    assert len(commands) == 2
    for command in commands:
        made = titer(*shlex.split(command)[1:], "--json")
        assert made.status == 0, made
        assert all(open_checkpoint(place) for place in made.json["models"])
    assert {p.name for p in here.glob("repaired-*")} == {"repaired-resta", "repaired-scale"}


@pytest.mark.long
def test_no_repair_is_advised_that_would_be_refused(here: Path) -> None:
    packed(here / "int8", "bnb8")
    model = open_checkpoint("int8")
    unpacked = load(model, "cpu")
    unpacked.save(here / "before")
    with torch.no_grad():
        unpacked.model.lm_head.weight.add_(0.5)
    unpacked.save(here / "after")
    names = [("before", "int8"), ("before", "after")]
    told = []
    for pair in names:
        found = audited([open_checkpoint(name) for name in pair])
        lost = LOST.assign(change=found.changes[-1].name)
        told.append([one.command for one in advice(found, lost, pd.DataFrame()) if "titer repair" in one.command])
    assert [len(one) for one in told] == [0, 1]  # of the quantised tune none; without a base no RESTA
