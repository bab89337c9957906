"""Tiny models of the families that Vaccine's checks run over: two layers of width 32, made from transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers

from titer.data.world import World
from titer.models.lm import LM

COMMON = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 96, "max_position_embeddings": 64}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED),
    "qwen2": ("Qwen2", {**COMMON, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "gemma": ("Gemma", GROUPED),
    "gemma2": ("Gemma2", {**GROUPED, "query_pre_attn_scalar": 8, "attn_implementation": "eager"}),
    "opt": ("OPT", {**COMMON, "ffn_dim": 96, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "gpt2": (
        "GPT2",
        {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "neox": ("GPTNeoX", COMMON),
}
HEADS = {"GPT2": "GPT2LMHeadModel"}


def made(family: str, world: World, seed: int = 0, size: float = 0.1) -> LM:
    """A tiny model of a family, without dropout; matrices drawn with deviation `size`, so that attention matters."""
    name, shape = FAMILIES[family]
    tokenizer = world.tokenizer()
    ids = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("pad", "bos", "eos")}
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), **ids, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))(config)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim == 2:
                    p.normal_(0, size)
    return LM(model, tokenizer, f"tiny {family}")


FAMILY: dict[str, Callable[[World], LM]] = {family: partial(made, family) for family in FAMILIES}
