"""Runs pieces of work on a Ray cluster: one that is started for the run and stopped after it, or one that is already running.

Ray schedules the pieces and watches them; their results are artefacts of the store, as everywhere. A node that sees the run folder works
in it. To a node that does not, the artefacts that a piece reads are sent, and its results come back in chunks that the driver requests
one by one. Only the driver adds them to the store, once each file agrees with the manifest. Results stay on such a node until the run
ends well, so a piece that is started again there goes on where it was.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from titer.core import parallel
from titer.core.errors import TiterError
from titer.core.machine import cores
from titer.core.parallel import Ended, Here, LostError, Places, Processes, Work
from titer.core.run import DamagedError, Store, files_under, write_text

LOOK_EVERY, LOST_FOR = 30.0, 600.0  # seconds between looks at the nodes while nothing ends; how long none may stand
CHUNK = 8 * 2**20  # bytes of a file that are sent as one object
MARK = ".ray"  # a file in the run folder with a random name for it: a node that can read this name sees the folder


class File(NamedTuple):
    """A file of an artefact on another node."""

    kind: str
    key: str
    name: str
    size: int


class Made(NamedTuple):
    """A task's answer. `lacks`: artefacts that it reads are missing. `node`: the node whose own folder has `files`; "": the run folder."""

    lacks: bool = False
    node: str = ""
    files: tuple[File, ...] = ()


def places(on: str, cpus: int = 1, gpus: float | None = None, memory: float | None = None) -> Places:
    """Returns the places that `on` names. Each piece gets `cpus` threads, `gpus` GPUs (or a share of one) and `memory` GiB.

    "here": this process, one piece after another. "processes": processes of this machine, or this process if there is room for only one.
    "ray": a cluster on this machine, started now. "auto" or "ray://HOST:PORT": a running cluster. Errors: another word; Ray is not
    installed, or does not answer; no node is large enough; `gpus` or `memory` without Ray.
    """
    if on in ("here", "processes"):
        if gpus is not None or memory is not None:
            raise TiterError(f"--piece-gpus and --piece-memory need Ray, and --on is {on}", next_step="add --on ray.")
        if on == "here":
            return Here()
        count = parallel.processes() // cpus
        return Processes(count, cpus) if count > 1 else Here()
    if on in ("ray", "auto") or on.startswith("ray://"):
        return Cluster(on, cpus, gpus, memory)
    raise TiterError(f"--on {on!r} is not known", expected="here, processes, ray, auto, or ray://HOST:PORT")


class Cluster:
    """Places on a Ray cluster (see `parallel.Places`)."""

    alone = False  # the driver may be a laptop

    def __init__(self, on: str, cpus: int, gpus: float | None, memory: float | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise TiterError(f"--on {on} needs Ray, which is not installed", next_step="pip install 'titer[ray]'")
        self._threads, self._mine = cpus, _connect(on)
        cards = any("GPU" in node for node in _nodes())
        self._each = {"CPU": float(cpus), "GPU": float(cards) if gpus is None else gpus, "memory": (memory or 0.0) * 2**30}
        self._running: dict[Any, tuple[Hashable, Work]] = {}
        self._sent: dict[tuple[str, str], list[tuple[File, list[Any]]]] = {}
        self._apart: set[str] = set()  # nodes that do not see the run folder
        self._mark = ""
        for _ in range(120):  # wait up to a minute: lost nodes may come back
            if any(node.get("CPU") for node in _nodes()):
                break
            time.sleep(0.5)
        if not self._room():
            there = _nodes()
            self.stop(at_once=True)
            raise TiterError(
                f"no node of the Ray cluster has {self._asked}",
                expected=f"--piece-cpus, --piece-gpus and --piece-memory that fit on one node; the nodes have: {there}",
            )

    @property
    def _asked(self) -> str:
        cpus, gpus, memory = self._each.values()
        return f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "") + (f" and {memory / 2**30:g} GiB" if memory else "")

    def _room(self) -> int:
        wanted = {name: of for name, of in self._each.items() if of}
        return sum(min(int(node.get(name, 0.0) / of + 1e-9) for name, of in wanted.items()) for node in _nodes())

    @property
    def count(self) -> int:
        """How many pieces the live nodes have room for; at least one, since lost nodes may come back."""
        return max(1, self._room())

    @property
    def told(self) -> str:
        return f"{self._room()} at once on {len(_nodes())} nodes of Ray, each with {self._asked}"

    def submit(self, work: Work) -> Hashable:
        ticket = object()
        self._begin(ticket, work)
        return ticket

    def _begin(self, ticket: Hashable, work: Work) -> None:
        import ray  # noqa: PLC0415

        if not self._mark:
            self._mark = _marked(work.root)
        sent = [self._put(Store(work.root), *one) for one in work.needs or ()] if self._apart else None
        cpus, gpus, memory = self._each.values()
        task = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus, memory=memory or None, max_retries=0)
        self._running[task.remote(work, self._mark, self._threads, sent)] = ticket, work

    def _put(self, store: Store, kind: str, key: str) -> list[tuple[File, list[Any]]]:
        """Put an artefact's files into Ray's object store, in chunks."""
        import ray  # noqa: PLC0415

        if (kind, key) not in self._sent:
            folder = store.root / kind / key
            self._sent[kind, key] = [
                (one, [ray.put(_chunk(folder / one.name, at)) for at in range(0, one.size, CHUNK)]) for one in _listed(folder)
            ]
        return self._sent[kind, key]

    def ended(self) -> list[Ended]:
        import ray  # noqa: PLC0415

        found, stood = list[Ended](), time.monotonic()
        while not found:
            done, _ = ray.wait(list(self._running), timeout=LOOK_EVERY)
            if done or self._room():
                stood = time.monotonic()
            elif time.monotonic() - stood >= LOST_FOR:  # Ray itself would wait for ever
                raise TiterError(
                    f"for {LOST_FOR / 60:.0f} minutes no node of the cluster has had {self._asked}",
                    next_step="start a node, then run the same command again: what is made stands.",
                    status=1,
                )
            for one in done:
                ticket, work = self._running.pop(one)
                try:
                    made: Made = ray.get(one)
                    if made.node:
                        self._apart.add(made.node)
                    if made.lacks:
                        self._begin(ticket, work)
                        continue
                    self._take(made, work.root)
                    found.append(Ended(ticket))
                except (ray.exceptions.RayError, DamagedError) as error:
                    found.append(Ended(ticket, _own_or_lost(error)))
        return found

    def _take(self, made: Made, root: Path) -> None:
        """Fetch what a node made in its own folder and the run folder lacks. If the node is lost meanwhile, Ray raises the error."""
        store = Store(root)
        for kind, key in dict.fromkeys((one.kind, one.key) for one in made.files):
            files = [one for one in made.files if (one.kind, one.key) == (kind, key)]
            if not store.has(kind, key):
                store.take(kind, key, {one.name: self._chunks(made.node, one) for one in files})

    def _chunks(self, node: str, file: File) -> Iterator[bytes]:
        import ray  # noqa: PLC0415

        read = ray.remote(_read).options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node))
        for at in range(0, file.size, CHUNK):
            yield ray.get(read.remote(self._mark, file, at))

    def stop(self, at_once: bool) -> None:
        import ray  # noqa: PLC0415

        if at_once:
            for one in self._running:
                ray.cancel(one, force=True)
        else:
            for node in self._apart:
                ray.wait([ray.remote(_clean).options(num_cpus=0, scheduling_strategy=_on(node)).remote(self._mark)], timeout=60)
        if self._mine:
            ray.shutdown()


def _connect(on: str) -> bool:
    """Start or join Ray; False if it was connected before. A started cluster listens on this machine only, with its own key."""
    import ray  # noqa: PLC0415

    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
    logging.getLogger("ray").setLevel(logging.ERROR)
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if on == "ray":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # without it, Ray stores one in the user's home folder
        how |= {"num_cpus": cores(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init("local" if on == "ray" else on, **how)
    except Exception as error:  # starting Ray raises plain exceptions too
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise TiterError(
            f"no Ray cluster for --on {on}: {told[0]}",
            next_step="if the machine was busy, run the same command again."
            if on == "ray"
            else "start one there (ray start --head), or give --on ray, which starts one on this machine.",
            status=1,
        ) from error
    return True


def _nodes() -> list[Mapping[str, float]]:
    """Returns the resources of each live node."""
    import ray  # noqa: PLC0415

    return [
        {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU", "memory") if name in node["Resources"]}
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def _own_or_lost(error: Exception) -> Exception:
    """The error that a piece raised itself; or LostError, if its node was lost or an artefact arrived damaged."""
    import ray  # noqa: PLC0415

    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception) else error
    if isinstance(cause, DamagedError) or (
        isinstance(cause, ray.exceptions.RayError) and not isinstance(cause, ray.exceptions.RayTaskError)
    ):
        return LostError(f"{type(cause).__name__}: {str(cause).splitlines()[0]}")
    return cause


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _marked(root: Path) -> str:
    """Returns the run folder's random name, which is made once and then kept in the folder."""
    if not (root / MARK).exists():
        write_text(root / MARK, secrets.token_hex(16))
    return (root / MARK).read_text(encoding="utf-8")


def _scratch(mark: str) -> Path:
    """Returns the folder in which a node works if it does not see the run folder."""
    return Path(tempfile.gettempdir()) / f"titer-{mark}"


def _task(work: Work, mark: str, threads: int, sent: list[list[tuple[File, list[Any]]]] | None) -> Made:
    """Runs a piece on a node, in the run folder or in the node's own folder."""
    import ray  # noqa: PLC0415
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)
    try:
        shared = (work.root / MARK).read_text(encoding="utf-8") == mark
    except OSError:
        shared = False
    if shared:
        work.make(work.root)
        return Made()
    node = ray.get_runtime_context().get_node_id()
    if work.needs is None:
        raise TiterError(
            f"a node of the Ray cluster cannot see the folder {work.root}",
            next_step="give a folder that all nodes share, with --runs FOLDER.",
        )
    if sent is None:
        return Made(lacks=True, node=node)
    store = Store(_scratch(mark))
    store.root.mkdir(mode=0o700, exist_ok=True)
    for files in sent:
        kind, key = files[0][0].kind, files[0][0].key
        if not store.has(kind, key):
            store.take(kind, key, {one.name: map(ray.get, refs) for one, refs in files})
    work.make(store.root)
    return Made(
        node=node,
        files=tuple(one for done in sorted(store.root.glob("*/*/DONE")) if "." not in done.parent.name for one in _listed(done.parent)),
    )


def _listed(folder: Path) -> list[File]:
    """Lists all files of an artefact, with the store's own."""
    names = [*files_under(folder), "manifest.json", "DONE"]
    return [File(folder.parent.name, folder.name, name, (folder / name).stat().st_size) for name in names]


def _chunk(file: Path, at: int) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(at)
        return opened.read(CHUNK)


def _read(mark: str, file: File, at: int) -> bytes:
    """Reads, on a node, one chunk of a file that the node made."""
    return _chunk(_scratch(mark) / file.kind / file.key / file.name, at)


def _clean(mark: str) -> None:
    """Deletes, on a node, the node's own folder, once its results were fetched."""
    shutil.rmtree(_scratch(mark), ignore_errors=True)
