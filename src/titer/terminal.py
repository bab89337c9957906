"""Shows progress while a command works: bars with the time left on a terminal, plain lines elsewhere. L6."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from titer.core.errors import visible

LINE_EVERY = 15.0  # seconds between plain progress lines
TELLING = 0.05  # share of the work that must be done before the time left is estimated


class Terminal:
    """A pipeline's reporter that writes to stderr. Use it as a context manager; `tell` prints one line."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, transient=True) if sys.stderr.isatty() else None
        self._task: Any = None
        self._began: dict[str, float] = {}  # each running piece and when it began
        self._rows: dict[str, Any] = {}  # the same on a terminal: its row

    def __enter__(self) -> Terminal:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    @property
    def watched(self) -> bool:
        """Whether stderr is a terminal, so that a person sees the progress."""
        return self._progress is not None

    def tell(self, text: str) -> None:
        self._console.print(visible(text, 2000), soft_wrap=True)

    def running(self, pieces: Collection[str]) -> None:
        """Shows the pieces of the task that run now: each on a row of its own on a terminal, elsewhere on a line below the task's."""
        self._began = {one: self._began.get(one, time.monotonic()) for one in pieces}
        if self._progress:
            for one in self._rows.keys() - self._began.keys():
                self._progress.remove_task(self._rows.pop(one))
            for one in self._began.keys() - self._rows.keys():
                self._rows[one] = self._progress.add_task(f"  {visible(one, 200)}", total=None)

    def task(self, text: str):  # type: ignore[no-untyped-def]
        """Begins to show a piece of work; returns its progress function (done, total)."""
        return self._bar(text) if self._progress else self._lines(text)

    def _bar(self, text: str):  # type: ignore[no-untyped-def]
        assert self._progress is not None
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = mine = self._progress.add_task(visible(text, 200), total=None)
        progress = self._progress

        def advance(done: int, total: int) -> None:
            progress.update(mine, completed=done, total=total)

        return advance

    def _lines(self, text: str):  # type: ignore[no-untyped-def]
        self.tell(text)
        last, first = time.monotonic(), (0.0, 0)  # time and progress of the first report; what was done before it is not timed

        def advance(done: int, total: int) -> None:
            nonlocal last, first
            now = time.monotonic()
            first = first if first[1] else (now, done)
            if now - last >= LINE_EVERY:
                last = now
                self.tell(f"  {done} of {total}{_left(now - first[0], done - first[1], total - first[1])}")
                for piece, began in self._began.items():
                    self.tell(f"    {piece}: {_words(now - began)} so far")

        return advance


def _left(seconds: float, done: int, total: int) -> str:
    """Returns the time left, in words, after `seconds` of work; "" while too little is done to estimate it."""
    if done < max(2, TELLING * total):
        return ""
    return f", about {_words(seconds * (total - done) / done)} left"


def _words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
