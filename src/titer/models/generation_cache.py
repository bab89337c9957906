"""Answers that were generated before an interruption: one line a batch; from the first line that is not one of ours, nothing.

Batches are formed in a fixed order, so a batch whose answers are all known is not generated again and every other one is
the same as in an uninterrupted run, sampled ones too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from titer.models.lm import Completion

Count = Annotated[int, Field(ge=0)]
Answer = tuple[Count, str, bool, Count]  # place, text, ended, tokens
Thought = tuple[Count, str, bool, Count, str, bool]  # ... thought, unfinished
BATCH = TypeAdapter(list[Answer | Thought], config=ConfigDict(strict=True))


def known(file: Path) -> dict[int, Completion]:
    """Place of the prompt -> its answer, as far as the file is whole; nothing where there is no file."""
    found: dict[int, Completion] = {}
    for line in _lines(file):
        if (answers := _batch(line)) is None:
            break
        found.update(answers)
    return found


def keep(file: Path, answers: Mapping[int, Completion]) -> None:
    """Append one batch, whole or not at all to any later reader."""
    line = json.dumps([[place, c.text, c.ended, c.tokens, *_thought(c)] for place, c in answers.items()])
    with open(file, "a", encoding="utf-8", newline="\n") as opened:
        opened.write(line + "\n")
        opened.flush()


def _thought(answer: Completion) -> list[str | bool]:
    """What a line says besides of an answer with a thought."""
    return [answer.thought, answer.unfinished] if answer.thought or answer.unfinished else []


def mended(file: Path) -> None:
    """Cut off what follows the last whole batch, so that the next one begins at a line of its own."""
    if file.exists():
        whole = list(takewhile(lambda line: _batch(line) is not None, _lines(file)))
        file.write_bytes(b"".join(line + b"\n" for line in whole))


def _lines(file: Path) -> list[bytes]:
    """The file's lines without what is behind the last one's end: that is torn."""
    return file.read_bytes().split(b"\n")[:-1] if file.is_file() else []


def _batch(line: bytes) -> dict[int, Completion] | None:
    """The answers of one line; None of a line that a fault of the disk or another program left there."""
    try:
        return {row[0]: Completion(*row[1:]) for row in BATCH.validate_json(line)}
    except ValidationError:
        return None
