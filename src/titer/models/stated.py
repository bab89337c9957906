"""Checks the types of the fields in the JSON files of a model's folder, before transformers or Titer uses them.

A text where a number belongs, a huge layer count, a list where a token belongs: on such values transformers fails somewhere with an
unclear error, or builds layers without end. Any field may be null. Sizes are left to transformers, which checks them as it builds.
Some facts that a configuration states are read here too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from titer.core.errors import TiterError, visible
from titer.models.safetensors_io import AGAIN, read_json

Rule = tuple[str, Callable[[Any], bool]]
MANY = 256  # layers that any folder may state, however few tensors it holds
MOST = 2**16  # heads, experts and other counts of one layer
ADDED = 2**17  # tokens added to a vocabulary: models of speech and images have 66,000


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _token(value: Any) -> bool:
    """Whether a value is a token as tokenizer_config.json writes one: its text, or an object with the text as `content`."""
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _template(value: Any) -> bool:
    """Whether a value is a chat template, an object of name -> template, or a list of objects with name and template."""
    if isinstance(value, list):
        return all(isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("template"), str) for one in value)
    return all(isinstance(one, str) for one in (value.values() if isinstance(value, dict) else [value]))


TEXT: Rule = ("a text", lambda value: isinstance(value, str))
OBJECT: Rule = ("an object", lambda value: isinstance(value, dict))
YES: Rule = ("true or false", lambda value: isinstance(value, bool))
NUMBER: Rule = ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
WHOLE: Rule = ("a whole number", _whole)
SHARE: Rule = ("a share from 0 to 1", lambda value: isinstance(value, int | float) and 0 <= value <= 1)
COUNT: Rule = ("a whole number from 0", lambda value: _whole(value) and value >= 0)
IDS: Rule = ("a token's id, or a list of them", lambda value: all(map(_whole, value if isinstance(value, list) else [value])))
TOKEN: Rule = ("a token", _token)
TOKENS: Rule = (
    "tokens",
    lambda value: isinstance(value, list | dict) and all(map(_token, value if isinstance(value, list) else value.values())),
)
DROPOUTS = ("dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop")
ENDS = {"eos_token_id": IDS, "bos_token_id": IDS, "pad_token_id": WHOLE}
MODEL = {
    **ENDS,
    "model_type": TEXT,
    "architectures": ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value)),
    "tie_word_embeddings": YES,
    "vocab_size": COUNT,
    "num_hidden_layers": COUNT,
    "num_layers": COUNT,
    "n_layer": COUNT,
    "n_layers": COUNT,
    "transformers_weights": TEXT,
    "quantization_config": OBJECT,
    "text_config": OBJECT,
    **dict.fromkeys(DROPOUTS, SHARE),
}
WORDS = {
    "model_max_length": NUMBER,
    "tokenizer_class": TEXT,
    "padding_side": TEXT,
    "truncation_side": TEXT,
    "chat_template": ("a template, or a list of named ones", _template),
    "added_tokens_decoder": ("tokens by their ids", lambda value: isinstance(value, dict) and len(value) <= ADDED and TOKENS[1](value)),
    "additional_special_tokens": TOKENS,
    "extra_special_tokens": TOKENS,
    **dict.fromkeys(("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"), TOKEN),
}
FILES: dict[str, Mapping[str, Rule]] = {
    "config.json": MODEL,
    "generation_config.json": {**ENDS, "pad_token_id": WHOLE},
    "tokenizer_config.json": WORDS,
    "special_tokens_map.json": WORDS,
    "added_tokens.json": {},
    "chat_template.json": {"chat_template": WORDS["chat_template"]},
    "processor_config.json": {"chat_template": WORDS["chat_template"]},
}
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len")  # where a configuration of transformers maps none to the first
COUNTED = re.compile(r"(?:^|_)(?:layers?|blocks?|depth|groups?|heads?|experts)$")


def check_stated(folder: Path) -> None:
    """Checks the JSON files of a folder. Errors: a file that is not valid JSON, or a field of the wrong type."""
    for name, rules in FILES.items():
        if (folder / name).is_file():
            _check(folder / name, read_json(folder / name), rules)


def _check(file: Path, said: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    for name, (expected, holds) in rules.items():
        if said.get(name) is not None and not holds(said[name]):
            raise TiterError(f"{name} in {file} is {_shown(said[name])}", expected=expected, next_step=AGAIN)
    if rules is MODEL and isinstance(said.get("text_config"), dict):
        _check(file, {key: value for key, value in said["text_config"].items() if key != "text_config"}, MODEL)


def check_counts(config: Mapping[str, Any], tensors: int, label: str, within: int = 4) -> None:
    """Checks the counts in a configuration and in those nested in it, `within` levels deep. Errors: more layers than `MANY` and than
    the `tensors` stored; more heads, experts or other parts than `MOST`."""
    for name, value in config.items():
        if isinstance(value, dict) and within:
            check_counts(value, tensors, label, within - 1)
        most = max(MANY, tensors) if name.endswith(("layer", "layers", "depth")) else MOST
        if COUNTED.search(name) and _whole(value) and value > most:
            raise TiterError(
                f"the config.json of {label} asks for {_shown(value)} {visible(name, 60)}, and {tensors} tensors are there",
                expected=f"at most {most}",
                next_step=AGAIN,
            )


def _shown(value: Any) -> str:
    return visible(str(value) if _whole(value) and value < 10**40 else f"{type(value).__name__} {str(value)[:40]!r}", 80)


def stated_window(config: Any) -> int | None:
    """Returns the context window that a configuration states (transformers' object, or a dict as in config.json); None without one."""
    raw = isinstance(config, dict)
    text = (config.get("text_config") or config) if raw else config.get_text_config(decoder=True)
    found = [text.get(name) if raw else getattr(text, name, None) for name in WINDOWS]
    return next((size for size in found if isinstance(size, int) and size > 0), None)  # XLNet says -1: no limit


def says(config: Any, keys: tuple[str, ...]) -> bool:
    """Whether a configuration, or one within it, gives one of the keys a value."""
    if not isinstance(config, dict):
        return False
    return any(config.get(key) for key in keys) or any(says(part, keys) for part in config.values())
