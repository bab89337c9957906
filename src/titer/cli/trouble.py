"""Trouble in words: what the system's errors mean to the reader, and the end of a command that failed."""

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

INTERRUPTED = 130  # what typer makes of Ctrl-C


NUMBERS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")  # huggingface_hub does not import with anything else in them


def check_surroundings() -> None:
    """Make the terminal take any letter, spelt out where it has none. Errors: an environment in which libraries do not import."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in NUMBERS:
        if (said := os.environ.get(name)) and not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", said):
            raise TiterError(f"{name} is {visible(said, 60)!r}", expected="a whole number of seconds", next_step=f"unset {name}.")
    if sys.flags.optimize > 1:
        raise TiterError("PYTHONOPTIMIZE=2 (or -OO) takes out docstrings, which transformers needs", next_step="unset it.")


def file_trouble(error: Exception) -> int | None:
    """The system's error code where safetensors, which raises its own class, could not write or read a file."""
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


ROOM, RIGHT = "make room, or give another folder with --runs", "give another folder with --runs"
KNOWN = {  # what the system's code means, and what to do about it
    errno.ENOSPC: ("the disk is full", ROOM),
    errno.EDQUOT: ("the disk quota is used up", ROOM),
    errno.EROFS: ("the folder is read-only", RIGHT),
    errno.EACCES: ("permission denied", RIGHT),
    errno.EPERM: ("permission denied", RIGHT),
    errno.ENOTDIR: ("a file stands where a folder is meant", RIGHT),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}


def os_message(error: OSError) -> str:
    """An error of the system as a sentence, with what to do next."""
    what, mend = KNOWN.get(error.errno or 0, (error.strerror or str(error), ""))
    where = f" ({visible(str(error.filename), 160)})" if error.filename else ""
    return f"{what}{where}. What was finished before is kept. Next: {f'{mend}, then ' if mend else ''}run the same command again."


def fail(message: str, status: int) -> NoReturn:
    """Print the message on standard error and leave."""
    typer.echo(f"titer: {plain(message)}", err=True)
    sys.exit(status)
