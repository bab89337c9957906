"""Tiny models of further families, to see that nothing in the code knows a family by name."""

from __future__ import annotations

from typing import Any

import torch

from tests.conftest import llama, neox
from titer.data.world import World
from titer.models.lm import LM


def _ids(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def opt(world: World) -> LM:
    """A tiny OPT: learned positions, biases, an MLP without a module of its own."""
    from transformers import OPTConfig, OPTForCausalLM

    t = world.tokenizer()
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return _made(OPTForCausalLM, OPTConfig(**_ids(t), **sizes, max_position_embeddings=64), t)


def qwen2(world: World) -> LM:
    """A tiny Qwen2: gated MLP, biases in the attention, tied embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    t = world.tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(**_ids(t), **sizes, max_position_embeddings=64, tie_word_embeddings=True)
    return _made(Qwen2ForCausalLM, config, t)


def gpt2(world: World) -> LM:
    """A tiny GPT-2, whose layers are Conv1D: weights stored as (inputs, outputs)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    t = world.tokenizer()
    return _made(GPT2LMHeadModel, GPT2Config(**_ids(t), n_embd=16, n_layer=2, n_head=2, n_positions=64), t)


def mixtral(world: World) -> LM:
    """A tiny mixture of experts."""
    from transformers import MixtralConfig, MixtralForCausalLM

    t = world.tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return _made(MixtralForCausalLM, MixtralConfig(**_ids(t), **sizes, num_local_experts=2, max_position_embeddings=64), t)


def _made(kind: Any, config: Any, tokenizer: Any) -> LM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LM(kind(config).eval(), tokenizer, kind.__name__)


SUPPORTED = {"gpt2": gpt2, "llama": llama, "neox": neox, "opt": opt, "qwen2": qwen2}
PROMPTS = (
    "<bos> f0 f1 <sot> a b c d e f g h i <eot>",
    "<bos> f2 <sot> a <eot>",
    "b",
    "<bos> f3 f4 <sot> a b c <eot>",
    "c d e f",
)
ANSWERS = ("a b c d", "<null> <null>", "e", "f g h i j k l m n o p a b", "<null>")
