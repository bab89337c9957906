"""Whether two models are the same is whether they compute the same: weights as used, configurations, rounding, numbers that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.conftest import llama
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.compatible import asked_apart, comparable, configured_apart, parameters_apart, unused_tensors
from titer.models.lm import LM, load, read_tokenizer
from titer.models.weights import DIFFER, difference

GATED = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    lm = llama(world)
    lm.model.config.tie_word_embeddings = True
    lm.model.tie_weights()
    lm.save(tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    return tmp_path / "m"


def other(folder: Path, name: str = "n") -> Path:
    shutil.copytree(folder, folder.with_name(name))
    return folder.with_name(name)


def written(folder: Path, changes: dict[str, torch.Tensor], **config: object) -> Checkpoint:
    """The folder with tensors put in and fields of its configuration changed."""
    held = load_file(folder / "model.safetensors")
    save_file({**held, **changes}, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))
    return open_checkpoint(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own_beside_a_tied_one_is_a_difference_and_an_equal_one_is_none(folder: Path, tied: bool) -> None:
    base, head = open_checkpoint(folder), load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    same = written(other(folder), {"lm_head.weight": head.clone()}, tie_word_embeddings=tied)
    assert difference(base, same) == difference(same, base) == ""
    moved = written(other(folder, "o"), {"lm_head.weight": head + 0.1}, tie_word_embeddings=tied)
    assert difference(base, moved) == difference(moved, base) == DIFFER
    comparable(base, moved)
    assert asked_apart(base, moved) == configured_apart(base, moved) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("attention_bias", True), ("rms_norm_eps", 0.1), ("hidden_act", "gelu"), ("max_position_embeddings", 32), ("mlp_bias", True)],
)
def test_a_field_that_computes_is_named(folder: Path, field: str, value: object) -> None:
    first, second = open_checkpoint(folder), written(other(folder), {}, **{field: value})
    assert [line.partition(":")[0] for line in configured_apart(first, second)] == [field]


def test_the_rotary_base_within_its_parameters_is_named(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())["rope_parameters"]
    second = written(other(folder), {}, rope_parameters={**said, "rope_theta": 500.0})
    assert configured_apart(open_checkpoint(folder), second) == ["rope_parameters.rope_theta: 10000.0, 500.0"]


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("one", "other_", "apart"),
    [
        ({}, {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 1.0}}, []),
        ({}, {"layer_types": ["full_attention"] * 2, "sliding_window_pattern": 6, "hidden_activation": "gelu"}, []),
        ({"rope_parameters": YARN}, {"rope_parameters": {**YARN, "beta_fast": 32, "beta_slow": 1, "truncate": True}}, []),
        ({"rope_parameters": YARN}, {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {**YARN, "type": "yarn"}}, []),
        ({"rope_parameters": YARN}, {"rope_parameters": {**YARN, "factor": 8.0}}, ["rope_parameters.factor: 4.0, 8.0"]),
    ],
)
def test_one_configuration_in_two_dresses_is_no_difference(
    folder: Path, one: dict[str, object], other_: dict[str, object], apart: list[str]
) -> None:
    """As transformers 4 and 5, and copies on the hub, write it: old keys, defaults named, fields that replace each other."""
    first, second = written(other(folder), {}, **one), written(other(folder, "o"), {}, **other_)
    assert configured_apart(first, second) == apart


def test_a_copy_of_another_release_names_what_makes_the_kinds_of_layers(world: World, tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(vocab_size=len(world.tokenizer()), **GATED, head_dim=16, num_hidden_layers=2, sliding_window=16)
    LM(transformers.Gemma3ForCausalLM(config), world.tokenizer(), "g").save(tmp_path / "g")
    said = json.loads((tmp_path / "g" / "config.json").read_text())
    del said["rope_parameters"], said["layer_types"]
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 6, "hidden_act": "gelu"}
    (other(tmp_path / "g", "h") / "config.json").write_text(json.dumps({**said, **old}))
    assert configured_apart(open_checkpoint(tmp_path / "g"), open_checkpoint(tmp_path / "h")) == []


def test_fields_that_compute_nothing_are_passed_over(folder: Path) -> None:
    second = written(
        other(folder),
        {},
        dtype="bfloat16",
        transformers_version="9",
        architectures=["X"],
        use_cache=False,
        attention_dropout=0.5,
        eos_token_id=2,
        is_llama_config=True,  # as SmolLM2's has it, and no copy that another program wrote
        rope_interleaved=False,
        **{"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}},
    )
    assert configured_apart(open_checkpoint(folder), second) == []


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_copy_in_a_coarser_type_is_told_as_rounding_and_a_change_beside_it_is_a_change(folder: Path, kind: torch.dtype) -> None:
    base, held = open_checkpoint(folder), load_file(folder / "model.safetensors")
    copy = written(other(folder), {name: tensor.to(kind) for name, tensor in held.items()})
    assert difference(base, copy) == difference(copy, base) == str(kind).removeprefix("torch.")
    moved = {**held, "model.layers.0.mlp.up_proj.weight": held["model.layers.0.mlp.up_proj.weight"] * 1.05}
    assert difference(base, written(other(folder, "o"), {name: tensor.to(kind) for name, tensor in moved.items()})) == DIFFER
    small = {**held, "model.layers.0.mlp.up_proj.weight": held["model.layers.0.mlp.up_proj.weight"] * 1.001}
    assert difference(base, written(other(folder, "p"), small)) == DIFFER  # stored in one type, so nothing was rounded


def test_rounding_is_told_by_the_values_whatever_types_they_are_stored_in(folder: Path) -> None:
    """A model of today is stored in bfloat16: its float16 copy loses what is small there, a rounded copy may be float32 again."""
    name, held = "model.layers.0.mlp.up_proj.weight", load_file(folder / "model.safetensors")
    coarse = {name: (tensor * 1e-3).bfloat16() for name, tensor in held.items()}
    base, half = written(other(folder), coarse), written(other(folder, "h"), {n: tensor.half() for n, tensor in coarse.items()})
    assert difference(base, half) == difference(half, base) == "float16"
    back = written(other(folder, "b"), {n: tensor.bfloat16().float() for n, tensor in held.items()})
    assert difference(open_checkpoint(folder), back) == "bfloat16"
    twice = {n: (tensor * 1e-3).half().bfloat16() for n, tensor in held.items()}  # by way of float16, as older tools convert
    exact = written(other(folder, "e"), {n: tensor * 1e-3 for n, tensor in held.items()})
    assert difference(exact, written(other(folder, "w"), twice)) == "float16 and then to bfloat16"
    last = coarse[name].clone()
    last[0, 0] = last[0, 0].float() * (1 + torch.finfo(torch.bfloat16).eps)  # the next number that the type holds: a step, no rounding
    assert difference(base, written(other(folder, "s"), {**coarse, name: last})) == DIFFER
    assert difference(base, written(other(folder, "t"), {n: t.half() for n, t in {**coarse, name: last * 2}.items()})) == DIFFER


def test_fields_that_nothing_reads_are_no_difference(folder: Path) -> None:
    second = written(other(folder), {}, trained_by="me", logit_scale=2.0, lab={"our_run": "me"})
    assert configured_apart(open_checkpoint(folder), second) == []


def test_biases_of_one_alone_are_told_and_layers_of_one_alone_refused(folder: Path) -> None:
    more = {f"model.layers.{i}.self_attn.q_proj.bias": torch.ones(16) for i in range(2)}
    first, second = open_checkpoint(folder), written(other(folder), more)
    assert unused_tensors("n", second) == [f"n: 2 tensors in its files are not used by the model ({', '.join(more)})"]
    comparable(first, second)
    names = [f"model.layers.{i}.self_attn.{p}_proj.bias" for i in range(2) for p in "qkvo"]
    widths = {name: torch.ones(8 if name[-10] in "kv" else 16) for name in names}
    third = written(other(folder, "o"), widths, attention_bias=True)
    comparable(first, third)
    assert "8 parameters are in only one of the two models" in parameters_apart("a → b", first, third)[0]
    with pytest.raises(TiterError, match="has 2 layers, n1 1"):
        comparable(first, written(other(folder, "n1"), {}, num_hidden_layers=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_numbers_that_are_none_is_refused_by_name(folder: Path, value: float) -> None:
    held = load_file(folder / "model.safetensors")["model.norm.weight"]
    held[3] = value
    with pytest.raises(TiterError, match=r"model\.norm\.weight of m holds numbers that are not finite"):
        load(written(folder, {"model.norm.weight": held}), "cpu")


def test_what_differs_in_how_two_are_asked_is_named(folder: Path) -> None:
    first, there = open_checkpoint(folder), other(folder)
    assert asked_apart(first, open_checkpoint(there)) == []
    lm: LM = load(first, "cpu")
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    lm.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=9)  # a training leaves this in tokenizer.json
    lm.tokenizer.save_pretrained(there)
    assert '"padding": null' not in (there / "tokenizer.json").read_text()
    assert asked_apart(first, open_checkpoint(there)) == []
    written = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    lm.tokenizer.chat_template = written
    lm.tokenizer.save_pretrained(there)
    second = open_checkpoint(there)
    assert asked_apart(first, second) == ["chat template"]
    for same in (f"{written}{{% if tools %}}tools{{% endif %}}", {"default": written, "tool_use": "other"}):  # nobody asks with tools
        lm.tokenizer.chat_template = same
        lm.tokenizer.save_pretrained(there.with_name("tools"))
        shutil.copy(folder / "config.json", there.with_name("tools"))
        shutil.copy(folder / "model.safetensors", there.with_name("tools"))
        assert asked_apart(second, open_checkpoint(there.with_name("tools"))) == []


def test_a_further_token_that_ends_an_answer_is_a_difference(folder: Path) -> None:
    base, there = open_checkpoint(folder), other(folder)
    usual = read_tokenizer(base).eos_token_id
    told = {}
    for name, ids in (("usual", usual), ("further", [usual, 7]), ("none of its", [usual, 10**20])):
        (there / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        told[name] = configured_apart(base, open_checkpoint(there))
    assert told["usual"] == told["none of its"] == []
    assert told["further"][0].startswith("further tokens that end an answer (eos_token_id): none; ")


def test_a_model_that_fills_gaps_is_refused(folder: Path) -> None:
    with pytest.raises(TiterError, match="is a BertForMaskedLM, which fills gaps in a text"):
        load(written(folder, {}, architectures=["BertForMaskedLM"]), "cpu")
