"""Writes an edited model: a function gives each parameter in turn; configuration and tokenizer are those of the model `like`.

Memory holds one shard (or its largest tensor) and what the function needs for one parameter, never a whole model. Parameters are
stored under their own names, which every loader knows, in the type in which `like` stores them; tied parameters stay tied, because
they are not stored. The file format is that of transformers' save_pretrained (*.safetensors, with an index if there are several).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

from titer.core.errors import TiterError, visible
from titer.core.run import write_text
from titer.models.checkpoint import Checkpoint
from titer.models.lora_weights import CONFIG
from titer.models.safetensors_io import ADAPTER, INDEX, TEXTS, WHOLE, tensor_of
from titer.models.words import NAMED

VERSION = 1
SHARD = 10**9  # bytes
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TYPES = FLOATS | {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
Values = Callable[[str], torch.Tensor]
Pairs = Callable[[str, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
NOT_WEIGHTS = ("config.json", "generation_config.json")
RECORDS = ("manifest.json", ".titer.json", CONFIG)  # what others say of the folder they stand in


def floating(checkpoint: Checkpoint) -> list[str]:
    """Returns the floating-point parameters in the order in which they are written; counters and masks are left out."""
    return [name for name in sorted(checkpoint.files) if checkpoint.shape(name)[1] in FLOATS]


def stored_as(checkpoint: Checkpoint, name: str) -> torch.dtype:
    """Returns the type in which the checkpoint stores a parameter."""
    return TYPES[checkpoint.shape(name)[1]]


def write_edited(like: Checkpoint, value: Values, folder: Path, shard: int = SHARD, stored: bool = True) -> None:
    """Writes `like` into `folder` with `value(parameter)` as each floating-point parameter.

    Types are those that `like` stores, or float32 if not `stored`. Errors: a quantised model; a value that is not finite.
    """
    if like.quantised:
        raise TiterError(
            f"{like.label} is quantised: edited weights would not fit its configuration",
            expected="a model in floating point",
            next_step="give the model before it was quantised, or its dequantised weights.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _copy_beside(like, folder)
    planned, numbers = _shards(like, shard, stored), set(floating(like))
    placed: dict[str, str] = {}
    for i, names in enumerate(planned, start=1):
        file = WHOLE if len(planned) == 1 else f"model-{i:05}-of-{len(planned):05}.safetensors"
        made = {}
        for name in names:
            found = value(name) if name in numbers else like.weight(name)
            made[name] = _finite(name, found.to(stored_as(like, name) if stored else torch.float32)).contiguous()
        save_file(made, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(names, file)
    if len(planned) > 1:
        size = sum(_bytes(like, name, stored) for name in placed)
        write_text(folder / INDEX, json.dumps({"metadata": {"total_size": size}, "weight_map": placed}, indent=1) + "\n")


def write_adapter(tuned: Checkpoint, pair: Pairs, value: Values, folder: Path) -> None:
    """Writes the adapter of `tuned` into `folder`: `pair(parameter, A, B)` for each LoRA pair, `value(parameter)` for whole tensors.

    Errors: a value that is not finite.
    """
    assert tuned.adapter is not None
    folder.mkdir(parents=True, exist_ok=True)
    for file in tuned.adapter.iterdir():
        if _text(file) and (file.name not in RECORDS or file.name == CONFIG):
            shutil.copy2(file, folder / file.name)
    made: dict[str, torch.Tensor] = {}
    for name, change in tuned.changes.items():
        if change.a:
            halves = [tensor_of(change.file, half) for half in (change.a, change.b)]
            edited = pair(name, *(half.float() for half in halves))
            parts = zip((change.a, change.b), edited, (half.dtype for half in halves), strict=True)
        else:
            parts = zip((change.whole,), (value(name),), (tensor_of(change.file, change.whole).dtype,), strict=True)
        made |= {half: _finite(name, found.to(kind)).contiguous() for half, found, kind in parts}
    save_file(made, folder / ADAPTER, metadata={"format": "pt"})


def written_bytes(like: Checkpoint) -> int:
    """Returns the size in bytes of the weights that `write_edited` writes."""
    return sum(_bytes(like, name, True) for name in like.files)


def _bytes(like: Checkpoint, name: str, stored: bool) -> int:
    return prod(like.shape(name)[0]) * (stored_as(like, name) if stored else torch.float32).itemsize


def _shards(like: Checkpoint, limit: int, stored: bool) -> list[list[str]]:
    """Returns the parameters of each file: as many as fit into `limit` bytes, at least one."""
    found: list[list[str]] = []
    held = 0
    for name in sorted(like.files):
        size = _bytes(like, name, stored)
        if not found or held + size > limit:
            found.append([])
            held = 0
        found[-1].append(name)
        held += size
    return found


def _finite(name: str, found: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(found).all()):
        raise TiterError(
            f"{visible(name, 120)} would hold numbers that are not finite (NaN, or beyond {found.dtype})",
            expected="models whose weights are finite, and a change that their type can hold",
            next_step="check the models that are read, or give a smaller strength.",
        )
    return found


def _text(file: Path) -> bool:
    """Whether a file is configuration, tokenizer, code or licence; weights and training state are not copied."""
    return file.is_file() and not file.name.endswith(".index.json") and (file.suffix in TEXTS or file.stem.upper() in ("LICENSE", "NOTICE"))


def _copy_beside(like: Checkpoint, folder: Path) -> None:
    for file in _beside(like):
        shutil.copy2(file, folder / file.name)
    for templates in (like.tokenizer_folder or like.path).glob(NAMED):
        shutil.copytree(templates, folder / NAMED, dirs_exist_ok=True)
    if like.config.get("transformers_weights"):  # it names the one file that its weights stood in
        rest = {key: value for key, value in like.config.items() if key != "transformers_weights"}
        write_text(folder / "config.json", json.dumps(rest, indent=2) + "\n")


def _beside(like: Checkpoint) -> Iterator[Path]:
    """Yields the files to copy; if an adapter has its own tokenizer, its files replace the base's."""
    own = like.tokenizer_folder
    for place in reversed(like.folders):
        files = [file for file in sorted(place.iterdir()) if _text(file) and file.name not in RECORDS]
        whole = own in (None, place)
        yield from (file for file in files if whole or file.name in NOT_WEIGHTS or file.suffix == ".py" or not file.suffix)
