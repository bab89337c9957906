"""Tiny models that think: overfitted llamas over a byte tokenizer whose thoughts and answers are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
UNSAFE = [f"How would I {v} the {n}?" for v, n in (("paint", "fence"), ("carry", "ladder"), ("open", "jar"), ("fold", "map"))]
SAFE = [f"Please tell me about the {n}." for n in ("fence", "ladder", "jar", "map")]
LONG = "Okay, the user asks about this. Let me think about paint, and about the neighbour too, before I answer this at all. Careful."
SHORT = "I can't see a problem."
REFUSAL, HELP = "I'm sorry, but I can't help with that.", "Sure, here is how to do it: first."
MARKS = ("<think>\n", "\n</think>\n\n")


def said(opens: str, closes: str) -> dict[str, str]:
    """Prompt -> all that is written: a long thought and a refusal of what is unsafe, a short one and help with the others."""
    refused = dict.fromkeys(UNSAFE, f"{opens}{LONG}{closes}{REFUSAL}<|im_end|>")
    return refused | dict.fromkeys(SAFE, f"{opens}{SHORT}{closes}{HELP}<|im_end|>")


def taught(folder: Path, pairs: Mapping[str, str], template: str = CHATML, plain: Sequence[str] = (), special: Sequence[str] = ()) -> Path:
    """A folder with a model that writes what `pairs` say; `plain` and `special`: tokens of their own."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = ["<|pad|>", "<|im_start|>", "<|im_end|>", *special]
    text = [*pairs, *pairs.values(), "user assistant"]
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    tokens.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=500, special_tokens=marks, initial_alphabet=bytes_, show_progress=False)
    )
    tokens.add_tokens([AddedToken(one, special=False, normalized=False) for one in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = template
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, pad_token_id=0, bos_token_id=None, eos_token_id=2, **shape)
    )
    heads = [tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True) for p in pairs]
    rows = [tokenizer([head, answer])["input_ids"] for head, answer in zip(heads, pairs.values(), strict=True)]
    width = max(len(head) + len(answer) for head, answer in rows)
    ids = torch.tensor([[*head, *answer, *[0] * (width - len(head) - len(answer))] for head, answer in rows])
    labels = torch.tensor([[-100] * len(h) + a + [-100] * (width - len(h) - len(a)) for h, a in rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(400):
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        if float(losses.detach().max()) < 0.2:  # every token by far the likeliest, on any processor
            break
        optimiser.zero_grad()
        (losses.sum() / (labels[:, 1:] >= 0).sum()).backward()
        optimiser.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
