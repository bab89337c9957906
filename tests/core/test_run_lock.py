"""The store's lock between real processes: who waits is told for whom, and the dead hold nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from titer.core.errors import TiterError
from titer.core.run import Store

HOLD = """
import sys
from pathlib import Path
from titer.core.run import Store

with Store(Path(sys.argv[1])).lock(Path(sys.argv[1]) / "abc.lock"):
    print("held", flush=True)
    sys.stdin.readline()
"""

BUILD = """
import sys, time
from pathlib import Path
from titer.core.run import Store, write_text

def make(work):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(0.3)
    write_text(work / "table.txt", "one")

print(Store(Path(sys.argv[1])).artefact("tables", {"seed": 1}, make))
"""


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until a line is sent to it, or it is killed."""
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_the_second_process_says_who_holds_the_lock_and_gives_up_in_time(tmp_path: Path) -> None:
    told: list[str] = []
    with holder(tmp_path) as process:
        began = time.monotonic()
        with (
            pytest.raises(TiterError, match=f"process {process.pid}") as raised,
            Store(tmp_path, told.append).lock(tmp_path / "abc.lock", patience=0.2),
        ):
            pytest.fail("two processes hold one lock")
        assert time.monotonic() - began >= 0.2
        assert raised.value.status == 1
        assert len(told) == 1
        assert f"process {process.pid}" in told[0]
        assert "abc" in told[0]


def test_the_second_process_waits_until_the_first_is_done(tmp_path: Path) -> None:
    told: list[str] = []
    with holder(tmp_path) as process:

        def release(text: str) -> None:
            told.append(text)
            assert process.poll() is None
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

        with Store(tmp_path, release).lock(tmp_path / "abc.lock", patience=300):
            assert (tmp_path / "abc.owner").read_text(encoding="utf-8").split() == ["process", str(os.getpid())]
    assert len(told) == 1


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    told: list[str] = []
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=300)
        with Store(tmp_path, told.append).lock(tmp_path / "abc.lock", patience=300):
            pass
    assert told == []
    assert not (tmp_path / "abc.owner").exists()


def test_a_free_lock_says_nothing_and_is_free_again_after_an_error(tmp_path: Path) -> None:
    told: list[str] = []
    store = Store(tmp_path, told.append)
    with pytest.raises(RuntimeError, match="inside"), store.lock(tmp_path / "abc.lock"):
        raise RuntimeError("inside")
    with store.lock(tmp_path / "abc.lock", patience=0):
        pass
    assert told == []


@pytest.mark.long
def test_two_processes_that_want_one_artefact_build_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    command = [sys.executable, "-c", BUILD, str(tmp_path / "runs"), str(log)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as two,
    ):
        outputs = {process.communicate(timeout=300)[0] for process in (one, two)}
    assert log.read_text(encoding="utf-8") == "built\n"
    assert len(outputs) == 1
    assert (one.returncode, two.returncode) == (0, 0)
