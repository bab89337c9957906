"""What commands print: text for a reader, or JSON for a program; how a data file was read; the command line for the report."""

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
    """Print `value` as JSON, or else `text`."""
    typer.echo(json.dumps(value, indent=1, default=str) if as_json else plain(text))


def as_records(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Tables for JSON: each a list of rows, NaN as null."""
    return {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}


def plain(text: str) -> str:
    """Text for the terminal: line breaks stay, other control characters are spelt out."""
    return "\n".join(visible(line, 10_000) for line in text.split("\n"))


def command_line() -> str:
    """The command as it was typed, for the report."""
    return "titer " + shlex.join(visible(argument, 10_000) for argument in sys.argv[1:])


def forms(places: Iterable[Place | None], reading: str | None = None, need: Need = "answers") -> list[str]:
    """The form, columns and row counts of each file, without any of its text. `reading` applies to the first file.

    Files of a named task (TASK:PATH) are left out.
    """
    from titer.data.sources import detected
    from titer.data.tasks import TASKS

    found = [(place, None if i else reading) for i, place in enumerate(places) if place is not None]
    ours = [one for one in found if str(one[0]).partition(":")[0] not in TASKS]
    return [line for place, how in ours for line in detected(place, how, need).lines()]


def announce(
    terminal: Terminal, places: Iterable[Place | None], notes: Iterable[str], reading: str | None = None, need: Need = "answers"
) -> None:
    """Before anything runs: at a terminal print the files' forms, in a script only the `notes` (which rows were left out and why)."""
    for line in forms(places, reading, need) if terminal.watched else notes:
        terminal.tell(line)
