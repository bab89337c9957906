"""Runs independent pieces of work in this process, in several processes of this machine, or on a cluster (ray_cluster.py).

A small model that trains on two threads leaves cores idle; two trainings at once do not. Each piece is an artefact of the store, so
whatever another place makes is found afterwards, and results do not depend on the number of places.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Protocol

import torch

from titer.core.machine import cores

Progress = Callable[[int, int], None]


class Work(NamedTuple):
    """A piece of work. `make(root)` stores its results in the store at `root`, where it also finds earlier results.

    `needs`: the artefacts (kind, key) that it reads, for places that do not see the folder. None: it also reads other files.
    """

    make: Callable[[Path], None]
    root: Path
    needs: Sequence[tuple[str, str]] | None = ()


class Ended(NamedTuple):
    """A piece that has ended: its ticket, as returned by `submit`, and the error if it failed."""

    ticket: Hashable
    error: BaseException | None = None


class LostError(Exception):
    """Raised if a piece's place was lost: a killed process, a lost node, no memory. The piece can be started again and then goes on."""


class Places(Protocol):
    """Where pieces run: `Here`, `Processes`, or a `Cluster`."""

    @property
    def count(self) -> int:
        """How many pieces run at once."""

    @property
    def told(self) -> str:
        """The places in words, such as "4, of 2 threads each"."""

    @property
    def alone(self) -> bool:
        """Whether pieces that need the whole machine can run in this process, with all of its threads."""

    def submit(self, work: Work) -> Hashable:
        """Start a piece; returns its ticket."""

    def ended(self) -> list[Ended]:
        """Wait until a piece has ended; return all that ended since the last call."""

    def stop(self, at_once: bool) -> None:
        """End the places. `at_once`: drop pieces that have not started, and do not wait for the others."""


class Here:
    """This process: one piece at a time, with all threads."""

    count, told, alone = 1, "1", True

    def __init__(self) -> None:
        self._ended: list[Ended] = []

    def submit(self, work: Work) -> Hashable:
        ticket, error = object(), None
        try:
            work.make(work.root)
        except Exception as raised:  # noqa: BLE001  `ended` reports it, as for a piece that ran elsewhere
            error = raised
        self._ended.append(Ended(ticket, error))
        return ticket

    def ended(self) -> list[Ended]:
        done, self._ended = self._ended, []
        return done

    def stop(self, at_once: bool) -> None:
        """Do nothing: no piece is running."""


class Processes:
    """Worker processes on this machine, with `threads` threads each. They start when first needed and serve all pieces of a run."""

    alone = True

    def __init__(self, count: int, threads: int = 1) -> None:
        self.count, self._threads = count, threads
        self.told = f"{count}, of {'one thread' if threads == 1 else f'{threads} threads'} each"
        self._pool: Executor | None = None
        self._running: set[Future[None]] = set()

    def submit(self, work: Work) -> Hashable:
        try:
            one = self._workers().submit(work.make, work.root)
        except BrokenProcessPool:  # a worker died; `ended` reports the pieces that were lost
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
    """A reporter that shows nothing."""

    def task(self, text: str) -> Progress:
        return lambda done, of: None

    def tell(self, text: str) -> None:
        """Show nothing."""

    def running(self, pieces: Collection[str]) -> None:
        """Show nothing."""


def processes() -> int:
    """How many processes to use: one for each core, or a single one if there is a GPU."""
    return 1 if torch.cuda.is_available() else cores()


def _alone(threads: int) -> None:
    """Prepare a worker: set its number of threads, and let it end when its parent ends, even if the parent is killed."""
    torch.set_num_threads(threads)
    Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
