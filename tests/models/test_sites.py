"""Sites are found by structure, and each is the place its name says, computed here by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional

from tests.methods.architectures import FAMILY
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models.blocks import sizes
from titer.models.hooks import reading
from titer.models.lm import LM
from titer.models.sites import Sites

ACTIVATION = {"opt": functional.relu, "gpt2": partial(functional.gelu, approximate="tanh")}
IDS = torch.tensor([[1, 9, 12, 3, 20, 21, 22, 4]])


def test_every_layer_and_site_is_found(family: LM) -> None:
    kinds = ("attn_out", "mlp_in", "mlp_act", "mlp_out", "resid")
    assert family.sites.layers == 2
    assert family.sites.names() == ["embed", *(f"{kind}[{i}]" for i in range(2) for kind in kinds)]


@torch.no_grad()
def test_mlp_act_is_the_input_of_the_down_projection_by_hand(family: LM) -> None:
    with reading(family.sites, family.sites.names()) as seen:
        family.model(input_ids=IDS)
    for i in range(family.sites.layers):
        linear = {kind: family.sites.linear(f"{kind}[{i}]") for kind in ("mlp_up", "mlp_down")}
        up = linear["mlp_up"](seen[f"mlp_in[{i}]"])
        if "mlp_gate" in family.sites.blocks[i].weights:
            expected = functional.silu(family.sites.linear(f"mlp_gate[{i}]")(seen[f"mlp_in[{i}]"])) * up
        else:
            expected = ACTIVATION.get(family.model.config.model_type, functional.gelu)(up)
        torch.testing.assert_close(seen[f"mlp_act[{i}]"], expected)
        torch.testing.assert_close(seen[f"mlp_out[{i}]"], linear["mlp_down"](expected))


@torch.no_grad()
def test_the_residual_stream_is_the_sum_of_what_the_sites_write(family: LM) -> None:
    with reading(family.sites, family.sites.names()) as seen:
        hidden = family.model(input_ids=IDS, output_hidden_states=True).hidden_states
    before = hidden[0]
    for i in range(family.sites.layers):
        torch.testing.assert_close(seen[f"resid[{i}]"], before + seen[f"attn_out[{i}]"] + seen[f"mlp_out[{i}]"])
        before = seen[f"resid[{i}]"]
    torch.testing.assert_close(hidden[1], seen["resid[0]"])


@torch.no_grad()
def test_the_embedding_and_the_mlp_input_by_hand(lm: LM) -> None:
    lm.model.eval()
    with reading(lm.sites, lm.sites.names()) as seen:
        lm.model(input_ids=IDS)
    torch.testing.assert_close(seen["embed"], lm.model.get_input_embeddings().weight[IDS])
    middle = seen["embed"] + seen["attn_out[0]"]
    torch.testing.assert_close(seen["mlp_in[0]"], lm.sites.blocks[0].whole.post_attention_layernorm(middle))


@torch.no_grad()
def test_weights_are_outputs_by_inputs_and_the_state_dict_s_tensors(family: LM) -> None:
    state = family.model.state_dict()
    wide = sizes(family.sites.linear("mlp_up[0]"))[0]
    assert wide > 16
    for site, shape in {"attn_o[1]": (16, 16), "mlp_up[1]": (wide, 16), "mlp_down[1]": (16, wide)}.items():
        name, linear = family.sites.tensor(site), family.sites.linear(site)
        assert state[name].data_ptr() == linear.weight.data_ptr()
        (weight,) = family.sites.weights(site)[0].matrices(state[name])
        assert weight.shape == shape == sizes(linear)
        x = torch.randn(3, shape[1])
        torch.testing.assert_close(linear(x), functional.linear(x, weight, linear.bias))


def has_gate(family: str) -> bool:
    return family in ("llama", "mistral", "qwen2", "gemma", "gemma2")


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_the_sites_of_eight_families_are_those_of_their_own_names(name: str, world: World) -> None:
    lm = FAMILY[name](world)
    lm.model.eval()
    endings = {
        "gpt2": ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        "neox": ("attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        "opt": ("self_attn.out_proj", "fc1", "fc2"),
    }.get(name, ("self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"))
    for i in range(2):
        for kind, ending in zip(("attn_o", "mlp_up", "mlp_down"), endings, strict=True):
            assert lm.sites.tensor(f"{kind}[{i}]").endswith(f".{i}.{ending}.weight")
    if has_gate(name):
        assert lm.sites.tensor("mlp_gate[1]").endswith(".1.mlp.gate_proj.weight")
    seen: list[torch.Tensor] = []
    attention = lm.model.get_submodule(lm.sites.tensor("attn_o[1]").rpartition(".")[0])
    handle = attention.register_forward_hook(lambda _, __, output: seen.append(output))
    with reading(lm.sites, ["attn_out[1]"]) as read:
        lm.model(input_ids=IDS)
    handle.remove()
    torch.testing.assert_close(read["attn_out[1]"], seen[0])


def test_sites_are_found_through_adapters(family: LM) -> None:
    from peft import LoraConfig, get_peft_model

    conv = family.model.config.model_type == "gpt2"
    made = get_peft_model(family.model, LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=conv))
    found = Sites(made)
    assert found.layers == 2
    assert [sizes(found.linear(f"{kind}[0]")) for kind in ("attn_o", "mlp_up")] == [(16, 16), sizes(found.linear("mlp_up[1]"))]
    assert found.weights("mlp_up[0]")[0].matrices(found.linear("mlp_up[0]").base_layer.weight)[0].shape == sizes(found.linear("mlp_up[0]"))


def test_the_gate_is_not_taken_for_the_up_projection(lm: LM) -> None:
    if lm.model.config.model_type == "llama":
        assert lm.sites.tensor("mlp_gate[0]") == "model.layers.0.mlp.gate_proj.weight"
        assert lm.sites.tensor("mlp_up[0]") == "model.layers.0.mlp.up_proj.weight"
    else:
        with pytest.raises(TiterError, match="not gated"):
            lm.sites.linear("mlp_gate[0]")


def test_a_model_without_blocks_has_no_layers_and_says_so() -> None:
    found = Sites(torch.nn.ModuleList([torch.nn.Linear(4, 4)]))
    assert found.layers == 0
    assert found.names() == ["embed"]
    assert found.part("0.weight") == "other"
    with pytest.raises(TiterError, match="no list of decoder blocks"):
        found.place("resid[0]")
    with pytest.raises(TiterError, match="no list of decoder blocks"):
        found.having("mlp_act")


def test_a_tensor_that_no_part_owns_is_an_error(family: LM) -> None:
    with pytest.raises(TiterError, match="belongs to no part"):
        family.sites.part("nowhere.weight")


def test_an_unknown_site_names_the_nearest(family: LM) -> None:
    with pytest.raises(TiterError, match=r"did you mean 'mlp_act'"):
        family.sites.place("mlp_akt[0]")


def test_a_layer_beyond_the_last_is_refused(family: LM) -> None:
    with pytest.raises(TiterError, match="2 layers"):
        family.sites.place("resid[2]")
    with pytest.raises(TiterError, match="2 layers"):
        family.sites.linear("mlp_up[7]")
