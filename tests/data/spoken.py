"""Tokenizers made from nothing, with the chat templates that go wrong elsewhere. Harmless texts."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "How do I bake bread?\n\nMix flour and water, then let it rise.",
    "the garden is green\n",
    "You are Ada. ",
    "system user assistant\n",
] * 5
LOOP = "{% for m in messages %}"
TEMPLATES = {
    # text behind the answer's end, and a system text of its own where none is given
    "chatml": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Ada.<|im_end|>\n{% endif %}"
    + LOOP
    + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # strips every turn
    "strip": LOOP
    + "<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}",
    # a blank before the answer and before its end
    "inst": LOOP
    + "{% if m['role'] == 'assistant' %} {{ m['content'] | trim }} </s>"
    + "{% else %}<s>[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}",
    # knows no system text, and says so
    "strict": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + LOOP
    + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # drops a system text without a word
    "deaf": LOOP
    + "{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # no special token at all
    "words": LOOP + "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
}
ENDS = {"chatml": "<|im_end|>", "strip": "<|im_end|>", "inst": "</s>", "strict": "</s>", "deaf": "</s>"}


def bytewise(template: str | None = None) -> Any:
    """A byte-level tokenizer whose merges reach over line ends and blanks."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIALS, initial_alphabet=letters, show_progress=False)
    )
    return _wrapped(made, template)


def metaspace(template: str | None = None) -> Any:
    """A tokenizer that writes a blank before every text, as SentencePiece's do."""
    made = Tokenizer(models.BPE(byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    letters = sorted({*"".join(TEXTS).replace(" ", "▁"), *"[]/ABCDINSTabcdefghijklmnopqrstuvwxyz:|<>_"})
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, initial_alphabet=letters, show_progress=False)
    )
    return _wrapped(made, template)


def _wrapped(made: Any, template: str | None) -> Any:
    found = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    found.chat_template = template and TEMPLATES[template]
    return found
