"""Pieces made ahead on two processes: found afterwards under the same keys, errors as their own, nothing with one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.studies.conftest import Listener
from tests.studies.huang2024.conftest import lab_under
from titer.core import parallel as module
from titer.core.errors import TiterError
from titer.core.parallel import Here, LostError, Processes, Silent, Work, processes
from titer.core.ray_cluster import places
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.studies.engine.schedule import Schedule
from titer.studies.huang2024.defences import Alignment, aligned_node

HOWS = (Alignment(SFT()), Alignment(Vaccine(rho=2.0)))


@pytest.fixture(scope="module", autouse=True)
def pieces_here() -> None:
    """Not here: in processes."""


def mark(folder: Path, name: str) -> None:
    """A piece of work: a file of one's own. Errors: the piece "bad"; the piece "dead" ends its process."""
    if name == "dead":
        os._exit(9)
    if name == "bad":
        raise TiterError("this piece cannot be made", expected="another", next_step="ask for another.", status=1)
    (folder / name).write_text(f"{torch.get_num_threads()}", encoding="utf-8")


def test_a_gpu_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes() >= 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes() == 1
    assert isinstance(places("processes"), Here)


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, whatever this machine has."""
    monkeypatch.setattr(module, "processes", lambda: 2)


@pytest.mark.usefixtures("two_processes")
def test_places_are_as_many_as_the_threads_of_a_piece_allow() -> None:
    two = places("processes")
    assert (two.count, two.told) == (2, "2, of one thread each")
    assert isinstance(places("processes", cpus=2), Here)
    with pytest.raises(TiterError, match="--piece-gpus"):
        places("processes", gpus=0.5)
    with pytest.raises(TiterError, match=r"--on 'slurm'.*processes, ray, auto"):
        places("slurm")


@pytest.mark.long
def test_pieces_run_on_one_thread_each_an_error_is_the_piece_s_own_and_a_dead_process_is_replaced(tmp_path: Path) -> None:
    workers = Processes(2)
    good = workers.submit(Work(partial(mark, name="good"), tmp_path))
    assert workers.ended() == [(good, None)]
    assert (tmp_path / "good").read_text(encoding="utf-8") == "1"
    _ = workers.submit(Work(partial(mark, name="bad"), tmp_path))
    (bad,) = workers.ended()
    assert isinstance(bad.error, TiterError)
    assert (bad.error.what, bad.error.status) == ("this piece cannot be made", 1)
    _ = workers.submit(Work(partial(mark, name="dead"), tmp_path))
    assert isinstance(workers.ended()[0].error, LostError)
    again = workers.submit(Work(partial(mark, name="again"), tmp_path))
    assert workers.ended() == [(again, None)]
    workers.stop(at_once=True)


def test_this_process_makes_a_piece_at_once(tmp_path: Path) -> None:
    here = Here()
    tickets = [here.submit(Work(partial(mark, name=name), tmp_path)) for name in ("good", "bad")]
    assert (tmp_path / "good").exists()
    assert [(one.ticket, type(one.error)) for one in here.ended()] == [(tickets[0], type(None)), (tickets[1], TiterError)]
    assert here.ended() == []


def test_workers_that_were_not_needed_were_never_started() -> None:
    Processes(2).stop(at_once=False)


@pytest.mark.long
@pytest.mark.usefixtures("two_processes")
def test_what_two_processes_made_is_found_with_the_same_bits(tmp_path: Path) -> None:
    s, alone = lab_under(tmp_path / "two"), lab_under(tmp_path / "one")
    assert s.model("base").key == alone.model("base").key
    names = s.add([aligned_node(s, how) for how in (*HOWS, HOWS[0])])
    _ = alone.add([aligned_node(alone, how) for how in HOWS])
    before = list(s.pipeline.store.made)
    assert not any(s.stands(name) for name in names)
    for _ in range(2):
        with Schedule([s], "huang2024") as work:
            work.want(s, names)
            work.until([s])
    assert all(s.stands(name) for name in names)
    found, own = [s.model(name) for name in names], [alone.model(name) for name in names]
    assert s.pipeline.store.made == before, "the main process made one again"
    for one, other in zip(found, own, strict=True):
        assert one.key == other.key
        files = [sorted(m.checkpoint.path.glob("*.safetensors")) for m in (one, other)]
        assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    told = s.pipeline.reporter
    assert isinstance(told, Listener)
    assert told.tasks.count("models of 1 base") == 1, "what stands is not asked for again"


def test_a_process_that_nobody_watches_tells_nobody() -> None:
    silent = Silent()
    silent.tell("nothing")
    silent.task("nothing")(1, 2)


PARENT = """
import os, pathlib, sys, time
from titer.core.parallel import Processes, Work
def told(root):
    (root / "pid").write_text(str(os.getpid()))
if __name__ == "__main__":
    workers, here = Processes(2), pathlib.Path(sys.argv[0]).parent
    workers.submit(Work(told, here))
    workers.ended()
    print((here / "pid").read_text(), flush=True)
    time.sleep(600)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells a process that ended from one that nobody has collected")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """They hold both ends of the queue they wait at, so nothing there tells them that nobody will ask again."""
    (tmp_path / "parent.py").write_text(PARENT, encoding="utf-8")
    words = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        status = Path(f"/proc/{int(parent.stdout.readline())}/status")
        parent.send_signal(signal.SIGKILL)
    for _ in range(600):
        if not status.exists() or "State:\tZ" in status.read_text(encoding="utf-8"):
            return
        time.sleep(0.1)
    raise AssertionError("the worker goes on")
