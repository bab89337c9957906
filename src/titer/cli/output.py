"""What commands print: results as text for a reader or JSON for a program, how a data file was read, the command line for a report."""

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
    """Prints `value` as JSON if `as_json` is set, otherwise `text`."""
    typer.echo(json.dumps(value, indent=1, default=str) if as_json else plain(text))


def as_records(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Turns each table into a list of rows for JSON; NaN becomes null."""
    return {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}


def plain(text: str) -> str:
    """Returns a text that is safe to print on a terminal: line breaks stay, other control characters are spelt out."""
    return "\n".join(visible(line, 10_000) for line in text.split("\n"))


def command_line() -> str:
    """Returns the command as it was typed, for the report."""
    return "titer " + shlex.join(visible(argument, 10_000) for argument in sys.argv[1:])


def forms(places: Iterable[Place | None], reading: str | None = None, need: Need = "answers") -> list[str]:
    """Returns lines with each file's form, columns and row counts, but none of its text. `reading` applies to the first file.

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
    """Prints, before anything runs, how the files were read. In a script it prints only the `notes` (which rows were left out, and why)."""
    for line in forms(places, reading, need) if terminal.watched else notes:
        terminal.tell(line)
