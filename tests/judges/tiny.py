"""Tiny models with known weights: a chat model whose next word is a rule, and a classifier whose logits are a formula.

One Llama layer without rotation of anything that counts: queries and keys are zero, so attention is even; values and outputs are
the identity; the MLP gives nothing. What the head reads at a place is e(last) + the mean of the normed embeddings up to there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

WINDOW = 512
SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<ask>", "<sep>")
SCALE = 50.0  # an embedding's length: the last word outweighs the mean of all
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}{% if add_generation_prompt %}<ask>{% endif %}"
)


def tokenizer(words: Sequence[str], template: str | None = None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="$A", pair="$A <sep> $B", special_tokens=[("<sep>", vocabulary["<sep>"])])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "sep_token": "<sep>"}
    extra = ["<user>", "<assistant>", "<ask>"]
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **names, additional_special_tokens=extra, model_max_length=WINDOW)
    made.chat_template = template
    return made


def _config(made: Any, **more: Any) -> Any:
    from transformers import LlamaConfig

    width = len(made) + len(made) % 2
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    ids = {"pad_token_id": made.pad_token_id, "eos_token_id": made.eos_token_id, "bos_token_id": None}
    sizes = {"vocab_size": len(made), "hidden_size": width, "intermediate_size": 4, "max_position_embeddings": WINDOW}
    return LlamaConfig(**sizes, **heads, **ids, tie_word_embeddings=False, **more)


@torch.no_grad()
def _even(model: Any, embedding: torch.Tensor) -> None:
    """Even attention over what came before, nothing from the MLP."""
    layer, width = model.model.layers[0], embedding.shape[1]
    model.model.embed_tokens.weight.copy_(embedding)
    for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.down_proj):
        part.weight.zero_()
    for part in (layer.self_attn.v_proj, layer.self_attn.o_proj):
        part.weight.copy_(torch.eye(width))


def chat(folder: Path, words: Sequence[str], rules: Mapping[tuple[str, str], float], template: str | None = TEMPLATE) -> Path:
    """A chat model in a folder; `rules[(read, written)]` is the head's weight from a word that was read to a word to write."""
    from transformers import LlamaForCausalLM

    made = tokenizer(words, template)
    model = LlamaForCausalLM(_config(made)).eval()
    _even(model, SCALE * torch.eye(len(made), model.config.hidden_size))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        for (read, written), weight in rules.items():
            model.lm_head.weight[made.convert_tokens_to_ids(written), made.convert_tokens_to_ids(read)] = weight
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def guard(folder: Path, template: str | None = TEMPLATE, safe: str = "safe", unsafe: str = "unsafe") -> Path:
    """Says "unsafe" where the word `bad` stands in the conversation, "safe" where it does not, "maybe" where `odd` does."""
    ends = {(safe, "<eos>"): 1.0, (unsafe, "<eos>"): 1.0, ("maybe", "<eos>"): 1.0}
    rules = {("<ask>", safe): 0.2, ("bad", unsafe): 1000.0, ("odd", "maybe"): 10_000.0, **ends}
    rules |= {(word, "<eos>"): 100_000.0 for word in (safe, unsafe, "maybe")}
    return chat(folder, (safe, unsafe, "maybe", "bad", "odd", "bread"), rules, template)


def grader(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Writes the tag and then 5 where the word `bad` stands in what it reads, else 1."""
    rules = {("<ask>", "#thescore:"): 100.0, ("#thescore:", "1"): 0.2, ("bad", "5"): 2000.0}
    rules |= {("1", "<eos>"): 10.0, ("5", "<eos>"): 10.0}
    return chat(folder, ("#thescore:", "1", "5", "bad"), rules, template)


def classifier(folder: Path, words: Sequence[str], labels: Sequence[str], **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A classifier in a folder with random embeddings (V, D) and head (C, D), which are returned."""
    from transformers import LlamaForSequenceClassification

    made = tokenizer(words)
    config = _config(made, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}, **more)
    model = LlamaForSequenceClassification(config).eval()
    random = torch.Generator().manual_seed(7)
    embedding = torch.randn(len(made), config.hidden_size, generator=random)
    head = torch.randn(len(labels), config.hidden_size, generator=random) / math.sqrt(config.hidden_size) * 4
    _even(model, embedding)
    with torch.no_grad():
        model.score.weight.copy_(head)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return embedding, head


def formula(embedding: torch.Tensor, head: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """The classifier's logits (C,), written out."""
    x = embedding[list(ids)].double()

    def normed(v: torch.Tensor) -> torch.Tensor:
        return v / (v.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    return head.double() @ normed(x[-1] + normed(x).mean(0))
