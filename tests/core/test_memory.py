"""Answers kept by content: whole or absent, whoever writes, whoever is killed, whatever is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.core.memory import Memory, content_key

LEAF = st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
JSON = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8)


@given(answer=JSON)
def test_what_is_read_is_what_was_kept(answer: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("memory")
    key = content_key({"asked": "x"})
    Memory(folder).put(key, answer)
    assert Memory(folder).get(key) == answer


def test_equal_questions_have_one_key_and_the_text_is_nowhere(tmp_path: Path) -> None:
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1}) != content_key({"a": 1, "b": [3]})
    key = content_key("../../etc/passwd\x00\ud800")
    Memory(tmp_path).put(key, "\ud800\x1b[31m")
    assert Memory(tmp_path).get(key) == "\ud800\x1b[31m"
    (file,) = (p for p in tmp_path.rglob("*") if p.is_file())
    assert file.relative_to(tmp_path).as_posix() == f"{key[:2]}/{key}.json"
    assert "passwd" not in file.read_text()


@pytest.mark.parametrize("key", ["", "../x", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_other_keys_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="64 hex"):
        Memory(tmp_path).put(key, 1)
    with pytest.raises(ValueError, match="64 hex"):
        Memory(tmp_path).get(key)


def test_none_is_no_answer(tmp_path: Path) -> None:
    assert Memory(tmp_path).get(content_key(1)) is None
    with pytest.raises(ValueError, match="None"):
        Memory(tmp_path).put(content_key(1), None)


def test_a_file_cut_or_changed_anywhere_counts_as_absent_and_is_mended(tmp_path: Path) -> None:
    key = content_key(1)
    Memory(tmp_path).put(key, {"text": "bread"})
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_bytes()
    for length in range(len(whole) - 1):  # the line end may go
        file.write_bytes(whole[:length])
        assert Memory(tmp_path).get(key) is None
    for damaged in (whole.replace(b"bread", b"broad"), whole.replace(key[:5].encode(), b"00000"), b"[]", b"\xff", b"[" * 100_000):
        file.write_bytes(damaged)
        assert Memory(tmp_path).get(key) is None
    Memory(tmp_path).put(key, {"text": "bread"})
    assert file.read_bytes() == whole


def test_the_first_answer_stays(tmp_path: Path) -> None:
    Memory(tmp_path).put(content_key(1), "first")
    Memory(tmp_path).put(content_key(1), "second")
    assert Memory(tmp_path).get(content_key(1)) == "first"


def test_a_disk_that_takes_nothing_costs_no_answer_of_this_run(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file where the folder should be")
    memory = Memory(tmp_path / "memory")
    answer = {"text": "bread"}
    memory.put(content_key(1), answer)
    answer["text"] = "changed by its owner"
    assert memory.get(content_key(1)) == {"text": "bread"}
    assert memory.unsaved == 1
    assert Memory(tmp_path / "memory").get(content_key(1)) is None


WRITER = """
import sys
from pathlib import Path
from titer.core.memory import Memory, content_key
memory = Memory(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    memory.put(content_key(number), {"number": number, "text": "x" * 5000})
    if number == 0:
        print("begun", flush=True)
"""


@pytest.mark.long
def test_two_processes_and_a_killed_one_leave_whole_answers_alone(tmp_path: Path) -> None:
    def started(count: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})

    killed, other = started(1_000_000), started(300)
    with killed, other:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "begun\n"
        time.sleep(0.1)
        killed.kill()
        assert other.wait(300) == 0
    files = list(tmp_path.rglob("*.json"))
    assert len(files) >= 300
    memory = Memory(tmp_path)
    assert all(memory.get(content_key(n)) == {"number": n, "text": "x" * 5000} for n in range(len(files)))
