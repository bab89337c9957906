"""A checkpoint: a folder or hub id with a revision; its configuration and weights, read lazily.

Weights are read tensor by tensor from safetensors; nothing is unpickled. Errors name what the folder lacks.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from titer.core.config import Record, digest
from titer.core.errors import TiterError, visible
from titer.core.run import sha256_of

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint(Record):
    """A model on disk. `key` names its content: the same weights give the same key wherever they lie."""

    path: Path
    name: str = ""

    @property
    def label(self) -> str:
        place = self.path.resolve()
        stage = f"{place.parent.name}/model" if place.name == "model" else ""  # what a stage leaves is told apart by its key
        return self.name or stage or place.name

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name -> the safetensors file that holds it."""
        found: dict[str, Path] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            with _opened(file) as opened:
                found.update(dict.fromkeys(opened.keys(), file))
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return read

    @cached_property
    def key(self) -> str:
        """Content key from the sha256 of configuration, tokenizer and weights."""
        names = [p for p in sorted(self.path.iterdir()) if p.suffix in (".json", ".safetensors", ".jinja") and p.is_file()]
        return digest({p.name: sha256_of(p) for p in names if p.name != "manifest.json"})

    def weight(self, tensor: str) -> torch.Tensor:
        """One tensor by its name in the checkpoint, float32 on the CPU."""
        if tensor not in self.files:
            raise TiterError(f"{self.label} holds no tensor {tensor!r}", expected="two checkpoints of one architecture")
        with _opened(self.files[tensor]) as opened:
            return opened.get_tensor(tensor).float()


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise TiterError(
            f"{file.name} in {file.parent} is damaged or cut short ({visible(str(error), 120)})", next_step="fetch or build it again."
        ) from None


def open_checkpoint(place: str | Path, name: str = "") -> Checkpoint:
    """A Checkpoint for a folder that holds a model; a clear error for anything else."""
    path = Path(place)
    if not path.exists():
        raise TiterError(
            f"no model at {visible(str(place), 120)!r}",
            expected="a folder, a hub id that is in the local cache, or a name that `titer models get` has fetched",
            next_step="titer models get smollm2-135m, or give a folder.",
        )
    if not path.is_dir() or not (path / "config.json").is_file():
        raise TiterError(f"{path} is no model", expected="a folder with config.json, a tokenizer and *.safetensors")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
        if pickled:
            raise TiterError(
                f"{path} holds its weights only as a pickle ({pickled[0]}), which Titer never loads",
                next_step="save it again with safetensors (transformers: save_pretrained) where you trust it.",
            )
        raise TiterError(f"{path} has a config.json and no *.safetensors", next_step="check that the download finished.")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TiterError(
            f"{path / 'config.json'} is not readable JSON ({visible(str(error), 120)})", next_step="fetch or build it again."
        ) from None
    if not isinstance(config, dict):
        raise TiterError(
            f"{path / 'config.json'} holds a {type(config).__name__}", expected="a JSON object", next_step="fetch or build it again."
        )
    checkpoint = Checkpoint(path=path, name=name)
    _ = checkpoint.files  # a cut safetensors file is found here, before anything runs
    return checkpoint
