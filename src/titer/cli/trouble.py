"""Checks the environment, says in words what an error of the operating system means, and ends a failed command."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from typing import NoReturn

import typer

from titer.cli.output import plain
from titer.core.errors import TiterError, visible

INTERRUPTED = 130  # typer's exit status after Ctrl-C


NUMBERS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")  # huggingface_hub fails to import unless these are numbers


def check_surroundings() -> None:
    """Checks the environment before a command runs. A letter that the terminal cannot print will be shown as an escape.

    Errors: environment settings with which libraries cannot be imported.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in NUMBERS:
        if (said := os.environ.get(name)) and not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", said):
            raise TiterError(
                f"the environment variable {name} is {visible(said, 60)!r}",
                expected="a whole number of seconds",
                next_step=f"unset {name}.",
            )
    if said := os.environ.get("TORCH_LOGS"):
        try:
            import torch  # noqa: F401  torch reads this variable as it is imported
        except ValueError as error:
            raise TiterError(
                f"the environment variable TORCH_LOGS is {visible(said, 60)!r}, with which torch does not import",
                next_step="unset TORCH_LOGS.",
            ) from error
    if sys.flags.optimize > 1:
        raise TiterError(
            "PYTHONOPTIMIZE=2 (or python -OO) removes docstrings, which transformers needs",
            next_step="unset PYTHONOPTIMIZE, or run Python without -OO.",
        )


def file_trouble(error: Exception) -> int | None:
    """Returns the operating system's error code in a SafetensorError (raised if reading or writing fails); None for any other error."""
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


ROOM, RIGHT = "make room, or give another folder with --runs or --to", "give another folder with --runs or --to"
KNOWN = {  # error code of the system -> what it means, what to do about it
    errno.ENOSPC: ("the disk is full", ROOM),
    errno.EDQUOT: ("the disk quota is used up", ROOM),
    errno.EROFS: ("the folder is read-only", RIGHT),
    errno.EACCES: ("permission denied", RIGHT),
    errno.EPERM: ("permission denied", RIGHT),
    errno.ENOTDIR: ("a file is where a folder is expected", RIGHT),
    errno.ENOLCK: ("this file system has no locks", RIGHT),
    errno.EOPNOTSUPP: ("this file system does not support it", RIGHT),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}


def os_message(error: OSError) -> str:
    """Returns an error of the operating system in words, with what to do next."""
    what, mend = KNOWN.get(error.errno or 0, (error.strerror or str(error), ""))
    where = f" ({visible(str(error.filename), 160)})" if error.filename else ""
    return f"{what}{where}. What was finished before is kept. Next: {f'{mend}, then ' if mend else ''}run the same command again."


def fail(message: str, status: int) -> NoReturn:
    """Prints the message on standard error and exits with this status."""
    typer.echo(f"titer: {plain(message)}", err=True)
    sys.exit(status)
