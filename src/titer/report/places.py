"""Where reports lie: found by folder, or by name in the folder of runs; and where the report of a user's models goes. L5.

A folder's plain name (`audit-tuned`) says little of what was asked: of two models of one name, on other data, by another judge.
So the same question goes to the same folder, and another question never over it: each folder holds its question in `question.json`,
and one whose plain name is taken gets the first digits of its key behind it (`audit-tuned-1a2b3c`). A folder without that file, an
older report or anything else, is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from titer.core.config import canonical, digest
from titer.core.errors import TiterError, nearest, visible
from titer.core.run import write_text

MARK = "question.json"
DIGITS = (6, 12, 24, 48)  # a longer suffix where a shorter one is taken


def find_report(run: str | Path, runs: Path) -> Path:
    """The report's folder. Errors: none there, with the nearest."""
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
    """The folder of a question's report: where it stands already, else the first that is free, which is then taken for it.

    Errors: every place is another's.
    """
    key = digest(question, 64)
    places = [runs / name, *(runs / f"{name}-{key[:digits]}" for digits in DIGITS)]
    for place in places:
        if _held(place) == key:
            return place
    mark = json.dumps({"key": key, "question": json.loads(canonical(question))}, indent=1) + "\n"
    (runs / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(runs / "locks" / "places.lock"):  # a mark that another process has half written would look like another's
        for place in places:
            if _held(place) == key or _taken(place, mark):
                return place
    raise TiterError(f"no free folder for the report {name} in {runs}", next_step="give another folder with --runs.")


def _held(place: Path) -> str:
    """The key of the question whose folder this is; "" where it says none."""
    try:
        found = json.loads((place / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no folder, an older report, a torn file
        return ""
    return str(found.get("key", "")) if isinstance(found, dict) else ""


def _taken(place: Path, mark: str) -> bool:
    """Whether this folder was free and now holds the mark."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file of that name
        return False
    if any(not file.name.startswith(".") for file in place.iterdir()):  # a write that was cut short leaves such a file
        return False
    write_text(place / MARK, mark)
    return True
