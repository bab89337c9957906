"""Makes a folder saved by transformers 5 readable for transformers 4: adds the older names of renamed settings. L2.

Without them 4.57 does not know the tokenizer's class, misreads the list of extra special tokens, and does not find the settings of the
rotary embedding: it opens the model with its defaults and computes other numbers without a warning. Settings without an older name
(those that differ by kind of layer) stay as they are. Transformers 5 reads a folder with both names as it reads one with its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NEOX = ("gpt_neox", "gpt_neox_japanese")  # model types with older names of their own


def readable(folder: Path) -> None:
    """Adds the older names to config.json and tokenizer_config.json of a folder that transformers 5 has just saved."""
    for name, added in (("config.json", _rotary), ("tokenizer_config.json", _tokenizer)):
        file = folder / name
        found = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(added(found), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _rotary(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        return config
    theta, share = ("rotary_emb_base", "rotary_pct") if config.get("model_type") in NEOX else ("rope_theta", "partial_rotary_factor")
    older = {theta: rope.get("rope_theta"), share: rope.get("partial_rotary_factor")}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = rope
    return config | {name: value for name, value in older.items() if value is not None}


def _tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
