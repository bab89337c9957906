"""Folders of `--to`, into which a command puts a model: whole or not at all, and never over files that Titer did not write. L6."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from titer.commands.recorded_options import MARK
from titer.core.config import digest
from titer.core.errors import TiterError, visible
from titer.core.run import Store, write_text


def check_free(to: Path | None, key: str, others: Iterable[Path]) -> None:
    """Checks a folder before anything is made. Errors: `to` holds files that Titer did not write; it is, contains or is inside one of
    `others`."""
    if to is None:
        return
    place = to.resolve()
    for other in (one.resolve() for one in others):
        if place == other or place in other.parents or other in place.parents:
            raise TiterError(
                f"--to {visible(str(to), 120)!r} is the folder {visible(str(other), 120)}, contains it or is inside it",
                expected="a folder apart from those of the models and of the runs",
                next_step="give another folder.",
            )
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    stage, alone = _marked(place)
    if stage != key and not (stage and alone):
        raise TiterError(f"--to {visible(str(to), 120)!r} has files that Titer did not write", next_step="give a new or an empty folder.")


def put(to: Path, key: str, said: Mapping[str, Any], make: Callable[[Path], None], store: Store) -> Path:
    """Fills the folder `to` by `make(folder)`, and marks it with the key and the record `said`. Call `check_free` before.

    A folder that Titer made before is replaced once the new one is complete. A folder that already holds this model stays as it is. What
    a killed call left beside it is removed.
    """
    place = to.resolve()
    fresh, old = place.with_name(f".{place.name}.new"), place.with_name(f".{place.name}.old")
    with store.lock(store.root / "locks" / f"to-{digest(str(place))}.lock"):
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)
        if stands(to, key):
            return to
        try:
            make(fresh)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        files = sorted(str(file.relative_to(fresh)) for file in fresh.rglob("*") if file.is_file())
        write_text(fresh / MARK, json.dumps({"stage": key, "files": files, **said}) + "\n")
        if place.exists():
            place.rename(old)
        fresh.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    return to


def stands(to: Path, key: str) -> bool:
    """Tells whether a folder already holds the model with this key."""
    return _marked(to.resolve())[0] == key


def _marked(folder: Path) -> tuple[str, bool]:
    """Returns (the key of the model that Titer put into a folder, or ""; whether the folder has no other files)."""
    try:
        said = json.loads((folder / MARK).read_text(encoding="utf-8"))
        there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        return str(said["stage"]), there <= {*said["files"], MARK}
    except (OSError, ValueError, KeyError, TypeError):  # no mark, or not one of ours
        return "", False
