"""The run store: an artefact is complete or absent, and what is damaged is found and built again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from titer.core.config import digest
from titer.core.run import DamagedError, Store, damage, sha256_of, write_text

INPUTS = {"seed": 1, "name": "a"}


def build(work: Path) -> None:
    write_text(work / "table.txt", "one\n")
    write_text(work / "model" / "weights.bin", "many\n")
    write_text(work / "model" / "manifest.json", "{}\n")  # an artefact's own file that happens to bear the store's name


def never(_: Path) -> None:
    raise AssertionError("built again")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, told: list[str]) -> Store:
    return Store(tmp_path, told.append)


def test_an_artefact_is_built_once_and_found_by_its_inputs(store: Store, tmp_path: Path, told: list[str]) -> None:
    folder = store.artefact("tables", INPUTS, build)
    assert folder == tmp_path / "tables" / digest(INPUTS)
    assert store.made == [f"tables/{digest(INPUTS)}"]
    assert Store(tmp_path).artefact("tables", dict(reversed(INPUTS.items())), never) == folder
    assert store.artefact("tables", {**INPUTS, "seed": 2}, build) != folder
    assert told == []


def test_the_manifest_holds_the_sha256_of_every_file_and_done_comes_last(store: Store) -> None:
    folder = store.artefact("tables", INPUTS, build)
    listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sha256"]
    assert set(listed) == {"inputs.json", "table.txt", "model/weights.bin", "model/manifest.json"}
    for name, value in listed.items():
        assert value == hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256_of(folder / name)
    assert json.loads((folder / "inputs.json").read_text(encoding="utf-8")) == INPUTS
    assert (folder / "DONE").stat().st_mtime_ns >= (folder / "manifest.json").stat().st_mtime_ns


def test_a_build_sees_no_final_name_and_leaves_no_partial_one(store: Store) -> None:
    def look(work: Path) -> None:
        final = work.with_name(work.name.removesuffix(".partial"))
        assert work.name.endswith(".partial")
        assert not final.exists()
        assert not store.has("tables", final.name)
        build(work)
        (work / "left.tmp").write_text("half", encoding="utf-8")

    folder = store.artefact("tables", INPUTS, look)
    assert store.has("tables", folder.name)
    assert not folder.with_name(folder.name + ".partial").exists()
    assert not (folder / "left.tmp").exists()


def test_a_build_that_raises_leaves_nothing_final_and_goes_on_in_its_partial_folder(store: Store, tmp_path: Path) -> None:
    def fails(work: Path) -> None:
        write_text(work / "half.txt", "so far\n")
        raise RuntimeError("stopped")

    def goes_on(work: Path) -> None:
        assert (work / "half.txt").read_text(encoding="utf-8") == "so far\n"
        build(work)

    with pytest.raises(RuntimeError, match="stopped"):
        store.artefact("tables", INPUTS, fails)
    assert not (tmp_path / "tables" / digest(INPUTS)).exists()
    assert not store.has("tables", digest(INPUTS))
    folder = store.artefact("tables", INPUTS, goes_on)
    assert (folder / "half.txt").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from titer.core.run import Store, write_text

def make(work):
    write_text(work / "half.txt", "so far")
    os.kill(os.getpid(), signal.SIGKILL)

Store(Path(sys.argv[1])).artefact("tables", {"seed": 1, "name": "a"}, make)
"""


def test_a_killed_build_leaves_nothing_final_and_no_lock(store: Store, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, capture_output=True, timeout=300)
    assert done.returncode < 0
    assert not (tmp_path / "tables" / digest(INPUTS)).exists()
    folder = store.artefact("tables", INPUTS, build)
    assert (folder / "half.txt").read_text(encoding="utf-8") == "so far"
    assert damage(folder) == ""


def flip(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[0] ^= 1
    file.write_bytes(whole)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def garble(file: Path) -> None:
    file.write_bytes(b"\xff\x00 no JSON")


def array(file: Path) -> None:
    file.write_text("[1, 2]", encoding="utf-8")


FILES = ["table.txt", "model/weights.bin", "model/manifest.json", "inputs.json"]
HARMS = [(harm, name) for harm in (flip, truncate, Path.unlink, garble, array) for name in FILES]
HARMS += [(harm, name) for harm in (flip, Path.unlink, garble, array) for name in ("manifest.json", "DONE")]


@pytest.mark.parametrize(("harm", "name"), HARMS)
def test_damage_is_found_told_and_mended(tmp_path: Path, told: list[str], harm: Callable[[Path], None], name: str) -> None:
    folder = Store(tmp_path).artefact("tables", INPUTS, build)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    harm(folder / name)
    assert damage(folder) != ""
    assert Store(tmp_path, told.append).artefact("tables", INPUTS, build) == folder
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert len(told) == 1
    assert f"tables/{folder.name}" in told[0]
    assert name in told[0]


def test_of_a_damaged_artefact_on_another_disk_the_link_is_replaced(store: Store, tmp_path: Path) -> None:
    folder = store.artefact("tables", INPUTS, build)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert Store(tmp_path).artefact("tables", INPUTS, never) == folder
    (tmp_path / "elsewhere" / "table.txt").unlink()
    assert not damage(Store(tmp_path).artefact("tables", INPUTS, build))
    assert (tmp_path / "elsewhere").is_dir()
    assert not folder.is_symlink()


def test_a_sound_artefact_has_no_damage(store: Store) -> None:
    assert damage(store.artefact("tables", INPUTS, build)) == ""


def test_write_text_writes_a_whole_file_or_leaves_the_old_one(tmp_path: Path) -> None:
    """The write fails half-way: half of a two-part character has no bytes."""
    file = tmp_path / "deep" / "file.txt"
    write_text(file, "old\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "new and longer\n" * 10_000 + "\ud800")
    assert file.read_text(encoding="utf-8") == "old\n"


def test_write_text_keeps_every_newline_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "a\nb\r\nc\u2028é")
    assert (tmp_path / "file.txt").read_bytes() == "a\nb\r\nc\u2028é".encode()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that this process may not write to; root, whom no mode stops, becomes nobody for a while."""
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX permissions")
def test_a_read_only_root_is_an_os_error_and_on_the_command_line_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from titer import cli

    monkeypatch.setattr(cli, "app", lambda: Store(tmp_path).artefact("tables", INPUTS, build))
    with read_only(tmp_path):
        with pytest.raises(PermissionError):
            Store(tmp_path).artefact("tables", INPUTS, build)
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert left.value.code in (1, 2)
    message = capsys.readouterr().err
    assert "permission denied" in message
    assert "--runs" in message
    assert "Traceback" not in message


def test_a_root_that_is_a_file_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=r"exists|directory"):
        Store(tmp_path / "runs").artefact("tables", INPUTS, build)


def test_an_artefact_that_was_made_elsewhere_stands_once_it_is_as_its_manifest_says(store: Store, tmp_path: Path) -> None:
    there = Store(tmp_path / "there").artefact("tables", INPUTS, build)
    key = there.name
    files = {p.relative_to(there).as_posix(): [p.read_bytes()] for p in there.rglob("*") if p.is_file()}
    for name in ("table.txt", "manifest.json", "DONE"):
        for wrong in ([b"another"], []):
            with pytest.raises(DamagedError, match=f"tables/{key} arrived damaged"):
                store.take("tables", key, {**files, name: wrong})
            assert not store.has("tables", key)
    (store.root / "tables" / f"{key}.partial").mkdir(parents=True)  # begun here before
    store.take("tables", key, files)
    assert damage(store.root / "tables" / key) == ""
    assert store.artefact("tables", INPUTS, never).name == key
    store.take("tables", key, {"table.txt": [b"not looked at"]})
    assert sorted(p.name for p in (store.root / "tables").iterdir()) == [key, f"{key}.lock"]
