"""What a folder of runs holds, and how much of it may go. L0.

Everything there can be made again by the command that made it, so taking a piece away loses time alone; a trained model (`stages`)
loses most. What another process works on is left. A piece goes by one rename and then file by file: a killed call leaves rubbish that
no one takes for a piece, and that the next call removes.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from titer.core.errors import TiterError, unknown, visible
from titer.core.run import gone

KEY = re.compile(r"[0-9a-f]{8,64}")
UNFINISHED = "unfinished"
REPLIES = "replies"  # of judges that ask another model: one small file each, two folders deep
TRASH = ".gone"
DAY = 86400.0


@dataclass(frozen=True)
class Piece:
    """One artefact: where it is, what it is, its bytes, when it was made; `state` is "", "unfinished" or "weights deleted"."""

    kind: str
    key: str
    folder: Path
    about: str
    size: int
    made: float
    state: str

    def named(self, word: str) -> bool:
        """Whether a word of the command line means it: its kind, its state, or the beginning of its key."""
        own = self.state == UNFINISHED and word == UNFINISHED
        return own or (word == self.kind and self.state != UNFINISHED) or (len(word) >= 6 and self.key.startswith(word))


@dataclass(frozen=True)
class Page:
    """A report: its folder's name, its answer in a sentence, its bytes."""

    name: str
    answer: str
    size: int


def pieces(root: Path) -> list[Piece]:
    """Every artefact under a folder of runs, the largest first. Errors: no such folder."""
    if not root.is_dir():
        raise TiterError(f"no folder of runs at {visible(str(root), 120)!r}", next_step="give the folder with --runs DIR.")
    return sorted(_pieces(root), key=lambda piece: -piece.size)


def _pieces(root: Path) -> Iterator[Piece]:
    for folder in sorted(p for p in root.glob("*/*") if p.is_dir() and p.parent.name != REPLIES):
        key, _, ending = folder.name.partition(".")
        whole = not ending and (folder / "DONE").is_file()
        if KEY.fullmatch(key) and (whole or ending in ("partial", TRASH[1:])):
            state = UNFINISHED if not whole else "weights deleted" if gone(folder) else ""
            yield Piece(folder.parent.name, key, folder, _about(folder), _size(folder), folder.stat().st_mtime, state)
    for folder in sorted(p for p in (root / REPLIES).glob("*") if p.is_dir()):
        yield Piece(REPLIES, folder.name, folder, "", _size(folder), folder.stat().st_mtime, "")


def pages(root: Path) -> list[Page]:
    """Every report under a folder of runs."""
    found = []
    for page in sorted(root.glob("*/report.html")):
        try:
            said = json.loads((page.parent / "summary.json").read_text(encoding="utf-8"))
            answer = str(said["answer"])
        except (OSError, ValueError, KeyError, TypeError):  # an older report
            answer = ""
        found.append(Page(page.parent.name, answer, _size(page.parent)))
    return found


def chosen(held: Sequence[Piece], words: Sequence[str], days: float = 0.0) -> list[Piece]:
    """The pieces that the words mean and that are older than some days. Errors: a word that means none, but UNFINISHED."""
    for word in words:
        if word != UNFINISHED and not any(piece.named(word) for piece in held):
            unknown("kind or key", word, {piece.kind for piece in held} | {UNFINISHED}, next_step="titer runs lists what is there.")
    before = time.time() - days * DAY
    return [piece for piece in held if any(piece.named(word) for word in words) and piece.made <= before]


def prune(doomed: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """(taken away, left because another process works on them)."""
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
        except FileNotFoundError:  # another process took it away
            continue
    return went, left


def _about(folder: Path) -> str:
    """What a piece's inputs say of it in a few words."""
    try:
        inputs = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
        told = inputs["stage"]["name"] if "stage" in inputs else inputs.get("probe", inputs.get("study", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of another version
        return ""
    return visible(str(told[0] if isinstance(told, list) and told else told), 60)


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
