"""GPT-2 stores its weights as (inputs, outputs): every probe says of it what it says of the same model made of Linear layers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.models.families import gpt2
from tests.probes.made import drawn, lively, requests
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import LM
from titer.models.weights import changes_at, delta, skeleton
from titer.probes.delta_w import delta_w
from titer.probes.null_space import null_space
from titer.probes.placement import placement
from titer.probes.row_space import row_space
from titer.probes.weight_change import weight_change

KINDS = ("attn_o", "mlp_up", "mlp_down")


def of_linear(lm: LM) -> LM:
    """The same model with a Linear in the place of every Conv1D; the model itself is changed."""
    for name, module in list(lm.model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.nx, module.nf)
            with torch.no_grad():
                linear.weight.copy_(module.weight.T)
                linear.bias.copy_(module.bias)
            lm.model.set_submodule(name, linear)
    return LM(lm.model, lm.tokenizer, lm.label)


def turned(checkpoint: Checkpoint, folder: Path, names: set[str]) -> Checkpoint:
    """The checkpoint with these tensors stored as (outputs, inputs)."""
    folder.mkdir()
    tensors = load_file(checkpoint.path / "model.safetensors")
    save_file({n: t.T.contiguous() if n in names else t for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(checkpoint.config))
    return open_checkpoint(folder)


Pair = tuple[LM, Checkpoint, Checkpoint]


@pytest.fixture
def pairs(world: World, tmp_path: Path) -> tuple[Pair, Pair]:
    """(tuned model, base, tuned) of one GPT-2 as it is and made of Linear layers; every weight of a block has changed."""
    lm = lively(world, "gpt2")
    lm.save(tmp_path / "base")
    names = {f"{name}.weight" for name, module in lm.model.named_modules() if isinstance(module, Conv1D)}
    assert len(names) == 8
    with torch.no_grad():
        for i, name in enumerate(sorted(names)):
            weight = lm.model.get_parameter(name)
            weight += 0.1 * drawn(*weight.shape, seed=i)
    lm.save(tmp_path / "tuned")
    found = [open_checkpoint(tmp_path / name) for name in ("base", "tuned")]
    other = [turned(one, tmp_path / f"linear-{one.path.name}", names) for one in found]
    twin = lively(world, "gpt2")
    twin.model.load_state_dict(lm.model.state_dict())
    return (lm, *found), (of_linear(twin), *other)


def test_the_twins_compute_the_same(pairs: tuple[Pair, Pair]) -> None:
    ids = torch.tensor([[1, 9, 12, 3, 20, 21, 22, 4]])
    with torch.no_grad():
        one, two = (pair[0].model(input_ids=ids).logits for pair in pairs)
    torch.testing.assert_close(one, two)


def test_a_site_s_change_is_the_same_however_it_is_stored(pairs: tuple[Pair, Pair]) -> None:
    (conv, *found), (linear, *other) = pairs
    for site in [f"{kind}[{i}]" for kind in KINDS for i in range(2)]:
        assert conv.sites.tensor(site) == linear.sites.tensor(site)
        assert conv.sites.part(conv.sites.tensor(site)) == linear.sites.part(conv.sites.tensor(site)) != "other"
        for one, two in zip(changes_at(*found, conv.sites, site)[0], changes_at(*other, linear.sites, site)[0], strict=True):
            assert torch.equal(one, two)
        assert changes_at(*found, conv.sites, site)[0][1].any()
    stored = delta(*found, conv.sites.tensor("mlp_up[0]"))[1]
    assert torch.equal(skeleton(found[0]).weights("mlp_up[0]")[0].matrices(stored)[0], stored.T)


def same(one: pd.DataFrame, two: pd.DataFrame) -> None:
    assert len(one) > 1
    pd.testing.assert_frame_equal(one, two, rtol=1e-3, atol=1e-4)


def test_every_probe_of_weights_says_the_same(pairs: tuple[Pair, Pair], world: World) -> None:
    (conv, *found), (linear, *other) = pairs
    groups = [requests(world, kind) for kind in ("safe", "unsafe")]
    for one, two in zip(delta_w(*found, conv, *groups), delta_w(*other, linear, *groups), strict=True):
        same(one, two)
    sets = dict(zip(("safe", "unsafe"), groups, strict=True))
    same(row_space(*found, conv, sets), row_space(*other, linear, sets))
    same(null_space(*found, conv.sites), null_space(*other, linear.sites))
    soft = {kind: (examples, None) for kind, examples in sets.items()}
    same(placement(conv, soft, *found), placement(linear, soft, *other))
    same(weight_change(*found, conv.sites), weight_change(*other, linear.sites))


def test_an_adapter_on_every_layer_merges_back_into_the_stored_orientation(world: World) -> None:
    from peft import LoraConfig, get_peft_model

    lm = gpt2(world)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    made = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=True))
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_B" in name:
                p.normal_()
    after = made.merge_and_unload().state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        f"transformer.h.{i}.{name}.weight" for i in range(2) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
