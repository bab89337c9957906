"""Completes a tokenizer from other files of its folder: a processor's chat template, the token that ends an answer, a padding token.

Padding is never attended to, so any token that the model has an embedding for can be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from titer.data.encode import EMBEDDED
from titer.models.safetensors_io import read_json

PROCESSORS = ("chat_template.json", "processor_config.json")  # where processors kept their template
NAMED = "additional_chat_templates"  # a folder of further templates


def template_texts(folder: Path) -> list[str]:
    """Returns the texts of all chat templates in a folder's files, unchanged."""
    files = [folder / "chat_template.jinja", *sorted(folder.glob(f"{NAMED}/*.jinja"))]
    said = [_said(folder / name, "chat_template") for name in ("tokenizer_config.json", *PROCESSORS)]
    return [
        *(file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()),
        *(str(text) for text in said if text),
    ]


def own_template(folder: Path) -> Any:
    """Returns the chat template of a folder's files as a tokenizer takes it (a text, or texts by name); None where there is none."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    said = next((found for name in ("tokenizer_config.json", *PROCESSORS) if (found := _said(folder / name, "chat_template"))), None)
    return {one["name"]: one["template"] for one in said} if isinstance(said, list) else said


def completed(tokenizer: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    """Adds what the tokenizer lacks (chat template, end token, padding token) from its folder and the model's config.json (`config`), and
    returns it. A token that the model has no embedding for counts as lacking; `EMBEDDED` is set to config.json's vocab_size."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = next((found for name in PROCESSORS if (found := _said(folder / name, "chat_template"))), None)
    rows = next(
        (c["vocab_size"] for c in (config.get("text_config"), config) if isinstance(c, Mapping) and _is_id(c.get("vocab_size"))), None
    )
    known = len(tokenizer) if rows is None else min(rows, len(tokenizer))
    setattr(tokenizer, EMBEDDED, rows)
    if not _is_id(tokenizer.eos_token_id, known):
        stated = (_said(folder / "generation_config.json", "eos_token_id"), config.get("eos_token_id"))
        ends = [one for said in stated for one in (said if isinstance(said, list) else [said]) if _is_id(one, known)]
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0]) if ends else None
    if not _is_id(tokenizer.pad_token_id, known):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _said(file: Path, name: str) -> Any:
    return read_json(file).get(name) if file.is_file() else None


def _is_id(value: Any, below: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0 and (below is None or value < below)
