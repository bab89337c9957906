"""A tiny model of every causal architecture that transformers knows: its own configuration with small sizes, random weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 3e7  # parameters
SPREAD = 0.2  # standard deviation of a matrix, about one over the root of its width
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FIELDS = {  # other fields by their names: those of whole numbers get the small size
    r"^(n_routed_experts|num_experts|num_local_experts|moe_num_experts)$": 4,
    r"^(num_experts_per_tok|num_experts_per_token|moe_topk|top_k_experts)$": 2,
    r"(moe|shared|expert).*(intermediate_size|ffn_hidden_size)|^intermediate_size_mlp$|ffn_dim|^n_inner$|^d_inner$": 24,
    r"head_dim$|^(kv_channels|mamba_d_head|d_head)$": 16,
    r"_lora_rank$": 16,
    r"^(sliding_window|attention_window_size|attention_chunk_size)$": 64,
    r"^(mamba_d_state|state_size)$": 8,
    r"^(embedding_size|word_embed_proj_dim|embedding_dim|hidden_size_per_layer_input|lru_width|emb_dim|d_model)$": 32,
    r"_embedding_size$|_embed_dim$": 32,
    r"^(vocab_size_per_layer_input|pronunciation_vocab_size|shape_vocab_size)$": 64,
    r"^(n_group|topk_group|num_expert_group)$": 1,
    r"^index_n_heads$": 4,
    r"^rotary_dim$": 8,
}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_n_groups": 1}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
LAYERS = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
CONVS = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
DROPPED = object()  # a field that the architecture does not take
PAIR = {"decoder_attention_heads": 2, "encoder_attention_heads": 2, "decoder_layers": 4, "encoder_layers": 4, "decoder_ffn_dim": 24}
PAIRS = ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL: dict[str, dict[str, Any]] = {  # sizes that depend on each other, and layers of every kind that an architecture has
    "bailing_hybrid": {"layer_types": LAYERS},
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**MAMBA2, "layer_types": LAYERS, "shared_intermediate_size": 24},
    "granitemoeshared": {"shared_intermediate_size": 24},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": LAYERS},
    "lfm2": CONVS,
    "lfm2_moe": {**CONVS, "num_dense_layers": 1},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1},
    "olmo_hybrid": {"layer_types": LAYERS},
    **dict.fromkeys(PAIRS, PAIR),
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 5},
    "prophetnet": {"num_hidden_layers": DROPPED, "num_decoder_layers": 2, "num_encoder_layers": 2, "decoder_ffn_dim": 24},
    "codegen": {"rotary_dim": 8, "num_attention_heads": 4},
    "ernie4_5_moe": {"moe_k": 2, "moe_num_experts": 4},
    "mimo_v2_flash": {"num_key_value_heads": 1},
    "longcat_flash": {"qk_rope_head_dim": 16, "head_dim": 16, "qk_head_dim": DROPPED},
    "hunyuan_v1_moe": {"moe_topk": 2},
    "whisper": {**PAIR, "max_target_positions": 128},
    "xlstm": {"num_heads": 1, "chunk_size": 16},
    "git": {"vision_config": {**VISION, "image_size": 28}},
    "qwen3_5_moe_text": {"layer_types": LAYERS},
    "qwen3_5_text": {"layer_types": LAYERS},
    "qwen3_next": {"layer_types": LAYERS},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16]},
    "xlnet": {"max_position_embeddings": DROPPED},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "n_mamba_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny(name: str, vocabulary: int = 64) -> Any:
    """The model of an architecture, float32, with the weights of seed 0. Errors: whatever transformers raises for the sizes."""
    config = configuration(name, vocabulary)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters with the small sizes")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        for p in model.parameters():
            if p.ndim >= 2 and 0 < float(p.std()) < SPREAD:  # answers then depend on all of the prompt
                p.mul_(SPREAD / p.std())
        return model


def configuration(name: str, vocabulary: int) -> Any:
    """The configuration with small sizes, of a wrapper those of its text model and its vision tower."""
    made = CONFIG_MAPPING[name]
    try:
        plain = made(**({"is_decoder": True} if name == "reformer" else {}))
    except Exception:  # noqa: BLE001  its defaults do not fit together; the small sizes may
        plain = None
    text = None if plain is None else plain.get_text_config(decoder=True)
    sizes = {**SIZES, "vocab_size": vocabulary, **({} if text is None else _small(text)), **SPECIAL.get(name, {})}
    sizes = {field: size for field, size in sizes.items() if size is not DROPPED}
    wrapped = text is not None and text is not plain and "text_config" in plain.sub_configs
    vision = {"vision_config": VISION} if wrapped and "vision_config" in plain.sub_configs else {}
    config = made(text_config=sizes, **vision) if wrapped else made(**sizes)
    config._attn_implementation = config._experts_implementation = "eager"
    return config


def _small(config: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for field in config.to_dict():
        size = next((size for pattern, size in FIELDS.items() if re.search(pattern, field)), None)
        held = _held(config, field)
        if size is not None and field not in SIZES and (type(held) is int or (held is None and field == "head_dim")):
            found[field] = size
    return found


def _held(config: Any, field: str) -> Any:
    try:
        return getattr(config, field)
    except Exception:  # noqa: BLE001  of every layer its own
        return None
