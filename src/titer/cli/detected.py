"""What a data file was taken for, shown before it is used: whole in a dry run and to a person who watches, what was left out to anyone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from titer.data.shapes import Need
    from titer.terminal import Terminal


def forms(places: Iterable[str | Path | None], reading: str | None = None, need: Need = "answers") -> list[str]:
    """Form, columns and counts of each file, none of its text; `reading` is of the first. Files of a named task are not described."""
    from titer.data.sources import detected
    from titer.data.tasks import TASKS

    found = [(place, None if i else reading) for i, place in enumerate(places) if place is not None]
    ours = [one for one in found if str(one[0]).partition(":")[0] not in TASKS]
    return [line for place, how in ours for line in detected(place, how, need).lines()]


def announce(
    terminal: Terminal, places: Iterable[str | Path | None], notes: Iterable[str], reading: str | None = None, need: Need = "answers"
) -> None:
    """Before anything runs: to a person at a terminal the forms of the files, to a script what was left out of them and why."""
    for line in forms(places, reading, need) if terminal.watched else notes:
        terminal.tell(line)
