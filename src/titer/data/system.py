"""Puts the user's system text before every prompt: the option `--system FILE|TEXT`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from titer.core.errors import TiterError, visible
from titer.data.example import Example
from titer.data.formats import SYSTEM
from titer.data.sources import TextData
from titer.data.turns import MARK, Turn, turns, written

LARGEST = 2**20  # bytes of a file
FILES = (".txt", ".md", ".prompt", ".jinja", ".json", ".yaml", ".csv")  # a name with such an ending is a file, not a text
EXPECTED = "a file with the text (UTF-8), or the text itself"


def read_system(given: str | Path | None) -> str:
    """Reads the system text from a file, or takes it as given; "" for None. Errors: a missing file, or one that is not text; empty text."""
    if given is None:
        return ""
    said = str(given)
    if os.path.isfile(said):
        text = _within(Path(said), _read(Path(said)))
    elif isinstance(given, Path) or (not any(map(str.isspace, said)) and said.lower().endswith(FILES)):
        raise TiterError(f"--system: there is no file {visible(said, 120)!r}", expected=EXPECTED)
    else:
        text = said
    if not text.strip():
        raise TiterError("--system is empty", expected=EXPECTED)
    if MARK in text:
        raise TiterError("--system holds the record separator U+001E", expected="text without it")
    return text.strip()


def _within(file: Path, text: str) -> str:
    """Returns the system text that a file's text holds: of a .json file the text itself, or that of an object's key for it.

    Errors: JSON without such a text; a .jinja file with places to be filled.
    """
    name = visible(str(file), 120)
    if file.suffix.lower() == ".jinja" and re.search(r"{[{%#]", text):
        raise TiterError(f"--system: {name} has places that are to be filled ({{{{...}}}})", expected="the text as the model is to read it")
    if file.suffix.lower() != ".json":
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text  # a text under that name
    said = next((found[key] for key in (*SYSTEM, "content", "text", "prompt") if key in found), None) if isinstance(found, dict) else found
    if not isinstance(said, str):
        raise TiterError(f"--system: {name} is JSON without a system text", expected='a text, or an object such as {"system": "..."}')
    return said


def _read(file: Path) -> str:
    try:
        with open(file, "rb") as opened:
            raw = opened.read(LARGEST + 1)
        if len(raw) <= LARGEST:
            return raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TiterError(f"--system: {visible(str(file), 120)} is not readable ({visible(str(error), 120)})", expected=EXPECTED) from None
    raise TiterError(f"--system: {visible(str(file), 120)} has more than {LARGEST} bytes", expected=EXPECTED)


def behind(system: str, prompt: str) -> str:
    """Puts the system text before a prompt ("": the prompt stays as it is). Errors: the prompt has a system text already."""
    said = turns(prompt)
    if system and said[0].role == "system":
        raise TiterError(
            f"--system was given, but a prompt has a system text of its own: {visible(said[0].content, 60)!r}",
            next_step="leave out --system, or remove the system texts from the file.",
        )
    return written([Turn("system", system), *said]) if system else prompt


def text_behind(system: str, data: TextData) -> TextData:
    """Puts the system text before each prompt of the data."""
    return data.model_copy(update={"rows": tuple((behind(system, row[0]), *row[1:]) for row in data.rows)}) if system else data


def behind_all(system: str, examples: Sequence[Example]) -> list[Example]:
    """Puts the system text before each example's prompt."""
    return [replace(e, prompt=behind(system, e.prompt)) for e in examples]
