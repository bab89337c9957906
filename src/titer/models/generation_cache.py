"""Answers that were generated before an interruption: one line a batch; from the first line that is not one of ours, nothing.

Batches are formed in a fixed order, so a batch whose answers are all known is not generated again and every other one is
the same as in an uninterrupted run, sampled ones too.
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
    """Place of the prompt -> its answer, as far as the file is whole; nothing where there is no file."""
    return {place: answer for _, answers in _whole(file) for place, answer in answers.items()}


def keep(file: Path, answers: Mapping[int, Completion]) -> None:
    """Append one batch, whole or not at all to any later reader."""
    more = {place: [c.thought, c.unfinished, c.failed] if c.failed else [c.thought, c.unfinished] for place, c in answers.items()}
    line = json.dumps([[place, c.text, c.ended, c.tokens, *(more[place] if any(more[place]) else [])] for place, c in answers.items()])
    with open(file, "a", encoding="utf-8", newline="\n") as opened:
        opened.write(line + "\n")
        opened.flush()


def mended(file: Path) -> None:
    """Cut off what follows the last whole batch, so that the next one begins at a line of its own."""
    if file.exists():
        file.write_bytes(b"".join(line + b"\n" for line, _ in list(_whole(file))))


def _whole(file: Path) -> Iterator[tuple[bytes, dict[int, Completion]]]:
    """Each line with its answers, before the first that is torn, or that a fault of the disk or another program left there."""
    for line in file.read_bytes().split(b"\n")[:-1] if file.is_file() else []:
        try:
            yield line, {row[0]: Completion(*row[1:]) for row in BATCH.validate_json(line)}
        except ValidationError:
            return
