"""Independent pieces of work made on several processes, one thread each, before whoever wants them reads them from the store.

Small models leave a core idle when they train on two threads; two trainings at once do not. Every piece is an artefact of
the store, so whatever is made here is found afterwards, and nothing depends on how many processes made it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, Protocol

import torch

Progress = Callable[[int, int], None]


class Watcher(Protocol):
    """Who is told how far the pieces are."""

    def task(self, text: str) -> Progress: ...


class Silent:
    """A reporter of a process that nobody watches."""

    def task(self, text: str) -> Progress:
        return lambda done, of: None

    def tell(self, text: str) -> None:
        """Nothing."""


def processes() -> int:
    """One a core; one where a GPU does the work."""
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(make: Callable[..., None], pieces: Sequence[tuple[Any, ...]], watcher: Watcher, what: str) -> bool:
    """Call `make(*piece)` for every piece; with one process or one piece nothing is done and False said: the caller makes it itself.

    `make` is a module's function, and it keeps what it makes. Errors: the first piece's that fails, the others stopped.
    """
    workers = min(processes(), len(pieces))
    if workers < 2:
        return False
    progress = watcher.task(what)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_alone) as pool:
        asked = [pool.submit(make, *piece) for piece in pieces]
        try:
            for done, one in enumerate(as_completed(asked), start=1):
                one.result()
                progress(done, len(asked))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return True


def _alone() -> None:
    torch.set_num_threads(1)
