"""What commands print: a text for a reader or JSON for a machine; what a data file was taken for; the command for its report."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from titer.core.errors import visible

if TYPE_CHECKING:
    import pandas as pd

    from titer.commands.requests import Place
    from titer.data.shapes import Need
    from titer.terminal import Terminal


def show_result(as_json: bool, value: Any, text: str) -> None:
    """`value` as JSON, or `text` as it is."""
    typer.echo(json.dumps(value, indent=1, default=str) if as_json else plain(text))


def as_records(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Tables for a machine: a list of rows each, what is not a number as null."""
    return {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}


def plain(text: str) -> str:
    """Text for the terminal: its lines stay, other control codes are spelt out."""
    return "\n".join(visible(line, 10_000) for line in text.split("\n"))


def command_line() -> str:
    """The command as given, for the report."""
    return "titer " + shlex.join(visible(argument, 10_000) for argument in sys.argv[1:])


def forms(places: Iterable[Place | None], reading: str | None = None, need: Need = "answers") -> list[str]:
    """Form, columns and counts of each file, none of its text; `reading` is of the first. Files of a named task are not described."""
    from titer.data.sources import detected
    from titer.data.tasks import TASKS

    found = [(place, None if i else reading) for i, place in enumerate(places) if place is not None]
    ours = [one for one in found if str(one[0]).partition(":")[0] not in TASKS]
    return [line for place, how in ours for line in detected(place, how, need).lines()]


def announce(
    terminal: Terminal, places: Iterable[Place | None], notes: Iterable[str], reading: str | None = None, need: Need = "answers"
) -> None:
    """Before anything runs: to a person at a terminal the forms of the files, to a script what was left out of them and why."""
    for line in forms(places, reading, need) if terminal.watched else notes:
        terminal.tell(line)
