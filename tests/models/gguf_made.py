"""Tiny models of every width, with a tokenizer of their own, and the GGUF files that llama.cpp's conversion would make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from titer.models.lm import LM

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = ["How would I paint the fence?", "Please tell me about the 12 kites.", "The quick brown fox jumps over the lazy dog."]
KINDS = gguf.GGMLQuantizationType


def spoken(*more: str) -> Any:
    """A byte-level BPE tokenizer with a chat template; `more` tokens after the rest."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    )
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHATML)
    if more:
        found.add_tokens(list(more))
    return found


def model_of(kind: str = "llama", width: int = 32, seed: int = 0, **settings: Any) -> LM:
    """A tiny Llama or Qwen2 of that width, untrained; its embedding and its head are one where `settings` say so."""
    tokenizer = spoken()
    sizes = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config, made = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = made(config(vocab_size=len(tokenizer), max_position_embeddings=128, **{**sizes, **ids, **settings})).eval()
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.data += 0.1 * torch.randn_like(weight)
    return LM(model, tokenizer, f"tiny {kind}")


def as_gguf(lm: LM, file: Path, kind: str = "F32", spans: int = 1, **more: Any) -> Path:
    """The model as a GGUF file, matrices as `kind`, the rest F32; into so many files. `more`: metadata besides, by key."""
    config, tensors = lm.model.config, _tensors(lm)
    names = sorted(tensors)
    for part in range(spans):
        place = file if spans == 1 else file.with_name(f"{file.stem}-{part + 1:05d}-of-{spans:05d}.gguf")
        writer = gguf.GGUFWriter(place, config.model_type)
        if part == 0:
            _described(writer, lm, kind)
            for key, value in more.items():
                getattr(writer, f"add_{'float32' if isinstance(value, float) else 'uint32' if isinstance(value, int) else 'string'}")(
                    key, value
                )
        for name in names[part::spans]:
            values = tensors[name]
            stored = KINDS[kind] if values.ndim == 2 else KINDS.F32
            writer.add_tensor(name, packed(values, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return file if spans == 1 else file.with_name(f"{file.stem}-00001-of-{spans:05d}.gguf")


def packed(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Values as blocks of a kind; of the K kinds, which gguf can only read, blocks that hold random numbers of about that size."""
    if not kind.name.endswith("_K"):
        return gguf.quantize(values, kind)
    size, length = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(values.size).integers(0, 256, (values.size // size, length), dtype=np.uint8)
    scales = np.full((len(blocks), 2), 0.0005, dtype=np.float16).view(np.uint8)
    if kind == KINDS.Q4_K:
        blocks[:, :4] = scales  # d, dmin
    elif kind == KINDS.Q6_K:
        blocks[:, -2:] = scales[:, :2]  # d
    return blocks.reshape(*values.shape[:-1], -1)


def _tensors(lm: LM) -> dict[str, np.ndarray]:
    """llama.cpp's name -> values, as its conversion lays them out: the rows of Llama's q and k in pairs."""
    config = lm.model.config
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    found = {}
    for name, weight in lm.model.named_parameters():
        module, _, kind = name.rpartition(".")
        values = weight.detach().numpy()
        if module in names:
            found[f"{names[module]}.{kind}"] = values
            continue
        block, rest = module.removeprefix("model.layers.").split(".", 1)
        if config.model_type == "llama" and rest.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if rest.endswith("q_proj") else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        found[f"blk.{block}.{names[rest]}.{kind}"] = np.ascontiguousarray(values)
    return found


def _described(writer: gguf.GGUFWriter, lm: LM, kind: str) -> None:
    config, tokenizer = lm.model.config, lm.tokenizer
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(kind, f"MOSTLY_{kind}" + ("_M" if kind == "Q4_K" else ""))])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda word: word[1])
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([word for word, _ in vocabulary])
    special = {tokenizer.convert_tokens_to_ids(word) for word in tokenizer.all_special_tokens} | {0}
    writer.add_token_types([3 if place in special else 1 for _, place in vocabulary])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
