"""Sites are found by structure, and each is the place its name says, computed here by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.models.families import gpt2, mixtral
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models.hooks import reading
from titer.models.lm import LM

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
        if family.sites.blocks[i].mlp_gate is not None:
            expected = functional.silu(family.sites.linear(f"mlp_gate[{i}]")(seen[f"mlp_in[{i}]"])) * up
        else:
            expected = functional.relu(up) if family.model.config.model_type == "opt" else functional.gelu(up)
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


def test_weights_have_the_shapes_and_the_names_of_the_state_dict(family: LM) -> None:
    state = family.model.state_dict()
    wide = family.sites.linear("mlp_up[0]").out_features
    for site, shape in {"attn_o[1]": (16, 16), "mlp_up[1]": (wide, 16), "mlp_down[1]": (16, wide)}.items():
        name = family.sites.tensor(site)
        assert state[name].shape == shape
        assert state[name].data_ptr() == family.sites.linear(site).weight.data_ptr()


def test_the_gate_is_not_taken_for_the_up_projection(lm: LM) -> None:
    if lm.model.config.model_type == "llama":
        assert lm.sites.tensor("mlp_gate[0]") == "model.layers.0.mlp.gate_proj.weight"
        assert lm.sites.tensor("mlp_up[0]") == "model.layers.0.mlp.up_proj.weight"
    else:
        with pytest.raises(TiterError, match="not gated"):
            lm.sites.linear("mlp_gate[0]")


@pytest.mark.parametrize("build", [gpt2, mixtral])
def test_a_model_that_is_not_supported_is_a_clear_error(build, world: World) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TiterError) as caught:
        _ = build(world).sites
    assert "not supported yet" in str(caught.value)


def test_an_unknown_site_names_the_nearest(family: LM) -> None:
    with pytest.raises(TiterError, match=r"did you mean 'mlp_act'"):
        family.sites.place("mlp_akt[0]")


def test_a_layer_beyond_the_last_is_refused(family: LM) -> None:
    with pytest.raises(TiterError, match="2 layers"):
        family.sites.place("resid[2]")
    with pytest.raises(TiterError, match="2 layers"):
        family.sites.linear("mlp_up[7]")
