"""The safetensors of a folder: which files are the model's, what stands in them, one tensor at a time.

A file is opened by its header; a tensor is read when it is asked for, so no model is ever whole in memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from titer.core.errors import TiterError, visible

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"  # peft's name
AGAIN = "fetch or build it again."


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file of the folder's model that holds it; {} where no safetensors are.

    Errors: a damaged file; an index that names no file or no tensor that is there; two sets of weights.
    """
    if (folder / INDEX).is_file():
        return _sharded(folder)
    whole = [folder / WHOLE] if (folder / WHOLE).is_file() else sorted(f for f in folder.glob("*.safetensors") if f.name != ADAPTER)
    return {tensor: file for file in whole for tensor in names(file)}


def _sharded(folder: Path) -> dict[str, Path]:
    read = read_json(folder / INDEX)
    named = read.get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise TiterError(f"{folder / INDEX} has no weight_map", expected="tensor names and the files that hold them", next_step=AGAIN)
    files = sorted(set(named.values()))
    if odd := [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]:
        raise TiterError(f"{folder / INDEX} names {visible(odd[0], 120)!r}", expected="*.safetensors of its own folder", next_step=AGAIN)
    if WHOLE not in files and (folder / WHOLE).is_file():
        raise TiterError(
            f"{folder} holds two sets of weights: {WHOLE}, and the shards of {INDEX}",
            next_step="keep one of them: which of the two is meant cannot be known.",
        )
    if lost := [file for file in files if not (folder / file).is_file()]:
        raise TiterError(f"{folder} lacks {visible(lost[0], 120)} ({len(lost)} of {len(files)} shards are missing)", next_step=AGAIN)
    held = {file: set(names(folder / file)) for file in files}
    if absent := [tensor for tensor, file in named.items() if tensor not in held[file]]:
        raise TiterError(
            f"{visible(absent[0], 120)} is not in {visible(named[absent[0]], 120)}, where {folder / INDEX} puts it", next_step=AGAIN
        )
    return {tensor: folder / file for tensor, file in named.items()}


def names(file: Path) -> list[str]:
    """The tensors of a file."""
    with opened(file) as held:
        return list(held.keys())


def shape(file: Path, tensor: str) -> tuple[tuple[int, ...], str]:
    """(shape, type as safetensors names it) of one tensor, from the file's header alone."""
    with opened(file) as held:
        view = held.get_slice(tensor)
        return tuple(view.get_shape()), str(view.get_dtype())


def tensor_of(file: Path, tensor: str) -> torch.Tensor:
    """One tensor as it is stored, on the CPU."""
    with opened(file) as held:
        return held.get_tensor(tensor)  # type: ignore[no-any-return]


def opened(file: Path) -> Any:
    """A safetensors file, its header read.

    Errors: a damaged or cut file.
    """
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise TiterError(f"{file.name} in {file.parent} is damaged or cut short ({visible(str(error), 120)})", next_step=AGAIN) from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Errors: a file that cannot be read, or that holds something else.
    """
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise TiterError(f"{file} is not readable JSON ({visible(str(error), 120)})", next_step=AGAIN) from None
    if not isinstance(read, dict):
        raise TiterError(f"{file} holds a {type(read).__name__}", expected="a JSON object", next_step=AGAIN)
    return read
