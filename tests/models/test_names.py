"""Files as people have them, and the parameters they hold: whatever a tensor is called, what is measured is what runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.conftest import llama
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint
from titer.models.compatible import comparable, configured_apart, parameters_apart
from titer.models.lm import load
from titer.models.weights import DIFFER, blend, difference, skeleton
from titer.probes.weight_change import overall, weight_change

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 1}
EXPERTS = {**GATED, "head_dim": 16, "moe_intermediate_size": 16}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 8},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]], "max_position_embeddings": 64},
    "falcon": SMALL,
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2},
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "llama": GATED,
    "phi3": GATED,
    "mixtral": {**GATED, "num_local_experts": 4},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
}


def model(family: str, world: World) -> Any:
    ids = {"vocab_size": len(world.tokenizer()), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    config = transformers.CONFIG_MAPPING[family](**ids, **FAMILIES[family])
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def gemma3(world: World) -> Any:
    ids = {"vocab_size": len(world.tokenizer()), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    text = {**ids, **GATED, "num_hidden_layers": 2, "head_dim": 16, "max_position_embeddings": 64, "sliding_window": 32}
    config = transformers.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4)
    torch.manual_seed(0)
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def made(family: str, world: World) -> Any:
    return gemma3(world) if family == "gemma3" else model(family, world)


def put(one: Any, world: World, folder: Path, **how: Any) -> Path:
    one.save_pretrained(folder, **how)
    world.tokenizer().save_pretrained(folder)
    return folder


def renamed(folder: Path, to: Path, how: Callable[[str], str]) -> Path:
    """A copy whose file calls its tensors otherwise ("": it leaves one out)."""
    shutil.copytree(folder, to)
    held = load_file(folder / "model.safetensors")
    save_file({how(name): tensor for name, tensor in held.items() if how(name)}, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
def test_every_parameter_is_read_as_the_model_that_runs_holds_it(family: str, world: World, tmp_path: Path) -> None:
    one = made(family, world)
    checkpoint = open_checkpoint(put(one, world, tmp_path / "m", max_shard_size="20KB"))
    state = load(checkpoint, "cpu").model.state_dict()
    held = {*checkpoint.files, *checkpoint.names.tied}
    assert held == set(state)
    for name in held:
        found = checkpoint.weight(name)
        assert torch.equal(found, state[name])
        assert checkpoint.shape(name)[0] == tuple(found.shape)
    assert not checkpoint.names.unused


@pytest.mark.parametrize(
    ("family", "prefix"), [("gpt2", "transformer."), ("bloom", "transformer."), ("llama", "model."), ("opt", "model.")]
)
def test_a_file_of_the_bare_model_is_the_same_model(family: str, prefix: str, world: World, tmp_path: Path) -> None:
    whole = put(model(family, world), world, tmp_path / "whole")
    bare = renamed(whole, tmp_path / "bare", lambda name: name.removeprefix(prefix))
    one, other = open_checkpoint(whole), open_checkpoint(bare)
    assert set(one.files) == set(other.files)
    assert all(torch.equal(one.weight(name), other.weight(name)) for name in one.files)


@pytest.mark.long
def test_a_change_of_the_mlp_is_found_in_the_mlp(world: World, tmp_path: Path) -> None:
    """As hub files of GPT-2 and Gemma 3 have it: their names are not the model's."""
    for family in ("gpt2", "bloom", "gemma3", "qwen3_moe"):
        one = made(family, world)
        base = put(one, world, tmp_path / f"{family}-base")
        layers = [name for name, _ in one.named_parameters() if ".mlp." in name and "vision" not in name and "router" not in name]
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if name in layers:
                    parameter.add_(0.2 * parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        tuned = put(one, world, tmp_path / f"{family}-tuned")
        if family in ("gpt2", "bloom"):
            tuned = renamed(tuned, tmp_path / f"{family}-bare", lambda name: name.removeprefix("transformer."))
        first, second = open_checkpoint(base), open_checkpoint(tuned)
        table = weight_change(first, second, skeleton(first))
        assert overall(table, "mlp") == pytest.approx(0.2, abs=0.02), family
        assert overall(table, "attention") == overall(table, "other") == 0, family


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_beside_the_embedding_is_the_one_that_runs(tied: bool, world: World, tmp_path: Path) -> None:
    """A head of its own in a file whose configuration calls it tied, or not: transformers runs the stored one, and so is it measured."""
    folder = put(model("llama", world), world, tmp_path / "m")
    held = load_file(folder / "model.safetensors")
    held["lm_head.weight"] = held["model.embed_tokens.weight"] + 1
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = transformers.AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = tied
    config.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    assert torch.equal(checkpoint.weight("lm_head.weight"), load(checkpoint, "cpu").model.lm_head.weight)
    assert torch.equal(checkpoint.weight("lm_head.weight"), held["lm_head.weight"])


def test_what_the_architecture_does_not_use_is_told_and_old_masks_are_not(world: World, tmp_path: Path) -> None:
    folder = put(model("gpt2", world), world, tmp_path / "m")
    held = load_file(folder / "model.safetensors")
    more = {"transformer.h.0.attn.masked_bias": torch.zeros(1), "transformer.h.0.attn.extra.weight": torch.zeros(2, 2)}
    save_file({**held, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_checkpoint(folder).names.unused == ("transformer.h.0.attn.extra.weight",)
    for family, within in (("gptj", "attn"), ("gpt_neo", "attn.attention"), ("codegen", "attn")):
        folder = put(model(family, world), world, tmp_path / family)
        masks = {f"transformer.h.{i}.{within}.{kind}": torch.ones(1) for i in range(2) for kind in ("bias", "masked_bias", "causal_mask")}
        save_file({**load_file(folder / "model.safetensors"), **masks}, folder / "model.safetensors", metadata={"format": "pt"})
        assert open_checkpoint(folder).names.unused == ()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3_moe", "gemma3"])
def test_a_blend_opens_and_is_the_blend(family: str, world: World, tmp_path: Path) -> None:
    one = made(family, world)
    base = open_checkpoint(put(one, world, tmp_path / "a"))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1)
    tuned = open_checkpoint(put(one, world, tmp_path / "b"))
    blend(base, tuned, 0.5, tmp_path / "c")
    state = load(open_checkpoint(tmp_path / "c"), "cpu").model.state_dict()
    for name in base.files:
        torch.testing.assert_close(state[name], torch.lerp(base.weight(name), tuned.weight(name), 0.5))


def test_experts_that_are_cut_short_are_one_sentence(world: World, tmp_path: Path) -> None:
    whole = put(model("qwen3_moe", world), world, tmp_path / "m")
    names = load_file(whole / "model.safetensors")
    assert any("experts.3." in name for name in names)  # experts stand apart in the file, or this test says nothing
    cut = renamed(whole, tmp_path / "cut", lambda name: "" if "experts.3.up_proj" in name else name)
    for reads in (lambda: load(open_checkpoint(cut), "cpu"), lambda: open_checkpoint(cut).files):
        with pytest.raises(TiterError, match="cannot be joined to"):
            reads()


def test_a_wrapper_is_compared_with_its_text_model_alone(world: World, tmp_path: Path) -> None:
    """As a tune of the text model, or its GGUF file, stands beside the vision-language model that its maker published."""
    whole = gemma3(world)
    text = transformers.Gemma3ForCausalLM(whole.config.text_config).eval()
    text.model.load_state_dict(whole.model.language_model.state_dict())
    wrapper, alone = put(whole, world, tmp_path / "whole"), put(text, world, tmp_path / "text")
    for first, second in ((wrapper, alone), (alone, wrapper)):
        one, other = open_checkpoint(first), open_checkpoint(second)
        comparable(one, other)
        assert difference(one, other) == ""
        assert configured_apart(one, other) == []
        assert "in only one of the two models (model.multi_modal_projector" in parameters_apart("n", one, other)[0]
    with torch.no_grad():
        for layer in text.model.layers:
            layer.mlp.up_proj.weight.mul_(1.5)
    tuned = open_checkpoint(put(text, world, tmp_path / "tuned"))
    for sites in (skeleton(open_checkpoint(wrapper)), skeleton(tuned)):
        table = weight_change(open_checkpoint(wrapper), tuned, sites)
        moved = table[table.norm > 0]
        assert list(moved.tensor) == [f"model.language_model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
        assert set(moved.part) == {"mlp"}
        assert moved.relative_norm.to_list() == pytest.approx([0.5, 0.5])
    other = put(model("llama", world), world, tmp_path / "llama")
    with pytest.raises(TiterError, match="two architectures"):
        comparable(open_checkpoint(wrapper), open_checkpoint(other))


AUDIO = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_mel_bins": 8}


@pytest.mark.parametrize("family", ["llava", "smolvlm", "voxtral"])
def test_a_wrapper_that_opens_as_text_beside_pictures_or_sound_is_its_text_model(world: World, tmp_path: Path, family: str) -> None:
    """SmolVLM calls the text model within otherwise (text_model): of every parameter but the head the two once had none in common."""
    ids = {"vocab_size": len(world.tokenizer()), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    parts = {"text_config": {**GATED, **ids, "model_type": "llama"}, "vision_config": {**VISION, "model_type": "clip_vision_model"}}
    parts |= {"smolvlm": {"vision_config": VISION}, "voxtral": {"audio_config": AUDIO}}.get(family, {})
    torch.manual_seed(0)
    whole = transformers.AutoModelForMultimodalLM.from_config(transformers.CONFIG_MAPPING[family](**parts)).float().eval()
    text = transformers.LlamaForCausalLM(whole.config.text_config).eval()
    text.model.load_state_dict((whole.model.text_model if family == "smolvlm" else whole.model.language_model).state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    wrapper, alone = put(whole, world, tmp_path / "whole"), put(text, world, tmp_path / "text")
    rows = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        found = load(open_checkpoint(wrapper), "cpu").model(rows).logits
        assert torch.equal(found, text(rows).logits)
        text.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    tuned = put(text, world, tmp_path / "tuned")
    for first, second in ((wrapper, alone), (alone, wrapper)):
        one, other = open_checkpoint(first), open_checkpoint(second)
        comparable(one, other)
        assert difference(one, other) == ""
        assert difference(open_checkpoint(first), open_checkpoint(tuned)) == DIFFER
    table = weight_change(open_checkpoint(wrapper), open_checkpoint(tuned), skeleton(open_checkpoint(tuned)))
    assert table[table.norm > 0].part.to_list() == ["mlp"]


@pytest.mark.parametrize("family", ["t5", "whisper"])
def test_an_encoder_beside_the_decoder_is_refused(family: str, world: World, tmp_path: Path) -> None:
    """transformers opens Whisper's decoder alone, which answers nothing without its encoder."""
    config = transformers.CONFIG_MAPPING[family](d_model=16, **{"num_layers": 1} if family == "t5" else {"decoder_layers": 1})
    put(transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=8, **GATED)), world, tmp_path / "m")
    config.save_pretrained(tmp_path / "m")
    with pytest.raises(TiterError, match=rf"{family} has an encoder that reads the prompt"):
        load(open_checkpoint(tmp_path / "m"), "cpu")


def test_models_that_share_hardly_a_name_are_not_compared(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(gemma3(world), world, tmp_path / "whole")
    text = transformers.Gemma3ForCausalLM(gemma3(world).config.text_config).eval()
    alone = put(text, world, tmp_path / "text")
    monkeypatch.setattr("titer.models.names.WITHIN", ())  # as of a wrapper that calls it in a way of its own
    with pytest.raises(TiterError, match="by different names"):
        comparable(open_checkpoint(folder), open_checkpoint(alone))


def test_a_model_that_reads_what_comes_later_is_refused(world: World, tmp_path: Path) -> None:
    folder = put(model("llama", world), world, tmp_path / "m")
    gemma = transformers.GemmaConfig(vocab_size=len(world.tokenizer()), head_dim=16, use_bidirectional_attention=True, **GATED)
    put(transformers.GemmaForCausalLM(gemma).eval(), world, tmp_path / "g")
    assert load(open_checkpoint(folder), "cpu")
    with pytest.raises(TiterError, match="use_bidirectional_attention"):
        load(open_checkpoint(tmp_path / "g"), "cpu")


def test_models_of_equal_configurations_share_an_outline_and_no_others_do(world: World, tmp_path: Path) -> None:
    for name in ("one", "same", "other"):
        llama(world).save(tmp_path / name)
    said = json.loads((tmp_path / "other" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "other" / "config.json").write_text(json.dumps(said | {"rms_norm_eps": 1e-3}), encoding="utf-8")
    one, same, other = (open_checkpoint(tmp_path / name).outline for name in ("one", "same", "other"))
    assert one is same
    assert other.config.rms_norm_eps == 1e-3
    assert one.config.rms_norm_eps != 1e-3
