"""A file of the answers generated before an interruption: one line per batch; reading stops at the first damaged or foreign line.

Batches are formed in a fixed order, so a batch whose answers are all known is not generated again, and every other batch is
the same as in an uninterrupted run, also with sampling.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from titer.models.lm import Completion

Count = Annotated[int, Field(ge=0)]
Answer = tuple[Count, str, bool, Count]  # place, text, ended, tokens
Thought = tuple[Count, str, bool, Count, str, bool]  # ... thought, unfinished
Failed = tuple[Count, str, bool, Count, str, bool, str]  # ... why it could not be had
BATCH = TypeAdapter(list[Answer | Thought | Failed], config=ConfigDict(strict=True))


def known(file: Path) -> dict[int, Completion]:
    """Returns prompt index -> answer, up to the first damaged line; {} where there is no file."""
    return {place: answer for _, answers in _whole(file) for place, answer in answers.items()}


def keep(file: Path, answers: Mapping[int, Completion]) -> None:
    """Appends one batch; a later reader gets the whole batch or, if the write was cut short, none of it."""
    more = {place: [c.thought, c.unfinished, c.failed] if c.failed else [c.thought, c.unfinished] for place, c in answers.items()}
    line = json.dumps([[place, c.text, c.ended, c.tokens, *(more[place] if any(more[place]) else [])] for place, c in answers.items()])
    with open(file, "a", encoding="utf-8", newline="\n") as opened:
        opened.write(line + "\n")
        opened.flush()


def mended(file: Path) -> None:
    """Cuts the file after its last whole batch, so that the next one begins on a new line."""
    if file.exists():
        file.write_bytes(b"".join(line + b"\n" for line, _ in list(_whole(file))))


def _whole(file: Path) -> Iterator[tuple[bytes, dict[int, Completion]]]:
    """Yields each line with its answers, up to the first that is cut short, damaged or written by another program."""
    for line in file.read_bytes().split(b"\n")[:-1] if file.is_file() else []:
        try:
            yield line, {row[0]: Completion(*row[1:]) for row in BATCH.validate_json(line)}
        except ValidationError:
            return
