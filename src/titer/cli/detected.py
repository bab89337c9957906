"""What a data file was taken for, shown before it is used: whole in a dry run, in short to a person who watches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from titer.terminal import Terminal

EXAMPLE = ("  for example", "  answered")  # what a row says may be harmful: it stays out of the terminal unless asked for


def forms(places: Iterable[str | Path | None]) -> list[str]:
    """Form, columns and counts of each file, none of its text. Files of a named task have one form and are not described."""
    from titer.data.sources import detected
    from titer.data.tasks import TASKS

    found = [place for place in places if place is not None and str(place).partition(":")[0] not in TASKS]
    return [line for place in found for line in detected(place).lines() if not line.startswith(EXAMPLE)]


def announce(terminal: Terminal, places: Iterable[str | Path | None]) -> None:
    """To a person at a terminal, before anything runs; a script's standard error stays as it was."""
    if terminal.watched:
        for line in forms(places):
            terminal.tell(line)
