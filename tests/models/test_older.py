"""A saved folder says the same to transformers 4 and 5: the older names beside the new ones, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from tests.conftest import llama, neox
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, load
from titer.models.older import readable


def test_the_names_that_transformers_4_57_reads(world: World, tmp_path: Path) -> None:
    """Each was tried with transformers 4.57.6 and torch 2.13: the tokenizer opens, the logits are the same to the last digit shown."""
    neox(world).save(tmp_path / "neox")
    llama(world).save(tmp_path / "llama")
    found = {name: json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8")) for name in ("neox", "llama")}
    assert (found["neox"]["rotary_pct"], found["neox"]["rotary_emb_base"]) == (1.0, 10000.0)  # 4.57's own defaults are 0.25 and 10000
    assert found["llama"]["rope_theta"] == found["llama"]["rope_parameters"]["rope_theta"]
    assert "rope_scaling" not in found["llama"]
    said = json.loads((tmp_path / "neox" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"  # 4.57 knows no TokenizersBackend


@pytest.mark.parametrize("make", [neox, llama])
def test_transformers_5_reads_the_folder_as_its_own(make: type[LM], world: World, tmp_path: Path) -> None:
    lm = make(world)
    lm.tokenizer.add_special_tokens({"extra_special_tokens": ["<x>", "<y>"]})
    for name in ("own", "both"):
        lm.model.save_pretrained(tmp_path / name)
        lm.tokenizer.save_pretrained(tmp_path / name)
    readable(tmp_path / "both")
    own, both = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("own", "both"))
    assert {**own, "_name_or_path": ""} == {**both, "_name_or_path": ""}
    tokens = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("own", "both")]
    assert tokens[0].all_special_tokens == tokens[1].all_special_tokens
    assert tokens[0]("a <x> b").input_ids == tokens[1]("a <x> b").input_ids
    ids = torch.tensor([[1, 7, 8, 9]])
    logits = [load(open_checkpoint(tmp_path / name)).model(ids).logits for name in ("own", "both")]
    assert torch.equal(*logits)


def test_scaled_positions_are_told_whole_and_those_by_layer_are_left(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    yarn = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}
    for rope, older in ((yarn, {"rope_theta": 5e5, "rope_scaling": yarn}), ({"full_attention": yarn}, {}), (None, {})):
        config = {"model_type": "llama", "rope_parameters": rope}
        (tmp_path / "config.json").write_text(json.dumps(config))
        readable(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text()) == config | older
