"""Answers that were generated before an interruption: one line a batch, a torn last line left out.

Batches are formed in a fixed order, so a batch whose answers are all known is not generated again and every other one is
the same as in an uninterrupted run, sampled ones too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from titer.models.lm import Completion


def known(file: Path) -> dict[int, Completion]:
    """Place of the prompt -> its answer, as far as the file goes; nothing where there is no file."""
    found: dict[int, Completion] = {}
    if not file.exists():
        return found
    for line in file.read_text(encoding="utf-8").split("\n")[:-1]:  # what is behind the last line's end is torn
        for place, text, ended, tokens in json.loads(line):
            found[place] = Completion(text, ended, tokens)
    return found


def keep(file: Path, answers: Mapping[int, Completion]) -> None:
    """Append one batch, whole or not at all to any later reader."""
    line = json.dumps([[place, c.text, c.ended, c.tokens] for place, c in answers.items()])
    with open(file, "a", encoding="utf-8", newline="\n") as opened:
        opened.write(line + "\n")
        opened.flush()


def mended(file: Path) -> None:
    """Cut a torn last line off, so that the next one begins at its own."""
    if file.exists():
        whole = file.read_bytes()
        file.write_bytes(whole[: whole.rfind(b"\n") + 1])
