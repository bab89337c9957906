"""Finds a report by its folder, or by its name in the folder of runs, and chooses the folder of a new report. L5.

A folder's plain name (`audit-tuned`) does not tell apart two models of one name, other data or another judge. So each folder records
its question in `question.json`. The same question gets the same folder again, and no question overwrites another's folder: where the
plain name is taken, the first digits of the question's key are added (`audit-tuned-1a2b3c`). A folder without `question.json`, such
as an older report, counts as taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from titer.core.config import canonical, digest
from titer.core.errors import TiterError, nearest, visible
from titer.core.run import object_in, write_text

MARK = "question.json"
DIGITS = (6, 12, 24, 48)  # lengths of the suffix: a longer one is used if the shorter is taken


def find_report(run: str | Path, runs: Path) -> Path:
    """Returns a report's folder. `run`: that folder, or its name in `runs`. Errors: no report there; the message suggests a near name."""
    for place in (Path(run), runs / run):
        if (place / "report.html").is_file():
            return place
    known = sorted(p.parent.name for p in runs.glob("*/report.html"))
    close = nearest(str(run), known)
    raise TiterError(
        f"no report at {visible(str(run), 120)!r}",
        expected=f"a folder with report.html, or one of {', '.join(known)}" if known else "a folder that a titer command left",
        next_step=f"titer report {close}" if close else "",
    )


def report_folder(runs: Path, name: str, question: Mapping[str, Any]) -> Path:
    """Returns the folder for a question's report: the one that it already has, else the first free one, which is then marked as its own.

    Errors: every candidate belongs to another question.
    """
    key = digest(question, 64)
    places = [runs / name, *(runs / f"{name}-{key[:digits]}" for digits in DIGITS)]
    for place in places:
        if _held(place) == key:
            return place
    mark = json.dumps({"key": key, "question": json.loads(canonical(question))}, indent=1) + "\n"
    (runs / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(runs / "locks" / "places.lock"):  # without it, another process's half-written mark would look like another question's
        for place in places:
            if _held(place) == key or _taken(place, mark):
                return place
    raise TiterError(f"no free folder for the report {name} in {runs}", next_step="give another folder with --runs.")


def _held(place: Path) -> str:
    """Returns the key of the question that this folder belongs to; "" if it records none: there is no folder, it holds an older report, or
    its file was not written to its end."""
    return str(object_in(place / MARK).get("key", ""))


def _taken(place: Path, mark: str) -> bool:
    """Writes the mark if this folder is free; returns whether it was."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file of that name
        return False
    if any(not file.name.startswith(".") for file in place.iterdir()):  # an interrupted write leaves such a file
        return False
    write_text(place / MARK, mark)
    return True
