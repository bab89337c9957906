"""Trouble in words: what the system's errors mean to the reader, and the end of a command that failed."""

from __future__ import annotations

import errno
import re
import sys
from typing import NoReturn

import typer

from titer.cli.output import plain
from titer.core.errors import visible

INTERRUPTED = 130  # what typer makes of Ctrl-C


def file_trouble(error: Exception) -> int | None:
    """The system's error code where safetensors, which raises its own class, could not write or read a file."""
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def os_message(error: OSError) -> str:
    """An error of the system as a sentence, with what to do next."""
    what = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the folder is read-only",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
    }.get(error.errno or 0, error.strerror or str(error))
    where = f" ({visible(str(error.filename), 160)})" if error.filename else ""
    next_step = "make room or give another folder with --runs, then run the same command again."
    return f"{what}{where}. What was finished before is kept. Next: {next_step}"


def fail(message: str, status: int) -> NoReturn:
    """Print the message on standard error and leave."""
    typer.echo(f"titer: {plain(message)}", err=True)
    sys.exit(status)
