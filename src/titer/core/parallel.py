"""Where independent pieces of work are made: in this process, in processes of this machine, or on a cluster (ray_cluster.py).

Small models leave a core idle when they train on two threads; two trainings at once do not. Every piece is an artefact of
the store, so whatever is made elsewhere is found afterwards, and nothing depends on how many places made it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Protocol

import torch

Progress = Callable[[int, int], None]


class Work(NamedTuple):
    """A piece: `make(root)` keeps what it makes in the store at `root`, where it finds what was made before.

    `needs` are the artefacts (kind, key) that it reads, for places that do not see that folder; None: it reads files beside them.
    """

    make: Callable[[Path], None]
    root: Path
    needs: Sequence[tuple[str, str]] | None = ()


class Ended(NamedTuple):
    """A piece that is made, or why it is not; the ticket is what `submit` gave."""

    ticket: Hashable
    error: BaseException | None = None


class LostError(Exception):
    """A piece whose place went away: a killed process, a lost node, no memory. It may be begun again, and goes on where it was."""


class Places(Protocol):
    """Where pieces are made."""

    @property
    def count(self) -> int:
        """How many at once."""

    @property
    def told(self) -> str:
        """What they are, in words."""

    @property
    def alone(self) -> bool:
        """Whether this process makes a piece beside which no other can run, with all of its threads."""

    def submit(self, work: Work) -> Hashable:
        """Have a piece made."""

    def ended(self) -> list[Ended]:
        """Those of the pieces that ended since, at least one."""

    def stop(self, at_once: bool) -> None:
        """No more pieces; at once: those that are not begun are dropped, and nobody waits for the others."""


class Here:
    """This process, one piece at a time, with all of its threads."""

    count, told, alone = 1, "1", True

    def __init__(self) -> None:
        self._ended: list[Ended] = []

    def submit(self, work: Work) -> Hashable:
        ticket, error = object(), None
        try:
            work.make(work.root)
        except Exception as raised:  # noqa: BLE001  told by `ended`, as of a piece made elsewhere
            error = raised
        self._ended.append(Ended(ticket, error))
        return ticket

    def ended(self) -> list[Ended]:
        done, self._ended = self._ended, []
        return done

    def stop(self, at_once: bool) -> None:
        """Nothing runs."""


class Processes:
    """Workers of this machine, `threads` each: started when first needed, kept for all pieces of a run."""

    alone = True

    def __init__(self, count: int, threads: int = 1) -> None:
        self.count, self._threads = count, threads
        self.told = f"{count}, of {'one thread' if threads == 1 else f'{threads} threads'} each"
        self._pool: Executor | None = None
        self._running: set[Future[None]] = set()

    def submit(self, work: Work) -> Hashable:
        try:
            one = self._workers().submit(work.make, work.root)
        except BrokenProcessPool:  # a worker died; what it and its siblings were at is told by `ended`
            self._pool = None
            one = self._workers().submit(work.make, work.root)
        self._running.add(one)
        return one

    def _workers(self) -> Executor:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, spawn, initializer=_alone, initargs=(self._threads,))
        return self._pool

    def ended(self) -> list[Ended]:
        done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        return [Ended(one, _lost(one.exception())) for one in done]

    def stop(self, at_once: bool) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=not at_once, cancel_futures=at_once)
            self._pool = None


def _lost(error: BaseException | None) -> BaseException | None:
    return LostError("a process was killed, or ended by itself") if isinstance(error, BrokenProcessPool) else error


class Silent:
    """A reporter of a process that nobody watches."""

    def task(self, text: str) -> Progress:
        return lambda done, of: None

    def tell(self, text: str) -> None:
        """Nothing."""


def processes() -> int:
    """One a core; one where a GPU does the work."""
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alone(threads: int) -> None:
    """A worker's start: its threads of computation, and an end with its parent, which may be killed without a word to it."""
    torch.set_num_threads(threads)
    Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
