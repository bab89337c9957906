"""Every repair found: what it declares, neutral restores bit for bit, streaming equals the edit in memory, an ordinary folder comes out."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.repairs.made import MAKERS, family, mixtral, order, run
from titer.commands.repair import planned, repaired
from titer.core.errors import TiterError
from titer.core.parallel import Silent
from titer.core.plugins import describe, names, plugin
from titer.core.run import Store
from titer.models import edited
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.edited import floating
from titer.models.fetch import resolve
from titer.models.weights import blocks
from titer.repairs.base import TUNED, Others, Reading, Repair

NAMES = sorted(names("repairs"))
KINDS: dict[str, type[Repair]] = {name: plugin("repairs", name, Repair) for name in NAMES}  # type: ignore[type-abstract]
NEUTRAL = [name for name, kind in KINDS.items() if not isinstance(kind.NEUTRAL, str)]


def chosen(name: str) -> dict[str, Any]:
    """The default; of a repair that picks its places by a threshold every place, of one that trains a few steps, without a sharp edge."""
    said: dict[str, Any] = {"threshold": 1.0, "steps": 3, "export": "soft"}
    return {setting: value for setting, value in said.items() if setting in KINDS[name].model_fields}


EVERY = pytest.mark.parametrize("name", NAMES)


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.weight(name) for name in checkpoint.files}


def same(one: Checkpoint, other: Checkpoint) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@EVERY
def test_what_it_declares(name: str) -> None:
    kind = KINDS[name]
    made = kind()
    assert kind.SOURCE
    assert kind.VERSION >= 1
    assert kind.__doc__
    assert set(kind.MAY_BE_TUNED) <= set(kind.MODELS)
    assert kind.ADAPTER in ("", *kind.MODELS)
    assert kind.HOLDS >= 0
    assert all(info.description for info in kind.model_fields.values())
    if isinstance(kind.NEUTRAL, str):
        assert len(kind.NEUTRAL) > 20
    else:
        assert kind(**kind.NEUTRAL) != made
    if kind.STRENGTH is not None:
        setting, grid = kind.STRENGTH
        assert len({kind(**{setting: value}) for value in grid}) == len(grid) > 1
    shown = describe("repairs", name)
    assert all(f"  {field} = " in shown for field in kind.model_fields)
    assert all(role in shown for role in kind.MODELS)
    assert (f"Memory: {kind.HOLDS} x the model" in shown) == (kind.HOLDS > 0)


@pytest.mark.parametrize("kind", ["whole", "shards", "bfloat16", "adapter"])
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_gives_the_tuned_model_bit_for_bit(name: str, kind: str, tmp_path: Path) -> None:
    for maker in MAKERS if kind == "whole" else ["llama"]:
        folder = tmp_path / maker
        models = family(folder, MAKERS[maker], KINDS[name].MODELS, kind)
        plan, (found,) = run(order(name, folder, models, settings=dict(KINDS[name].NEUTRAL)))
        assert same(found, plan.tuned), maker
        if kind == "bfloat16":
            assert {found.shape(one)[1] for one in found.files} == {"BF16"}


@pytest.mark.long
@EVERY
def test_a_default_repair_is_the_edit_in_memory_and_opens_in_transformers(name: str, tmp_path: Path) -> None:
    for maker in MAKERS:
        folder = tmp_path / maker
        plan, (found,) = run(order(name, folder, family(folder, MAKERS[maker], KINDS[name].MODELS), settings=chosen(name)))
        (repair,) = plan.repairs.values()
        whole = {role: weights(one) for role, one in plan.models.items()}
        with torch.no_grad():
            state = repair.prepare(Reading(plan.models, plan.data))
        names = floating(plan.tuned)
        wanted = {n: repair.edited(n, whole[TUNED][n], {r: whole[r].get(n) for r in whole if r != TUNED}, state) for n in names}  # type: ignore[misc]
        mine = weights(found)
        assert mine.keys() == wanted.keys() == whole[TUNED].keys(), maker  # a tied head is not stored, and stays tied
        assert all(torch.equal(mine[n], wanted[n]) for n in wanted), maker
        assert not all(torch.equal(mine[n], whole[TUNED][n]) for n in mine), f"{maker}: the default changes nothing"
        plain, before = (AutoModelForCausalLM.from_pretrained(place) for place in (found.path, plan.tuned.path))
        tokens = AutoTokenizer.from_pretrained(found.path)("a b c d", return_tensors="pt").input_ids
        before.load_state_dict(wanted, strict=False)
        before.tie_weights()
        with torch.no_grad():
            assert torch.equal(plain(tokens).logits, before(tokens).logits), maker
        assert plain.config.tie_word_embeddings == before.config.tie_word_embeddings


@EVERY
def test_shards_and_one_file_hold_the_same(name: str, tmp_path: Path) -> None:
    asked = order(name, tmp_path, family(tmp_path, roles=KINDS[name].MODELS), settings=chosen(name))
    _, (one,) = run(asked)
    _, (many,) = run(replace(asked, to=tmp_path / "shards", shard=6e-6))
    assert len(set(many.files.values())) > 3
    assert same(one, many)
    assert (
        AutoModelForCausalLM.from_pretrained(many.path).num_parameters() == AutoModelForCausalLM.from_pretrained(one.path).num_parameters()
    )


@pytest.mark.parametrize("maker", MAKERS)
@EVERY
def test_edited_by_rows_it_is_the_same(name: str, maker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = family(tmp_path, MAKERS[maker], KINDS[name].MODELS)
    asked = order(name, tmp_path, models, settings=chosen(name))
    _, (whole,) = run(asked)
    monkeypatch.setattr("titer.models.weights.BLOCK", 40)
    _, (rows,) = run(replace(asked, to=tmp_path / "rows"))
    assert same(whole, rows)


@pytest.mark.parametrize("kind", ["whole", "bfloat16", "adapter"])
def test_rows_of_a_parameter_are_those_of_the_whole(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titer.models.weights.BLOCK", 40)
    for maker in MAKERS:
        model = resolve(family(tmp_path / maker, MAKERS[maker], kind=kind if maker == "llama" else "whole")[TUNED])
        for name in model.files:
            assert torch.equal(model.weight(name, slice(1, 3)), model.weight(name)[1:3])
            assert torch.equal(torch.cat([model.weight(name, rows) for rows in blocks([model], name)]), model.weight(name))


@pytest.mark.long
@EVERY
def test_an_adapter_stays_one_where_it_can_and_is_merged_where_not(name: str, tmp_path: Path) -> None:
    for maker in ("llama", "gpt2"):
        folder = tmp_path / maker
        models = family(folder, MAKERS[maker], KINDS[name].MODELS, "adapter")
        plan, (found,) = run(order(name, folder, models, settings=chosen(name)))
        assert plan.adapter == bool(KINDS[name].ADAPTER)
        assert (found.adapter is not None) == plan.adapter
        assert plan.adapter != any("the adapter is merged" in note for note in plan.notes)
        whole = folder / "merged"  # the same model, its adapter merged before
        edited.write_edited(plan.tuned, plan.tuned.weight, whole)
        _, (merged,) = run(order(name, folder, {**models, TUNED: str(whole)}, to=folder / "other", settings=chosen(name)))
        for n in merged.files:
            torch.testing.assert_close(found.weight(n), merged.weight(n), rtol=1e-4, atol=1e-5)


@EVERY
def test_no_more_is_in_memory_than_a_few_parameters(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter that is read is counted as long as it lives; a loaded model is the repair's own, and not counted here."""
    plan = planned(order(name, tmp_path, family(tmp_path, roles=KINDS[name].MODELS), shard=1e-6, settings=chosen(name)))
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    peak, read = 0, Checkpoint.weight

    def counted(self: Checkpoint, parameter: str, rows: slice | None = None) -> torch.Tensor:
        nonlocal peak
        found = read(self, parameter, rows)
        alive.add(found)
        peak = max(peak, sum(one.numel() for one in alive))
        return found

    monkeypatch.setattr(Checkpoint, "weight", counted)
    repaired(plan, Store(tmp_path / "runs"), Silent())
    sizes = [read(plan.tuned, n).numel() for n in plan.tuned.files]
    assert 0 < peak <= max(sizes) * (len(plan.models) + 1) < sum(sizes) * len(plan.models)


@EVERY
def test_numbers_that_are_not_finite_are_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    models = family(tmp_path, roles=KINDS[name].MODELS)
    file = Path(models[TUNED]) / "model.safetensors"
    from safetensors.torch import load_file, save_file

    held = load_file(file)
    held["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(TiterError, match="not finite") as raised:
        run(order(name, tmp_path, models, settings=chosen(name)))
    assert raised.value.status == 2
    assert not list(tmp_path.glob("*out*"))


@EVERY
def test_the_same_command_finds_what_stands_and_its_record_names_no_place(name: str, tmp_path: Path) -> None:
    asked = order(name, tmp_path, family(tmp_path, roles=KINDS[name].MODELS), settings=chosen(name))
    plan, (found,) = run(asked)
    stamp = (found.path / "model.safetensors").stat().st_mtime_ns
    assert planned(asked).cost()["folders"] == {str(tmp_path / "out"): True}
    run(asked)
    assert (found.path / "model.safetensors").stat().st_mtime_ns == stamp
    text = (found.path / ".titer.json").read_text(encoding="utf-8")
    said = json.loads(text)["repair"]
    assert said["name"] == name
    assert {role: one["key"] for role, one in said["models"].items()} == {role: one.key for role, one in plan.models.items()}
    assert str(tmp_path) not in text
    assert open_checkpoint(found.path).key != plan.tuned.key


def test_experts_in_one_tensor_are_written_as_the_model_holds_them(tmp_path: Path) -> None:
    models = family(tmp_path, mixtral)
    _, (found,) = run(order("scale", tmp_path, models, settings={"c": 1.0}))
    tuned, repaired = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (models[TUNED], found.path))
    assert tuned.keys() == repaired.keys()
    assert all(torch.equal(tuned[n], repaired[n]) for n in tuned)
    assert any(p.ndim == 3 for p in tuned.values())


def test_what_is_not_written_is_told_and_a_model_without_its_weights_is_refused(tmp_path: Path) -> None:
    """Drafting heads are no part of what a model computes; torch.compile's names are nobody's."""
    models = family(tmp_path)
    file = Path(models[TUNED]) / "model.safetensors"
    held = load_file(file)
    save_file({**held, "mtp.0.weight": torch.ones(2)}, file, metadata={"format": "pt"})
    assert planned(order("scale", tmp_path, models)).notes == [
        "tuned: 1 tensors in its files are not used by the model (mtp.0.weight); the repaired model is written without them"
    ]
    for role in ("aligned", TUNED):
        save_file(
            {f"_orig_mod.{name}": one for name, one in held.items()}, Path(models[role]) / "model.safetensors", metadata={"format": "pt"}
        )
    with pytest.raises(TiterError, match=r"the weights of \w+ are not those its config.json asks for"):
        planned(order("scale", tmp_path, models))


def test_others_read_a_parameter_when_it_is_asked_for(tmp_path: Path) -> None:
    models = family(tmp_path)
    aligned = open_checkpoint(models["aligned"])
    others = Others({"aligned": aligned}, "lm_head.weight")
    assert torch.equal(others["aligned"], aligned.weight("lm_head.weight"))
    assert not list(others)
