"""TiterError, the one error that users see: what was given, what was expected, the nearest name, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

MANY = 25  # of more names than these, an error lists the nearest


class TiterError(Exception):
    """A mistake or an obstacle that the reader can do something about.

    `what`: what was given or what went wrong. Each error has `expected` or `next_step`; a clear `expected` is enough of a next step.
    `status`: the exit status of the command line, 2 for wrong input and 1 for a run that failed.
    """

    def __init__(self, what: str, *, expected: str = "", next_step: str = "", status: int = 2) -> None:
        self.what, self.expected, self.next_step, self.status = what, expected, next_step, status
        parts = [ended(what)]
        if expected:
            parts.append(f"Expected: {ended(expected)}")
        if next_step:
            parts.append(f"Next: {next_step}")
        super().__init__(("\n" if "\n" in expected else " ").join(parts))


class Faulty(TiterError):  # noqa: N818  one of many is no error
    """A row of data whose request or conversation cannot be read. A few such rows of many are left out and counted; more are an error."""


def ended(sentence: str) -> str:
    """Returns the sentence with one full stop at its end. A question, or a text of several lines, keeps its own end."""
    text = sentence.rstrip()
    return text if text.endswith("?") or "\n" in text else text.rstrip(".") + "."


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the known name closest to `name`, or "" if none is close."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else ""


def beside(path: Path) -> str:
    """Suggests, for a path where nothing is, the file or folder beside it with the closest name; "" if none is close."""
    try:
        stems = {one.stem: one for one in path.parent.iterdir()}
    except (OSError, ValueError):
        return ""
    close = nearest(path.stem, stems)
    return f"did you mean {visible(str(stems[close]), 200)!r}?" if close else ""


def unknown(noun: str, name: str, names: Iterable[str], next_step: str = "") -> NoReturn:
    """Raises the TiterError for a name that is not among `names`; the message gives the nearest one."""
    known = sorted(names)
    close = nearest(name, known)
    hint = f"did you mean {close!r}? " if close else ""
    listed = ", ".join(known if len(known) <= MANY else difflib.get_close_matches(name, known, n=5, cutoff=0.0))
    some = f"one of {listed}" if len(known) <= MANY else f"one of {len(known)} names; the nearest are {listed}"
    raise TiterError(
        f"unknown {noun} {name!r}",
        expected=some if known else f"a {noun}; none is known here",
        next_step=(hint + next_step).strip(),
    )


def visible(text: str, limit: int = 400) -> str:
    """Returns `text` with control characters as escapes, so that a terminal or a page shows them instead of obeying them.

    Newlines and tabs are escaped too. The result has at most `limit` characters.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return shown[: limit - 1] + "…" if len(text) > limit or len(shown) > limit else shown
