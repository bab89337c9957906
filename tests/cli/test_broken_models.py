"""MODEL that is none, or that is damaged: status 2, a clear message, nothing unpickled, nothing run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Titer

Wrong = Callable[..., str]
COMMANDS = (("evaluate", "--max-new-tokens", "3"), ("audit",))


class Mark:
    """Unpickling this creates a file: a stand-in for code hidden in a pickle."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (self.place,)


def message(wrong: Wrong, model: str) -> str:
    """What every command that takes a model says to this one; the same words each time."""
    said = {wrong(command, model, "--data", "d.csv", *more) for command, *more in COMMANDS}
    said.add(wrong("align", model, "--data", "a.jsonl"))
    assert len(said) == 1
    return said.pop()


def test_a_folder_that_is_no_model(wrong: Wrong, here: Path) -> None:
    (here / "empty").mkdir()
    assert "empty is no model" in message(wrong, "empty")
    assert "config.json, a tokenizer and *.safetensors" in message(wrong, "empty")
    assert "d.csv is no model" in message(wrong, "d.csv")
    assert "no model at './nowhere'" in message(wrong, "./nowhere")
    assert "did you mean 'm'?" in message(wrong, "./mm")


def test_a_model_with_a_pickle_only_is_never_unpickled(wrong: Wrong, here: Path) -> None:
    (here / "m" / "model.safetensors").unlink()
    (here / "m" / "pytorch_model.bin").write_bytes(pickle.dumps(Mark(here / "marked")))
    said = message(wrong, "m")
    assert "holds its weights only as a pickle (pytorch_model.bin), which Titer never loads" in said
    assert "safetensors" in said
    assert not (here / "marked").exists()


@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_a_cut_safetensors_file(wrong: Wrong, here: Path, kept: int) -> None:
    file = here / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    said = message(wrong, "m")
    assert "model.safetensors in m is damaged or cut short" in said
    assert "fetch or build it again" in said


def test_names_behind_a_wrapper_s_prefix_and_a_classifier_are_told(wrong: Wrong, here: Path) -> None:
    file, config = here / "m" / "model.safetensors", here / "m" / "config.json"
    held = load_file(file)
    save_file({f"module.{name}": tensor for name, tensor in held.items()}, file, {"format": "pt"})
    assert "begin with 'module.'" in wrong("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "2")
    config.write_text(config.read_text(encoding="utf-8").replace("ForCausalLM", "ForSequenceClassification"), encoding="utf-8")
    save_file({name: tensor for name, tensor in held.items() if "lm_head" not in name and "embed_out" not in name}, file, {"format": "pt"})
    assert "no head that writes text" in wrong("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "2")


@pytest.mark.parametrize("content", ["", '{"model_type": ', "[]", "null"])
def test_a_damaged_configuration(wrong: Wrong, here: Path, content: str) -> None:
    (here / "m" / "config.json").write_text(content, encoding="utf-8")
    assert "m/config.json" in message(wrong, "m").replace("\\", "/")


@pytest.mark.long
@pytest.mark.parametrize("values", [{"model_type": "nonsense"}, {"hidden_size": "big"}, {"hidden_size": 24}, {"num_hidden_layers": 5}])
def test_a_configuration_that_does_not_fit(wrong: Wrong, here: Path, values: dict[str, object]) -> None:
    file = here / "m" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    for command, *more in COMMANDS:
        said = wrong(command, "m", "--data", "d.csv", *more)
        assert "does not open as a causal language model" in said or "are not those its config.json asks for" in said
    assert not (here / "runs").exists() or not list((here / "runs").rglob("DONE"))


def test_a_model_without_a_tokenizer(wrong: Wrong, here: Path) -> None:
    for file in (here / "m").glob("tokenizer*"):
        file.unlink()
    assert "m has no tokenizer" in message(wrong, "m")


def test_a_model_that_has_not_been_fetched(wrong: Wrong) -> None:
    said = message(wrong, "smollm2-135m")
    assert "smollm2-135m has not been fetched" in said
    assert "titer models get smollm2-135m" in said


def test_a_hub_id_without_a_network(wrong: Wrong) -> None:
    said = message(wrong, "nobody/nothing")
    assert "nobody/nothing is neither a folder nor reachable on the hub" in said
    assert "check the name and the network, or give a folder" in said


@pytest.mark.long
def test_what_a_mixture_has_no_place_for_is_named_and_the_rest_is_told(titer: Titer, here: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    from titer.data.world import World
    from titer.models.lm import LM

    tokenizer = World(seed=1).tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    LM(MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), num_local_experts=2, **sizes)), tokenizer, "experts").save(here / "x")
    told = titer("audit", "x", "--data", "d.csv")
    assert told.status == 0, told
    assert "x refuses" in told.out
    assert "separation inside of x is left out: this model has no mlp_act (every layer: routed experts have no single place" in told.err


def test_two_architectures_in_one_audit(wrong: Wrong, here: Path) -> None:
    from tests.conftest import neox
    from titer.data.world import World

    neox(World(seed=1)).save(here / "neox")
    assert "Expected: two checkpoints of one architecture" in wrong("audit", "m", "neox", "--data", "d.csv")


@pytest.mark.long
def test_tensors_that_a_model_makes_no_use_of_are_told_where_it_is_asked(titer: Titer, here: Path) -> None:
    """A configuration of fewer layers than were trained opens and answers, as another model."""
    file = here / "m" / "model.safetensors"
    save_file({**load_file(file), "gpt_neox.layers.9.attention.dense.bias": torch.zeros(2)}, file, metadata={"format": "pt"})
    found = titer("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "2")
    assert "1 tensors in its files are not used by the model (gpt_neox.layers.9.attention.dense.bias)" in found.out
