"""Reads the safetensors files of a model's folder: finds the files and their tensors, and reads one tensor at a time.

Opening a file reads its header only; a tensor is read when it is asked for, so a model is never whole in memory. A folder's files are
not trusted: `check_files` looks at every file before anything reads one.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from titer.core.errors import TiterError, visible

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"  # peft's name
OTHERS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.onnx")
PICKLES = OTHERS[:5]
AGAIN = "fetch or build it again."
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".spm", ".vocab", ".py")  # files that are read whole
LARGEST = 2**26  # bytes of one of them: the largest tokenizers take 35 MB
HEADER = 2**25  # bytes of a safetensors header; 18,000 tensors take 2.4 MB
TENSORS = 2**17  # most tensors of one file


def check_files(folder: Path) -> None:
    """Checks every file of a folder that may be read. Errors: a pipe, a device, a broken link, a text file larger than `LARGEST` bytes."""
    for file in sorted(folder.iterdir()):
        if file.suffix in (*TEXTS, ".safetensors", ".gguf"):
            _check_file(file)


def _check_file(file: Path) -> None:
    try:
        held = file.stat()
    except OSError as error:
        raise TiterError(f"{visible(str(file), 160)} cannot be read ({error.strerror})", next_step=AGAIN) from None
    if not stat.S_ISREG(held.st_mode) and not stat.S_ISDIR(held.st_mode):  # reading a pipe may block, and a device may never end
        raise TiterError(f"{visible(str(file), 160)} is no ordinary file", expected="a file", next_step=AGAIN)
    if held.st_size > LARGEST and file.suffix in TEXTS:
        raise TiterError(
            f"{visible(str(file), 160)} has {held.st_size / 2**20:.0f} MB", expected=f"at most {LARGEST // 2**20} MB", next_step=AGAIN
        )


def tensor_files(folder: Path) -> dict[str, Path]:
    """Returns tensor name -> the file that holds it, for the model of a folder; {} if it has no safetensors.

    Errors: a damaged file; an index without names, or that names a file or tensor that is missing; a tensor in two files; two sets of
    weights.
    """
    if (folder / INDEX).is_file():
        return _sharded(folder)
    whole = [folder / WHOLE] if (folder / WHOLE).is_file() else sorted(f for f in folder.glob("*.safetensors") if f.name != ADAPTER)
    return _once(folder, whole)


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
    found = _once(folder, [folder / file for file in files])  # transformers too reads whole shards, whichever tensors the index names
    if absent := [tensor for tensor, file in named.items() if found.get(tensor) != folder / file]:
        raise TiterError(
            f"{visible(absent[0], 120)} is not in {visible(named[absent[0]], 120)}, where {folder / INDEX} puts it", next_step=AGAIN
        )
    return found


def _once(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Returns tensor name -> the one of `files` that holds it. Errors: a tensor in two of them."""
    found: dict[str, Path] = {}
    for file in files:
        if twice := sorted(found.keys() & set(names(file))):
            raise TiterError(
                f"{visible(twice[0], 120)} is in two files of {folder}: {found[twice[0]].name} and {file.name}",
                expected="every tensor once",
                next_step="keep one set of weights, or fetch or build it again.",
            )
        found |= dict.fromkeys(names(file), file)
    return found


def names(file: Path) -> list[str]:
    """Returns the names of the tensors in a file."""
    return list(_header(file))


def shape(file: Path, tensor: str) -> tuple[tuple[int, ...], str]:
    """Returns (shape, data type as safetensors names it) of one tensor, from the file's header alone."""
    return _header(file)[tensor]


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns tensor name -> (shape, data type) from a file's header. Errors: a damaged or cut file; more names than any model has."""
    try:
        held = file.stat()
    except OSError as error:
        raise _damaged(file, error) from None
    return _read_header(file, held.st_size, held.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_header(file: Path, size: int, changed: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Reads a header once per file; a file with another `size` or time of change (`changed`, ns) is read again."""
    _check_file(file)
    with file.open("rb") as start:
        length = int.from_bytes(start.read(8), "little")
        if HEADER < length <= size - 8:
            raise TiterError(f"{file} has {length / 2**20:.0f} MB of names", expected=f"at most {HEADER // 2**20} MB", next_step=AGAIN)
    with opened(file) as held:
        if len(found := list(held.keys())) > TENSORS:
            raise TiterError(f"{file} names {len(found)} tensors", expected=f"at most {TENSORS}", next_step=AGAIN)
        views = {name: held.get_slice(name) for name in found}
        return {name: (tuple(view.get_shape()), str(view.get_dtype())) for name, view in views.items()}


def tensor_of(file: Path, tensor: str, rows: slice | None = None) -> torch.Tensor:
    """Reads one tensor, or some rows of it, in the data type in which it is stored, on the CPU."""
    with opened(file) as held:
        return held.get_tensor(tensor) if rows is None else held.get_slice(tensor)[rows]  # type: ignore[no-any-return]


def opened(file: Path) -> Any:
    """Opens a safetensors file, which reads its header only. Errors: a damaged or cut file."""
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> TiterError:
    return TiterError(f"{file.name} in {file.parent} is damaged or cut short ({visible(str(error), 120)})", next_step=AGAIN)


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object from a file of a model's folder. Errors: a file that cannot be read, or that holds something else."""
    _check_file(file)
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise TiterError(f"{file} is not readable JSON ({visible(str(error), 120)})", next_step=AGAIN) from None
    if not isinstance(read, dict):
        raise TiterError(f"{file} holds a {type(read).__name__}", expected="a JSON object", next_step=AGAIN)
    return read


def weightless(path: Path) -> TiterError:
    """Returns the error for a model's folder without safetensors, with advice by what it holds instead."""
    if not any(path.glob("pytorch_model*.bin")) and (left := left_by_training(path)):
        return TiterError(f"{path} has no *.safetensors", next_step=left)
    held = sorted(p.name for pattern in OTHERS for p in path.glob(pattern))
    pickled = [name for name in held if any(Path(name).match(pattern) for pattern in PICKLES)]
    if held:
        kind = f"only as a pickle ({pickled[0]}), which Titer never loads" if pickled else f"as {held[0]}, and Titer reads safetensors"
        return TiterError(
            f"{path} holds its weights {kind}",
            next_step="save it again with safetensors (transformers: save_pretrained) where you trust it.",
        )
    return TiterError(f"{path} has a config.json and no *.safetensors", next_step="check that the download finished.")


def left_by_training(path: Path) -> str:
    """Returns advice for a folder that a training run wrote and that is no model itself: join its sharded weights, or give one of the
    models in its subfolders; "" if it is no such folder."""
    if shards := sorted(path.glob("*/*.distcp")):
        return (
            f"join the shards of the training: accelerate merge-weights {shards[0].parent} FOLDER; then put config.json and the "
            "tokenizer beside them and give FOLDER."
        )
    if (path / "zero_to_fp32.py").is_file():
        return (
            f"join the shards of the training where it ran: python {path / 'zero_to_fp32.py'} {path} FOLDER --safe_serialization; then "
            "put config.json and the tokenizer beside them and give FOLDER."
        )
    inner = sorted({str(file.parent) for name in ("config.json", "adapter_config.json") for file in path.glob(f"*/{name}")})
    return f"give one of the models in it: {visible(', '.join(inner[-3:]), 240)}." if inner else ""
