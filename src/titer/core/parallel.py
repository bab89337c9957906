"""Independent pieces of work made on several processes, one thread each, before whoever wants them reads them from the store.

Small models leave a core idle when they train on two threads; two trainings at once do not. Every piece is an artefact of
the store, so whatever is made here is found afterwards, and nothing depends on how many processes made it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from threading import Thread
from typing import Any, Protocol

import torch

Progress = Callable[[int, int], None]


class Workers(Protocol):
    """Where pieces are made: in processes of this machine, or wherever else there are places for them.

    `places` is how many are made at once; with one the caller makes them itself.
    """

    places: int

    def submit(self, make: Callable[..., None], *piece: Any) -> Future[None]:
        """Have `make(*piece)` called elsewhere: a module's function, which keeps what it makes."""

    def stop(self, at_once: bool) -> None:
        """No more pieces; at once: those that are not begun are dropped, and nobody waits for the others."""


class Processes:
    """Workers of this machine: started when first needed, kept for all pieces of a run."""

    def __init__(self) -> None:
        self.places = processes()
        self._pool: Executor | None = None

    def submit(self, make: Callable[..., None], *piece: Any) -> Future[None]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.places, multiprocessing.get_context("spawn"), initializer=_alone)
        return self._pool.submit(make, *piece)

    def stop(self, at_once: bool) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=not at_once, cancel_futures=at_once)
            self._pool = None


class Silent:
    """A reporter of a process that nobody watches."""

    def task(self, text: str) -> Progress:
        return lambda done, of: None

    def tell(self, text: str) -> None:
        """Nothing."""


def processes() -> int:
    """One a core; one where a GPU does the work."""
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ended(running: Collection[Future[None]]) -> Collection[Future[None]]:
    """Those of these pieces that are made, at least one. Errors: that of a piece that failed, as it raised it; a process that died."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for one in done:
        one.result()
    return done


def _alone() -> None:
    """A worker's start: one thread of computation, and an end with its parent, which may be killed without a word to it."""
    torch.set_num_threads(1)
    Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
