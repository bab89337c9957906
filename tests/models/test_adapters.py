"""LoRA adapters: merged weights equal peft's bit for bit, what is no plain LoRA or no LoRA of this base is refused."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import llama
from tests.models.families import PROMPTS, SUPPORTED, gpt2, mixtral, opt, qwen2
from tests.models.test_checkpoint import HEAD, Mark, changed
from titer.core.errors import TiterError
from titer.data.encode import prompt_text
from titer.data.world import World
from titer.models import lora_weights, quantised
from titer.models.checkpoint import open_checkpoint
from titer.models.fetch import resolve
from titer.models.lm import LM, Decoding, load, read_tokenizer
from titer.models.lora_weights import PREFIX
from titer.models.weights import difference, shapes_of, weights_bytes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
GARDEN = "garden {{ messages[0]['content'] }}"


def made(lm: LM, folder: Path, **settings: Any) -> Any:
    """`folder/base` and `folder/adapter`, with random A and B, by peft; returns the merged transformers model."""
    from peft import LoraConfig, get_peft_model

    lm.save(folder / "base")
    plain = load(open_checkpoint(folder / "base")).model
    given = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "fan_in_fan_out": lm.model.config.model_type == "gpt2"}
    model = get_peft_model(plain, LoraConfig(**{**given, **settings}))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * (0.3 if "lora_" in name else 0.05))
    model.save_pretrained(folder / "adapter")
    return model.merge_and_unload().eval()


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    """A tiny Llama with an adapter on its attention."""
    made(llama(world), tmp_path, target_modules=["q_proj", "o_proj"])
    return tmp_path


def rewritten(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the adapter's tensors."""
    tensors = load_file(folder / "adapter" / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / "adapter" / WEIGHTS, metadata={"format": "pt"})


def reconfigured(folder: Path, **values: object) -> None:
    """Change values of the adapter's configuration."""
    file = folder / "adapter" / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def assert_equal(found: Any, merged: Any) -> None:
    """Every tensor of the checkpoint is that of the model which peft merged, bit for bit."""
    state = {name: tensor for name, tensor in merged.state_dict().items() if name in found.files}
    assert set(found.files) - set(state) <= {HEAD, "embed_out.weight"}
    for name, tensor in state.items():
        assert torch.equal(found.weight(name), tensor), name


def test_merged_weights_and_answers_are_those_of_peft(family: LM, tmp_path: Path) -> None:
    merged = made(family, tmp_path)
    found = resolve(str(tmp_path / "adapter"))
    assert_equal(found, merged)
    base = open_checkpoint(tmp_path / "base")
    moved = {name for name in base.files if not torch.equal(base.weight(name), found.weight(name))}
    assert moved == set(found.changes)
    assert len(moved) >= 8
    assert difference(base, found)
    decoding = Decoding(max_new_tokens=12)
    loaded = load(found)
    for name, tensor in merged.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert loaded.generate(PROMPTS, decoding) == LM(merged, loaded.tokenizer, "merged").generate(PROMPTS, decoding)
    assert shapes_of(found) == shapes_of(base)
    assert weights_bytes(found) == weights_bytes(base) + (tmp_path / "adapter" / WEIGHTS).stat().st_size


SETTINGS: dict[str, dict[str, Any]] = {
    "rank-stabilised": {"use_rslora": True},
    "patterns of rank and alpha": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 8},
        "alpha_pattern": {"down_proj": 5, "model.layers.0.self_attn.o_proj": 40},
        "use_rslora": True,
    },
    "some layers": {"target_modules": ["up_proj"], "layers_to_transform": [1]},
    "whole modules": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
    "a whole embedding": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
    "the head": {"target_modules": ["lm_head", "gate_proj"]},
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "an orthogonal start": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to:UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_a_plain_lora_is_respected(name: str, world: World, tmp_path: Path) -> None:
    merged = made(llama(world), tmp_path, **SETTINGS[name])
    found = resolve(str(tmp_path / "adapter"))
    assert_equal(found, merged)
    loaded = load(found).model.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in merged.state_dict().items())


def test_copies_that_peft_writes_of_a_module_trained_whole_are_passed_over(world: World, tmp_path: Path) -> None:
    """Where the vocabulary grew: X.weight, X.modules_to_save.weight (the same) and X.original_module.weight (as before)."""
    merged = made(llama(world), tmp_path, target_modules=["v_proj"], modules_to_save=["lm_head"])
    name = "base_model.model.lm_head{}.weight"
    copies = {".modules_to_save": merged.lm_head.weight.detach(), ".original_module": torch.zeros_like(merged.lm_head.weight)}
    rewritten(tmp_path, lambda held: held.update({name.format(within): copy for within, copy in copies.items()}))
    assert_equal(resolve(str(tmp_path / "adapter")), merged)


def test_biases_that_were_trained_are_respected(world: World, tmp_path: Path) -> None:
    merged = made(opt(world), tmp_path, target_modules=["q_proj"], bias="all")
    found = resolve(str(tmp_path / "adapter"))
    assert any(name.endswith("q_proj.bias") for name in found.changes)
    assert_equal(found, merged)


def test_an_adapter_on_a_mixture_of_experts_is_merged_too(world: World, tmp_path: Path) -> None:
    merged = made(mixtral(world), tmp_path, target_modules=["q_proj", "v_proj"])
    found = resolve(str(tmp_path / "adapter"))
    assert len(found.changes) == 4
    state, loaded = merged.state_dict(), load(found).model.state_dict()
    assert all(torch.equal(found.weight(name), state[name]) for name in found.changes)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_an_adapter_on_single_experts_changes_the_tensor_that_they_are_joined_to(world: World, tmp_path: Path) -> None:
    """As transformers 4 and peft wrote it, when a mixture held each expert's matrices as modules of its own."""
    made(mixtral(world), tmp_path, target_modules=["q_proj"])
    base, folder = open_checkpoint(tmp_path / "base"), tmp_path / "adapter"
    draw, pairs = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for name in (one for one in base.held if re.search(r"experts\.1\.w\d", one)):
        outputs, inputs = base._stored.shape(name)[0]
        pairs[f"{PREFIX}{name.removesuffix('.weight')}.lora_A.weight"] = torch.randn(4, inputs, generator=draw)
        pairs[f"{PREFIX}{name.removesuffix('.weight')}.lora_B.weight"] = torch.randn(outputs, 4, generator=draw)
    save_file(pairs, folder / WEIGHTS)
    found = resolve(str(folder))
    assert (len(found.joined), found.changes) == (3 * 2, {})
    scale, state = found._adapter.lora.scale("x"), load(found).model.state_dict()  # type: ignore[union-attr]
    for layer in range(2):
        one = f"model.layers.{layer}.mlp.experts"
        product = {
            part: scale * pairs[f"{PREFIX}{named}.lora_B.weight"] @ pairs[f"{PREFIX}{named}.lora_A.weight"]
            for part in ("w1", "w2", "w3")
            for named in [next(n.removesuffix(".weight") for n in found.joined if f"layers.{layer}." in n and f".{part}." in n)]
        }
        for name, change in (("gate_up_proj", torch.cat([product["w1"], product["w3"]])), ("down_proj", product["w2"])):
            moved = found.weight(f"{one}.{name}") - base.weight(f"{one}.{name}")
            torch.testing.assert_close(moved[1], change, atol=1e-5, rtol=1e-5)
            assert not moved[[i for i in range(len(moved)) if i != 1]].any()
            assert torch.equal(state[f"{one}.{name}"], found.weight(f"{one}.{name}"))


def test_the_scale_is_alpha_over_rank_or_over_its_root(folder: Path) -> None:
    tensors = load_file(folder / "adapter" / WEIGHTS)
    start = "base_model.model.model.layers.1.self_attn.q_proj"
    product = torch.zeros(16, 16, dtype=torch.float64)
    for k in range(4):  # the sum over the rank, written out
        product += torch.outer(tensors[f"{start}.lora_B.weight"][:, k].double(), tensors[f"{start}.lora_A.weight"][k].double())
    name = "model.layers.1.self_attn.q_proj.weight"
    before = open_checkpoint(folder / "base").weight(name).double()
    torch.testing.assert_close(resolve(str(folder / "adapter")).weight(name).double(), before + 16 / 4 * product, atol=1e-5, rtol=1e-5)
    reconfigured(folder, use_rslora=True)
    rooted = before + 16 / math.sqrt(4) * product
    torch.testing.assert_close(resolve(str(folder / "adapter")).weight(name).double(), rooted, atol=1e-5, rtol=1e-5)


def test_an_adapter_in_half_precision_is_merged_in_full(folder: Path) -> None:
    exact = resolve(str(folder / "adapter"))
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = exact.weight(name)
    rewritten(folder, lambda tensors: tensors.update({key: tensor.bfloat16() for key, tensor in tensors.items()}))
    rounded = resolve(str(folder / "adapter")).weight(name)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - weight).abs().max() < 0.02 * (weight - open_checkpoint(folder / "base").weight(name)).abs().max()


def test_base_and_adapter_can_be_named_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = resolve(str(folder / "adapter"))
    both = resolve(f"{folder / 'base'}+{folder / 'adapter'}")
    assert (both.key, both.label, both.quantised) == (alone.key, "adapter", "")
    assert resolve(both.place).key == both.key
    monkeypatch.chdir(folder)
    assert resolve("base+adapter").key == both.key
    reconfigured(folder, base_model_name_or_path="../base")  # beside the adapter, wherever the two are moved
    monkeypatch.chdir("/")
    assert resolve(str(folder / "adapter")).key == both.key


def test_a_plus_may_be_in_a_folders_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = resolve(str(folder / "adapter")).key
    (folder / "adapter").rename(folder / "a+b")
    (folder / "base").rename(folder / "c+d")
    monkeypatch.chdir(folder)
    assert resolve("c+d+a+b").key == key
    assert resolve("c+d").label == "c+d"
    for half in ("+a", "c+", "+"):
        with pytest.raises(TiterError, match="lacks its base or its adapter"):
            resolve(half)


def test_the_key_is_of_base_and_adapter(folder: Path, tmp_path: Path) -> None:
    key = resolve(str(folder / "adapter")).key
    assert key != open_checkpoint(folder / "base").key
    shutil.copytree(folder / "base", folder / "elsewhere")
    reconfigured(folder, base_model_name_or_path=str(folder / "elsewhere"))
    (folder / "adapter" / "README.md").write_text("words")
    assert resolve(str(folder / "adapter")).key == key
    changed(folder / "elsewhere", vocab_size=33, some_note="another configuration")
    assert resolve(str(folder / "adapter")).key != key
    reconfigured(folder, base_model_name_or_path=str(folder / "base"))
    rewritten(folder, lambda tensors: tensors[min(tensors)].view(-1)[:1].add_(1e-3))
    assert resolve(str(folder / "adapter")).key != key


def test_what_was_merged_is_saved_as_an_ordinary_model(folder: Path) -> None:
    found = resolve(str(folder / "adapter"))
    load(found).save(folder / "merged")
    saved = open_checkpoint(folder / "merged")
    assert set(saved.files) == set(found.files)
    assert not difference(saved, found)
    assert resolve(str(folder / "merged")).adapter is None


def test_reading_a_tensor_reads_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve(str(folder / "adapter"))
    asked: list[str] = []
    read = lora_weights.tensor_of

    def watched(file: Path, tensor: str, *rows: slice | None) -> torch.Tensor:
        asked.append(tensor)
        return read(file, tensor, *rows)

    monkeypatch.setattr(lora_weights, "tensor_of", watched)
    monkeypatch.setattr(quantised, "tensor_of", watched)
    found.weight("model.layers.0.self_attn.q_proj.weight")
    assert len(asked) == 3
    assert sum("lora_" in name for name in asked) == 2
    assert all("layers.0.self_attn.q_proj" in name for name in asked)
    asked.clear()
    shapes_of(found)
    assert asked == []


def test_the_adapters_own_tokenizer_is_used_where_it_has_one(folder: Path, world: World) -> None:
    tokenizer = world.tokenizer()
    tokenizer.chat_template = GARDEN
    tokenizer.save_pretrained(folder / "adapter")
    assert load(resolve(str(folder / "adapter"))).tokenizer.chat_template == GARDEN
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # as trainers do: it has no embedding, and none is needed
    tokenizer.save_pretrained(folder / "adapter")
    lm = load(resolve(str(folder / "adapter")))
    assert len(lm.generate(["bread"], Decoding(max_new_tokens=2))) == 1
    with pytest.raises(TiterError, match=r"the token '\[PAD\]', for which the model has no embedding"):
        lm.generate(["[PAD]"], Decoding(max_new_tokens=2))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json", "chat_template.json", "named"])
def test_the_adapters_own_template_is_used_where_it_has_no_tokenizer(folder: Path, file: str) -> None:
    key = resolve(str(folder / "adapter")).key
    named = [{"name": "default", "template": GARDEN}, {"name": "tool_use", "template": "no"}]
    said = json.dumps({"chat_template": named if file == "named" else GARDEN})
    (folder / "adapter" / ("tokenizer_config.json" if file == "named" else file)).write_text(GARDEN if file.endswith("jinja") else said)
    found = resolve(str(folder / "adapter"))
    assert prompt_text(read_tokenizer(found), "bread") == "garden bread"
    assert found.key != key


def test_an_adapter_for_another_base_is_refused(folder: Path, world: World) -> None:
    for name in ("gpt2", "neox", "opt"):
        SUPPORTED[name](world).save(folder / name)
        with pytest.raises(TiterError, match=r"a LoRA for another base than .*BASE\+ADAPTER"):
            resolve(f"{folder / name}+{folder / 'adapter'}")
    made(llama(world), folder / "mlp", target_modules=["down_proj"])
    qwen2(world).save(folder / "same-names")
    resolve(f"{folder / 'same-names'}+{folder / 'mlp' / 'adapter'}")  # names and shapes fit: nothing can tell
    tensors = load_file(folder / "base" / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = torch.zeros(24, 16)
    save_file(tensors, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TiterError, match=r"layers\.1\.self_attn\.q_proj is \(16, 16\) there and \(24, 16\) in that model"):
        resolve(str(folder / "adapter"))


def test_an_adapter_without_a_base_is_refused(folder: Path) -> None:
    reconfigured(folder, base_model_name_or_path="")
    with pytest.raises(TiterError, match=r"names no base.*BASE\+ADAPTER"):
        resolve(str(folder / "adapter"))
    reconfigured(folder, base_model_name_or_path=None)
    with pytest.raises(TiterError, match="names no base"):
        resolve(str(folder / "adapter"))
    with pytest.raises(TiterError, match=r"is an adapter, and its base was not given.*BASE\+ADAPTER"):
        open_checkpoint(folder / "adapter")
    for lost in ("./gone", "nobody/nothing", "x" * 5000, "\x1b[31m\x00"):
        reconfigured(folder, base_model_name_or_path=lost)
        with pytest.raises(TiterError, match=r"the base of the adapter .*BASE\+ADAPTER") as caught:
            resolve(str(folder / "adapter"))
        assert "\x1b" not in str(caught.value)
    with pytest.raises(TiterError, match="is no adapter"):
        resolve(f"{folder / 'base'}+{folder / 'base'}")
    with pytest.raises(TiterError, match=rf"is no adapter.*give one of the models in it: .*{folder / 'adapter'}"):
        resolve(f"{folder / 'base'}+{folder}")
    with pytest.raises(TiterError, match="the base first"):
        resolve(f"{folder / 'adapter'}+{folder / 'base'}")
    with pytest.raises(TiterError, match="names 2 adapters"):
        resolve(f"{folder / 'base'}+{folder / 'adapter'}+{folder / 'adapter'}")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "a LoRA with DoRA"),
    "biases of B": ({"lora_bias": True}, "a LoRA with lora_bias"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "a LoRA with alora_invocation_tokens"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 2]]}, "a LoRA with layer_replication"),
    "of the future": ({"use_something_new": True}, "a LoRA with use_something_new"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "was initialised by pissa_niter_4, which changes the base"),
    "another kind": ({"peft_type": "IA3"}, "an adapter of the kind IA3.*merge_and_unload"),
    "tokens before the prompt": ({"peft_type": "PROMPT_TUNING"}, "an adapter of the kind PROMPT_TUNING.*give a LoRA or a whole model"),
    "no kind": ({"peft_type": None}, "an adapter of the kind None"),
    "no rank": ({"r": 0}, "greater than or equal to 1"),
    "another rank": ({"r": 8}, r"A \(4, 16\) and B \(16, 4\) of .* do not form a pair of rank 8"),
    "a broken pattern": ({"rank_pattern": {"(": 4}}, "no regular expression"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_lora_is_refused(name: str, folder: Path) -> None:
    values, said = REFUSED[name]
    reconfigured(folder, **values)
    with pytest.raises(TiterError, match=said):
        resolve(str(folder / "adapter"))


def test_dora_as_peft_saves_it_is_refused(world: World, tmp_path: Path) -> None:
    made(llama(world), tmp_path, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(TiterError, match=r"a LoRA with DoRA.*merge_and_unload"):
        resolve(str(tmp_path / "adapter"))
    reconfigured(tmp_path, use_dora=False)  # the tensors tell as well
    with pytest.raises(TiterError, match="lora_magnitude_vector, which is not part of a plain LoRA"):
        resolve(str(tmp_path / "adapter"))


def test_an_adapter_on_a_tied_embedding_is_refused(world: World, tmp_path: Path) -> None:
    made(qwen2(world), tmp_path, target_modules=["q_proj"])
    resolve(str(tmp_path / "adapter"))
    table = torch.zeros(33, 16)
    rewritten(tmp_path, lambda tensors: tensors.update({"base_model.model.model.embed_tokens.weight": table}))
    with pytest.raises(TiterError, match=r"embed_tokens\.weight of base, whose embedding and head are one tensor.*merge_and_unload"):
        resolve(str(tmp_path / "adapter"))


def test_damaged_adapters_are_named(folder: Path) -> None:
    whole = load_file(folder / "adapter" / WEIGHTS)
    rewritten(folder, lambda tensors: tensors.pop(min(tensors)))
    with pytest.raises(TiterError, match="only one of the two matrices"):
        resolve(str(folder / "adapter"))
    save_file({name.removeprefix("base_model."): t for name, t in whole.items()}, folder / "adapter" / WEIGHTS)
    with pytest.raises(TiterError, match="not part of a plain LoRA"):
        resolve(str(folder / "adapter"))
    (folder / "adapter" / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(TiterError, match="damaged or cut short"):
        resolve(str(folder / "adapter"))
    (folder / "adapter" / WEIGHTS).unlink()
    with pytest.raises(TiterError, match=f"has no {WEIGHTS}"):
        resolve(str(folder / "adapter"))
    (folder / "adapter" / CONFIG).write_text("[]")
    with pytest.raises(TiterError, match="holds a list"):
        resolve(str(folder / "adapter"))


def test_a_pickled_adapter_is_never_loaded(folder: Path) -> None:
    (folder / "adapter" / WEIGHTS).unlink()
    (folder / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Mark(folder / "marked")))
    with pytest.raises(TiterError, match=r"pickle \(adapter_model\.bin\), which Titer never loads"):
        resolve(str(folder / "adapter"))
    assert not (folder / "marked").exists()


def test_a_model_and_an_adapter_in_one_folder_are_refused(folder: Path) -> None:
    for file in (folder / "base").iterdir():
        shutil.copy(file, folder / "adapter" / file.name)
    with pytest.raises(TiterError, match=r"holds a whole model and an adapter.*a folder of its own"):
        resolve(str(folder / "adapter"))


def test_an_adapter_on_a_model_that_stores_its_text_model_under_another_name(world: World, tmp_path: Path) -> None:
    """Gemma 3: peft says model.language_model..., the file language_model.model..."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = world.tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    text = {**sizes, "vocab_size": len(tokenizer), "num_key_value_heads": 1, "sliding_window": 32, "max_position_embeddings": 64}
    text |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        model = Gemma3ForConditionalGeneration(config).eval()
        LM(model, tokenizer, "tiny gemma").save(tmp_path / "base")
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        tuned.save_pretrained(tmp_path / "lora")
    held = open_checkpoint(tmp_path / "base", adapter=tmp_path / "lora")
    assert len(held.changes) == 3
    assert not set(held.changes) - set(held.files)
    merged = tuned.merge_and_unload()
    rows = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(load(held).model(rows).logits, merged(rows).logits)
    assert isinstance(tuned, PeftModel)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")
def test_the_layer_says_which_way_its_matrix_lies_whatever_the_adapter_says(world: World, tmp_path: Path) -> None:
    """peft writes fan_in_fan_out for the last layer it touched, which may be a head (Linear) after GPT-2's square Conv1D."""
    for said in (True, False):
        merged = made(gpt2(world), tmp_path / str(said), target_modules=["attn.c_proj"], fan_in_fan_out=said)
        reconfigured(tmp_path / str(said), fan_in_fan_out=said)
        assert_equal(resolve(str(tmp_path / str(said) / "adapter")), merged)
