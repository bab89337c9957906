"""The run store: content-addressed folders that are either complete or absent.

`runs/KIND/KEY/` holds one artefact (a stage's model, samples, verdicts, a probe's table). It is built in `runs/KIND/KEY.partial/`, then
gets a manifest with the sha256 of each file, then the file DONE, then its final name by one rename. A killed build leaves only the partial
folder, from which the next build may go on. Large files that are no longer needed may be deleted (`Store.empty`): the artefact stays valid
without them and lists their names. A lock for each folder keeps two processes apart; the system releases it when its holder dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from titer.core.config import canonical, digest, made_by
from titer.core.errors import TiterError, visible

Tell = Callable[[str], None]


def quiet(_: str) -> None:
    """Prints nothing: the `tell` of a silent store."""


def replaceable(path: Path, begins: bytes, what: str) -> Path:
    """Returns the path of a file to be written. Errors: a folder, or a file that does not begin as `what` does: it is the user's own."""
    if path.is_file():
        with path.open("rb") as file:
            own = file.read(len(begins)) not in (b"", begins)
    else:
        own = path.is_dir()
    if own:
        raise TiterError(f"{visible(str(path), 160)} is there, and is no {what}: it would be lost", next_step="give a new name.")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: under a temporary name of the writer's own, then a rename. Of two writers the last one wins.

    It is not flushed to the disk: a file damaged by a power cut is found by its checksum and built again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    os.replace(temporary, path)


def object_in(file: Path) -> dict[str, Any]:
    """Reads a JSON file's object; {} if the file is missing, cannot be read, or holds no object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256_of(path: Path) -> str:
    """Returns the hex sha256 of a file's bytes, which are read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


GONE = "EMPTIED"  # lists the files of an artefact that were deleted on purpose


def gone(folder: Path) -> set[str]:
    """Returns the names of the files that `Store.empty` deleted from an artefact; usually none."""
    try:
        return set(json.loads((folder / GONE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return set()


def files_under(folder: Path) -> dict[str, Path]:
    """Lists an artefact's files, without the store's own: relative name -> path."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    named = {p.relative_to(folder).as_posix(): p for p in found}
    return {name: p for name, p in named.items() if name not in ("manifest.json", "DONE", GONE)}


def damage(folder: Path) -> str:
    """Checks an artefact: returns "" if every file agrees with the manifest, else the first fault in words."""
    try:
        listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        if (folder / "DONE").read_text(encoding="utf-8").strip() != digest(listed):
            return "DONE does not match manifest.json"
    except (OSError, ValueError, KeyError, TypeError):
        return "manifest.json or DONE is missing or unreadable"
    present, served = files_under(folder), gone(folder)
    for name, expected in listed.items():
        if name in served:
            continue
        if name not in present:
            return f"{name} is missing"
        if sha256_of(present[name]) != expected:
            return f"{name} does not match its checksum"
    return ""


class DamagedError(Exception):
    """Raised for an artefact that was sent here and does not agree with its manifest."""


class Store:
    """The artefacts in one folder of runs. `tell` prints a line when the store waits for a lock or rebuilds something."""

    def __init__(self, root: Path, tell: Tell = quiet) -> None:
        self.root, self.tell = Path(root), tell
        self._sound: set[Path] = set()  # artefacts verified in this process, so that each file is hashed once
        self.made: list[str] = []

    def has(self, kind: str, key: str) -> bool:
        """Tells whether the artefact is complete (it has DONE). Its checksums are verified in `artefact`."""
        return (self.root / kind / key / "DONE").exists()

    def weights(self, key: str) -> str:
        """Returns the sha256 of each file of a stage's model weights, from its manifest; "" for a model that no stage made."""
        try:
            listed = json.loads((self.root / "stages" / key / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        except OSError:
            return ""
        return ", ".join(sha for name, sha in sorted(listed.items()) if name.startswith("model/") and name.endswith(".safetensors"))

    def maker(self, key: str) -> str:
        """Returns the processor and the number of threads that made a stage; "" for a model that no stage made, or an older record."""
        try:
            made = json.loads((self.root / "stages" / key / "manifest.json").read_text(encoding="utf-8"))["made"]
        except (OSError, KeyError):
            return ""
        return f"{made['processor']}, {made['threads']} thread{'s' if made['threads'] != '1' else ''}"

    def artefact(self, kind: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """Returns the folder of the artefact that `inputs` determine; if it is absent or damaged, `make(partial folder)` builds it."""
        key = digest(inputs)
        folder = self.root / kind / key
        if folder in self._sound:
            return folder
        with self.lock(self.root / kind / f"{key}.lock"):
            if folder.exists():
                fault = damage(folder)
                if not fault:
                    self._sound.add(folder)
                    return folder
                self.tell(f"{kind}/{key} is damaged ({fault}); it is built again")
                folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)  # of an artefact on another disk the link alone
            self._build(folder, inputs, make)
        self._sound.add(folder)
        self.made.append(f"{kind}/{key}")
        return folder

    def take(self, kind: str, key: str, files: Mapping[str, Iterable[bytes]]) -> None:
        """Store an artefact that was made elsewhere, with its manifest, unless it is here. Errors: it does not agree with the manifest."""
        folder = self.root / kind / key
        with self.lock(self.root / kind / f"{key}.lock"):
            if self.has(kind, key):
                return
            arriving = folder.with_name(folder.name + ".arriving")
            shutil.rmtree(arriving, ignore_errors=True)
            for name, chunks in files.items():
                (arriving / name).parent.mkdir(parents=True, exist_ok=True)
                with open(arriving / name, "wb") as file:
                    file.writelines(chunks)
            if fault := damage(arriving):
                raise DamagedError(f"{kind}/{key} arrived damaged: {fault}")
            for begun in (folder, folder.with_name(folder.name + ".partial")):
                shutil.rmtree(begun, ignore_errors=True)
            os.rename(arriving, folder)

    def empty(self, kind: str, key: str, suffix: str) -> None:
        """Delete the files with a suffix from a complete artefact, and list their names in it. The other files stay."""
        folder = self.root / kind / key
        with self.lock(self.root / kind / f"{key}.lock"):
            names = {name for name in files_under(folder) if name.endswith(suffix)} | gone(folder)
            write_text(folder / GONE, json.dumps(sorted(names)) + "\n")  # before the deletion, so that a killed call leaves no damage
            for name in names:
                (folder / name).unlink(missing_ok=True)

    def forget(self, kind: str, key: str) -> None:
        """Delete a whole artefact, so that it is made again."""
        with self.lock(self.root / kind / f"{key}.lock"):
            self._sound.discard(self.root / kind / key)
            shutil.rmtree(self.root / kind / key, ignore_errors=True)

    def _build(self, folder: Path, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> None:
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        write_text(partial / "inputs.json", canonical(inputs) + "\n")
        make(partial)
        for leftover in partial.rglob("*.tmp"):
            leftover.unlink()
        listed = {name: sha256_of(path) for name, path in files_under(partial).items()}
        write_text(partial / "manifest.json", json.dumps({"sha256": listed, "made": made_by()}, indent=1) + "\n")
        write_text(partial / "DONE", digest(listed) + "\n")
        os.rename(partial, folder)

    @contextmanager
    def lock(self, path: Path, patience: float = -1.0) -> Iterator[None]:
        """Holds the lock `path` in a `with` block. While it waits, it reports the holder. `patience`: seconds to wait; below 0: for ever.

        Errors: another process still holds it after `patience`.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = path.with_suffix(".owner")
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.tell(f"waiting for {path.stem}: {_holder(owner)} works on it")
            try:
                lock.acquire(timeout=patience)
            except Timeout:
                raise TiterError(
                    f"{path.stem} in {path.parent} is in use: {_holder(owner)} works on it",
                    next_step="wait for it to end, or give another folder with --runs.",
                    status=1,
                ) from None
        try:
            owner.write_text(f"process {os.getpid()}\n", encoding="utf-8")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()


def _holder(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8").strip() or "another process"
    except OSError:  # released, or not yet written
        return "another process"


def slug(name: str) -> str:
    """Turns a name into one that is fit for a folder: other characters than letters, digits, "-", "_" and "." become "-"."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name) or "model"
