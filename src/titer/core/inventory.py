"""Lists what a folder of runs holds, and deletes parts of it. Layer 0, the core.

Every piece can be made again by the command that made it, so deleting a piece costs only time; a trained model (`stages`) costs most. A
piece that another process is using is not deleted. A piece is first renamed, then deleted file by file: what a killed call leaves is not
mistaken for a piece, and the next call removes it.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from titer.core.errors import TiterError, unknown, visible
from titer.core.run import gone, object_in

KEY = re.compile(r"[0-9a-f]{8,64}")
UNFINISHED = "unfinished"
REPLIES = "replies"  # replies of judges' models: one small file each, two folders deep
TRASH = ".gone"
DAY = 86400.0


@dataclass(frozen=True)
class Piece:
    """A stored artefact. `about`: a few words on it. `size`: bytes. `made`: its time, in seconds since 1970. `state`: "" (complete),
    "unfinished" or "weights deleted"."""

    kind: str
    key: str
    folder: Path
    about: str
    size: int
    made: float
    state: str

    def named(self, word: str) -> bool:
        """Tells whether a word of the command line names this piece: its kind, "unfinished", or the first six or more digits of its key."""
        own = self.state == UNFINISHED and word == UNFINISHED
        return own or (word == self.kind and self.state != UNFINISHED) or (len(word) >= 6 and self.key.startswith(word))


@dataclass(frozen=True)
class Page:
    """A report: its folder's name, its finding in a sentence, its size in bytes."""

    name: str
    answer: str
    size: int


def pieces(root: Path) -> list[Piece]:
    """Lists all artefacts in a folder of runs, the largest first. Errors: there is no such folder."""
    if not root.is_dir():
        raise TiterError(f"no folder of runs at {visible(str(root), 120)!r}", next_step="give the folder with --runs DIR.")
    return sorted(_pieces(root), key=lambda piece: -piece.size)


def _pieces(root: Path) -> Iterator[Piece]:
    names = _names(root)
    for folder in sorted(p for p in root.glob("*/*") if p.is_dir() and p.parent.name != REPLIES):
        key, _, ending = folder.name.partition(".")
        whole = not ending and (folder / "DONE").is_file()
        if KEY.fullmatch(key) and (whole or ending in ("partial", TRASH[1:])):
            state = UNFINISHED if not whole else "weights deleted" if gone(folder) else ""
            yield Piece(folder.parent.name, key, folder, _about(folder, names), _size(folder), folder.stat().st_mtime, state)
    for folder in sorted(p for p in (root / REPLIES).glob("*") if p.is_dir()):
        yield Piece(REPLIES, folder.name, folder, "", _size(folder), folder.stat().st_mtime, "")


def pages(root: Path) -> list[Page]:
    """Lists all reports in a folder of runs."""
    found = []
    for page in sorted(root.glob("*/report.html")):
        answer = str(object_in(page.parent / "summary.json").get("answer", ""))  # none in an older report
        found.append(Page(page.parent.name, answer, _size(page.parent)))
    return found


def chosen(held: Sequence[Piece], words: Sequence[str], days: float = 0.0) -> list[Piece]:
    """Chooses the pieces that the words name and that are older than `days`. Errors: a word other than `unfinished` names no piece."""
    for word in words:
        if word != UNFINISHED and not any(piece.named(word) for piece in held):
            unknown("kind or key", word, {piece.kind for piece in held} | {UNFINISHED}, next_step="titer runs lists what is there.")
    before = time.time() - days * DAY if days else math.inf  # a piece may be dated in the future, from another machine's clock
    return [piece for piece in held if any(piece.named(word) for word in words) and piece.made <= before]


def prune(doomed: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Deletes pieces. Returns (the deleted ones, those left because another process is using them)."""
    went, left = [], []
    for piece in doomed:
        rubbish = piece.folder if piece.folder.name.endswith(TRASH) else piece.folder.with_name(f"{piece.key}{TRASH}")
        try:
            with FileLock(piece.folder.parent / f"{piece.key}.lock", timeout=0):
                if rubbish != piece.folder:
                    shutil.rmtree(rubbish, ignore_errors=True)
                    piece.folder.rename(rubbish)
                shutil.rmtree(rubbish)
            went.append(piece)
        except Timeout:
            left.append(piece)
        except FileNotFoundError:  # another process deleted it
            continue
    return went, left


def _about(folder: Path, names: Mapping[str, str]) -> str:
    """Describes a piece in a few words, from its inputs; "" if they say nothing. `names`: model's key -> its name."""
    inputs = object_in(folder / "inputs.json")
    if samples := inputs.get("samples"):  # judged answers: those of the piece of answers
        inputs = object_in(folder.parent.parent / "samples" / str(samples) / "inputs.json")
    stage = inputs.get("stage")
    words = [*_list(inputs.get("probe"))[:1], *_list(inputs.get("study"))[:2]]
    if isinstance(stage, dict):
        words = [f"{stage.get('kind')} by {''.join(map(str, _list(inputs.get('method'))[:1]))}", f"{stage.get('steps')} steps"]
    keys = [folder.name] if stage else [*_list(inputs.get("model")), *_list(inputs.get("models"))]
    models = [names.get(str(one), f"model {str(one)[:8]}") for one in keys]
    return visible(": ".join(filter(None, (" and ".join(models), ", ".join(filter(None, map(str, words)))))), 80)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _names(root: Path) -> dict[str, str]:
    """Returns model's key -> its name, as the reports give it."""
    said = [object_in(page.parent / "summary.json").get("provenance") for page in root.glob("*/report.html")]
    told = [(str(key), name) for one in said if isinstance(one, dict) for name, key in one.items() if name.startswith("model ")]
    return {key: visible(name.removeprefix("model "), 60) for key, name in told}


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
