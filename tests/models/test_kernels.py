"""What a folder says of the code that computes it (attention, experts), of other configurations and other weights: never followed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from tests.conftest import llama
from tests.models.families import PROMPTS, mixtral
from tests.models.own import own_llama, written
from tests.models.test_vllm import VLLM
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import LM, Architecture, Decoding, load
from titer.models.vllm_engine import Serving, open_fast, openable
from titer.models.weights import skeleton

IDS = [[1, 2, 3, 4]]
FLASH, HUB = "flash_attention_2", "kernels-community/flash-attn2"
SAID = [{key: value} for key in ("attn_implementation", "_attn_implementation") for value in (FLASH, HUB, "no such code", {"": HUB})]
Fetched = list[str]


@pytest.fixture(autouse=True)
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    """What transformers would fetch from the hub and import, were the package `kernels` installed."""
    asked: Fetched = []

    def fetch(name: str, *_: object, **__: object) -> None:
        asked.append(name)

    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda *_, **__: True)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetch)
    monkeypatch.setattr("transformers.integrations.hub_kernels.load_and_register_attn_kernel", fetch)
    return asked


def long(world: World) -> LM:
    """A window for which transformers, not Titer, picks the attention."""
    return Architecture(layers=2, width=16, heads=2, positions=512).build(world.tokenizer(), 0)


@pytest.mark.parametrize("said", SAID, ids=str)
@pytest.mark.parametrize("make", [llama, long])
def test_the_attention_that_a_folder_asks_for_is_set_aside(
    make: Callable[[World], LM], said: dict[str, object], world: World, tmp_path: Path, fetched: Fetched
) -> None:
    make(world).save(tmp_path / "m")
    plain = load(open_checkpoint(tmp_path / "m"))
    written(tmp_path / "m", **said)
    checkpoint = open_checkpoint(tmp_path / "m")
    found = load(checkpoint)
    assert found.model.config._attn_implementation == plain.model.config._attn_implementation
    assert torch.equal(found.logits(IDS)[0], plain.logits(IDS)[0])
    assert skeleton(checkpoint).names() == plain.sites.names()
    assert checkpoint.window == plain.window
    assert fetched == []


@pytest.mark.parametrize("key", ["experts_implementation", "_experts_implementation"])
def test_the_experts_too(key: str, world: World, tmp_path: Path) -> None:
    mixtral(world).save(tmp_path / "m")
    plain = load(open_checkpoint(tmp_path / "m"))
    written(tmp_path / "m", **{key: "sonicmoe"})  # transformers fetches its code when the first tokens go through
    found = load(open_checkpoint(tmp_path / "m"))
    assert found.model.config._experts_implementation == plain.model.config._experts_implementation
    assert torch.equal(found.logits(IDS)[0], plain.logits(IDS)[0])


def test_in_a_configuration_within_another(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    within = {"_attn_implementation": HUB, "experts_implementation": "sonicmoe"}
    written(folder, model_type="gemma3", _attn_implementation=HUB, text_config=within)
    assert AutoConfig.from_pretrained(folder).text_config._attn_implementation == HUB
    checkpoint = Checkpoint(path=folder)
    found = checkpoint.configuration
    for one in (found, found.text_config, found.vision_config):
        assert one._attn_implementation is one._experts_implementation is None
    assert checkpoint.picks_kernels


@pytest.mark.long
@pytest.mark.parametrize("said", SAID, ids=str)
def test_vllm_is_given_a_folder_that_does_not_say_it(said: dict[str, object], world: World, tmp_path: Path, fetched: Fetched) -> None:
    for place in ("m", "own"):
        made = own_llama(world, tmp_path / "own" / place) if place == "own" else tmp_path / place
        if place == "m":
            llama(world).save(made)
        plain = load(open_checkpoint(made, trusted=True)).generate(PROMPTS, Decoding(max_new_tokens=6))
        store = Store(tmp_path / "runs")
        assert openable(open_checkpoint(made, trusted=True), store).path == made  # every other model is itself
        written(made, **said)
        checkpoint = open_checkpoint(made, trusted=True)
        with pytest.raises(TiterError, match=r"chooses, in its config\.json, the code.*models\.vllm_engine\.openable"):
            open_fast(checkpoint, Serving(), VLLM)
        whole = openable(checkpoint, store, "float32")
        assert not whole.picks_kernels
        assert whole.runs_code == checkpoint.runs_code
        assert open_fast(whole, Serving(dtype="float32"), VLLM).generate(PROMPTS, Decoding(max_new_tokens=6)) == plain
    assert fetched == []


def test_a_skeleton_that_transformers_cannot_build_is_a_clear_error(world: World, tmp_path: Path) -> None:
    llama(world).save(tmp_path / "m")
    written(tmp_path / "m", hidden_act="no such function")
    with pytest.raises(TiterError, match="m does not open as a causal language model"):
        skeleton(open_checkpoint(tmp_path / "m"))


def test_a_configuration_that_sends_elsewhere_is_refused(world: World, tmp_path: Path) -> None:
    """Nothing has looked at the other file, and transformers would read it in this one's place."""
    llama(world).save(tmp_path / "m")
    shutil.copy(tmp_path / "m" / "config.json", tmp_path / "m" / "config.4.0.0.json")
    written(tmp_path / "m", "config.4.0.0.json", attn_implementation=HUB)
    written(tmp_path / "m", configuration_files=["config.4.0.0.json"])
    with pytest.raises(TiterError, match=r"sends transformers to another file \(configuration_files\)"):
        open_checkpoint(tmp_path / "m")


def test_weights_that_are_run_are_those_that_are_measured(world: World, tmp_path: Path) -> None:
    for seed, name in enumerate(("m", "other")):
        llama(world, seed).save(tmp_path / name)
    written(tmp_path / "m", transformers_weights="other.safetensors")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "m" / "other.safetensors")
    with pytest.raises(TiterError, match=r"names other\.safetensors as its weights, but Titer reads model\.safetensors"):
        open_checkpoint(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    checkpoint = open_checkpoint(tmp_path / "m")
    assert torch.equal(load(checkpoint).logits(IDS)[0], load(open_checkpoint(tmp_path / "other")).logits(IDS)[0])


@pytest.mark.parametrize("method", ["gptq", "fp8", "compressed-tensors"])
def test_a_quantisation_of_a_part_is_refused(method: str, world: World, tmp_path: Path) -> None:
    """transformers takes the text configuration's for the model's, and imports that method's package."""
    llama(world).save(tmp_path / "m")
    written(tmp_path / "m", text_config={"quantization_config": {"quant_method": method}})
    with pytest.raises(TiterError, match=r"quantised in a part of it \(text_config of config\.json\)"):
        open_checkpoint(tmp_path / "m")
