"""What commands print: a text for a reader or JSON for a machine; names for folders and commands for reports."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from titer.core.errors import visible

if TYPE_CHECKING:
    import pandas as pd


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
