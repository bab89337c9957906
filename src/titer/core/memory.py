"""Keeps answers (such as judges' replies) on disk: a hash of what was asked names one small file with the answer.

`folder/ab/abcdef....json` holds `{"key", "sha256", "answer"}`. A file appears whole or not at all (`run.write_text`), so a killed
writer loses one answer at most. Two processes may share the folder: the first answer stays. A damaged file counts as absent.
Only the hash of what was asked is stored, so no text becomes a file name.
"""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

from titer.core.config import canonical, digest
from titer.core.run import write_text

KEY = re.compile(r"[0-9a-f]{64}")


def content_key(asked: Any) -> str:
    """Returns the key of what was asked: the sha256 of its canonical JSON, 64 hex digits."""
    return digest(asked, 64)


class Memory:
    """Stored answers (JSON values other than None) under a folder, safe for threads and processes.

    `unsaved` counts answers that could not be written (a full disk): this process still knows them, the next one will not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.unsaved = Path(folder), 0
        self._held: dict[str, str] = {}  # canonical JSON, so that no caller can change what another reads
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """Returns the answer under a key; None if there is none or its file is damaged."""
        path = self._path(key)
        if key in self._held:
            return json.loads(self._held[key])
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            sound = read["key"] == key and read["sha256"] == digest(read["answer"])
            return read["answer"] if sound else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # absent, cut short, or no record of ours
            return None

    def put(self, key: str, answer: Any) -> None:
        """Stores an answer, unless there is one already. Errors: None, or a value that is not JSON."""
        if answer is None:
            raise ValueError("None stands for no answer and cannot be kept")
        if self.get(key) is not None:
            return
        text = canonical({"key": key, "sha256": digest(answer), "answer": answer})
        try:
            write_text(self._path(key), text + "\n")
        except OSError:  # it was paid for: this run goes on with it
            with self._lock:
                self._held[key] = canonical(answer)
                self.unsaved += 1

    def _path(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError("a key is 64 hex digits")
        return self.folder / key[:2] / f"{key}.json"
