"""Sites where layers differ or an MLP is no pair of matrices: mixtures of experts, fused projections, hybrids, wrappers of text models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.models.tiny import tiny
from titer.core.errors import TiterError
from titer.models.blocks import PARTS
from titer.models.hooks import reading
from titer.models.sites import Sites

IDS = torch.tensor([[1, 9, 12, 3, 20, 21, 22, 4]])
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
SHARED = {"n_routed_experts": 3, "n_shared_experts": 1, "first_k_dense_replace": 1}
MIXTURES: dict[str, dict[str, Any]] = {  # of every way that transformers stores experts
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {"moe_intermediate_size": 12, "num_experts": 3, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
    "glm4_moe": {"moe_intermediate_size": 12, "num_experts_per_tok": 2, "head_dim": 8, **SHARED},
    "gpt_oss": {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8, "intermediate_size": 16},  # square: the class tells
    "llama4_text": {"num_local_experts": 3, "intermediate_size_mlp": 24, "head_dim": 8, "interleave_moe_layer_step": 2},
}


def model(name: str, **more: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CONFIG_MAPPING[name](**{**SMALL, **more})
        config._attn_implementation = config._experts_implementation = "eager"
        return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize("name", MIXTURES)
def test_every_expert_s_matrix_is_a_matrix_of_the_site(name: str) -> None:
    made = model(name, **MIXTURES[name])
    sites, sparse = Sites(made), [m for _, m in made.named_modules() if type(m).__name__.endswith("Experts")]
    assert sites.layers == 3
    assert len(sparse) == sites.lacks("mlp_act") >= 1
    assert "routed experts" in sites.lacking["mlp_act"]
    state = made.state_dict()
    numbers = [i for i in range(3) if "mlp_act" in sites.blocks[i].lacking]
    for i, experts in zip(numbers, sparse, strict=True):
        up, gate, down = (sites.weights(f"{kind}[{i}]") for kind in ("mlp_up", "mlp_gate", "mlp_down"))
        routed = [weights[0].matrices(state[weights[0].tensor]) for weights in (gate, up, down)]
        assert [len(found) for found in routed] == [3, 3, 3]
        turned = experts.gate_up_proj.shape[1] == 16 and name != "mixtral"
        fused = experts.gate_up_proj.transpose(1, 2) if turned else experts.gate_up_proj
        halves = (fused[:, ::2], fused[:, 1::2]) if name == "gpt_oss" else fused.chunk(2, dim=1)
        for found, expected in zip(routed, (*halves, experts.down_proj.transpose(1, 2) if turned else experts.down_proj), strict=True):
            assert torch.equal(torch.stack(found), expected)
        shared = 2 if name in ("glm4_moe", "llama4_text") else 1
        assert len(up) == len(gate) == len(down) == shared


@torch.no_grad()
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_s_places_are_its_whole_mlp(name: str) -> None:
    made = model(name, **MIXTURES[name])
    sites = Sites(made)
    with reading(sites, sites.names()) as seen:
        hidden = made(input_ids=IDS, output_hidden_states=True).hidden_states
    before = hidden[0]
    for i in range(3):
        torch.testing.assert_close(seen[f"resid[{i}]"], before + seen[f"attn_out[{i}]"] + seen[f"mlp_out[{i}]"])
        before = seen[f"resid[{i}]"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["phi3", "glm", "glm4"])
def test_a_fused_gate_and_up_are_halves_of_one_tensor(name: str) -> None:
    made = model(name, head_dim=8, **({"sliding_window": None} if name == "phi3" else {}))
    sites, state = Sites(made), made.state_dict()
    assert not sites.lacking
    with reading(sites, sites.names()) as seen:
        made(input_ids=IDS)
    for i in range(3):
        fused = [sites.weights(f"{kind}[{i}]")[0] for kind in ("mlp_gate", "mlp_up")]
        (gate,), (up,) = (weight.matrices(state[weight.tensor]) for weight in fused)
        x = seen[f"mlp_in[{i}]"]
        torch.testing.assert_close(seen[f"mlp_act[{i}]"], functional.silu(x @ gate.T) * (x @ up.T))
        assert sites.tensor(f"attn_o[{i}]").endswith("self_attn.o_proj.weight")
    with pytest.raises(TiterError, match="part of"):
        sites.linear("mlp_up[0]")


def test_layers_may_differ_and_every_parameter_has_its_part() -> None:
    hybrid = {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 4}
    sites = Sites(model("lfm2", **hybrid))
    assert sites.having("attn_out") == [1]
    assert sites.having("mlp_act") == [0, 1, 2]
    assert sites.lacking["attn_out"].startswith("layers 1, 3: no attention (Lfm2ShortConv")
    assert sites.names("attn_out") == ["attn_out[1]"]
    parts = {name: sites.part(name) for name, _ in sites.model.named_parameters()}
    assert set(parts.values()) == {"mixer", "attention", "mlp", "other"} <= set(PARTS)
    assert parts["model.layers.0.conv.in_proj.weight"] == "mixer"
    with pytest.raises(TiterError, match=r"no attn_out\[0\]: no attention"):
        sites.place("attn_out[0]")
    with pytest.raises(TiterError, match="in every layer"):
        sites.everywhere("attn_out")


def test_a_model_of_mixers_alone_has_its_stream() -> None:
    sites = Sites(model("mamba", state_size=4))
    assert sites.names() == ["embed", "resid[0]", "resid[1]", "resid[2]"]
    assert sites.part("backbone.layers.1.mixer.in_proj.weight") == "mixer"


def test_a_wrapper_s_blocks_are_its_text_model_s() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {**SMALL, "num_hidden_layers": 5, "image_size": 28, "patch_size": 14}
    text = {**SMALL, "head_dim": 8, "sliding_window": 32}
    sites = Sites(Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)))
    assert sites.layers == 3
    assert sites.tensor("mlp_up[2]") == "model.language_model.layers.2.mlp.up_proj.weight"
    parts = {sites.part(name) for name, _ in sites.model.named_parameters() if "vision" in name or "projector" in name}
    assert parts == {"tower"}
    assert sites.part("model.language_model.embed_tokens.weight") == sites.part("lm_head.weight") == "other"


@pytest.mark.parametrize("name", ["deepseek_v4", "gemma3n_text", "nemotron_h", "longcat_flash", "jetmoe", "xlm"])
def test_what_no_one_place_holds_is_told_by_layer_and_part(name: str) -> None:
    sites = Sites(tiny(name))
    told = {
        "deepseek_v4": ("resid", "several residual streams (DeepseekV4HyperConnection)"),
        "gemma3n_text": ("resid", "several residual streams (Gemma3nTextAltUp)"),
        "nemotron_h": ("mlp_in", "layers 1, 3: no MLP"),
        "longcat_flash": ("mlp_in", "MLPs in parallel"),
        "jetmoe": ("attn_o", "no single matrix ends the attention"),
        "xlm": ("resid", "no list of decoder blocks"),
    }
    kind, words = told[name]
    assert words in sites.lacking[kind]
    parts = {sites.part(parameter) for parameter, p in sites.model.named_parameters() if p.ndim >= 2}
    assert {"mlp", "attention"} <= parts <= set(PARTS)
