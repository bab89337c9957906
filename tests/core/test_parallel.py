"""Pieces made ahead on two processes: found afterwards under the same keys, errors as their own, nothing with one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from tests.studies.conftest import Listener
from tests.studies.huang2024.conftest import lab_under
from titer.core import parallel as module
from titer.core.errors import TiterError
from titer.core.parallel import Processes, Silent, ended, processes
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
    assert Processes().places == 1


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, whatever this machine has."""
    monkeypatch.setattr(module, "processes", lambda: 2)


@pytest.mark.usefixtures("two_processes")
def test_pieces_run_on_one_thread_each_and_an_error_is_the_piece_s_own_a_dead_process_one_too(tmp_path: Path) -> None:
    workers = Processes()
    good = workers.submit(mark, tmp_path, "good")
    assert set(ended([good])) == {good}
    assert (tmp_path / "good").read_text(encoding="utf-8") == "1"
    with pytest.raises(TiterError, match="this piece cannot be made") as caught:
        ended([workers.submit(mark, tmp_path, "bad")])
    assert (caught.value.what, caught.value.status) == ("this piece cannot be made", 1)
    with pytest.raises(BrokenProcessPool):
        ended([workers.submit(mark, tmp_path, "dead")])
    workers.stop(at_once=True)


def test_workers_that_were_not_needed_were_never_started() -> None:
    Processes().stop(at_once=False)


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
    assert told.tasks.count("models of 1 bases") == 1, "what stands is not asked for again"


def test_a_process_that_nobody_watches_tells_nobody() -> None:
    silent = Silent()
    silent.tell("nothing")
    silent.task("nothing")(1, 2)


PARENT = """
import time
from titer.core.parallel import Processes
if __name__ == "__main__":
    workers = Processes()
    print(workers.submit(__import__("os").getpid).result(), flush=True)
    time.sleep(600)
"""


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
