"""Finds what this machine has, for `titer doctor`: cores, memory, disk, GPU, and which optional packages are installed.

Nothing here opens a connection. The output has no path and no name of the machine.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

GB = 1e9
CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
NEEDED = 1.6  # peak memory of an audit, in sizes of its model
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {  # what each is for; packages by pip's names
    "data": (("datasets", "pyarrow"), "data sets of the hub, Parquet files"),
    "search": (("optuna",), "the search for attacks in titer sweep"),
    "int8": (("compressed-tensors",), "quantised models"),
    "trl": (("trl",), "the methods in TRL's trainers"),
    "inspect": (("inspect-ai",), "tasks and logs of inspect_ai"),
    "lm-eval": (("lm-eval",), "tasks of lm-evaluation-harness"),
    "planning": (("gymnasium", "stable-baselines3"), "planning on grids in titer study safe_mdp"),
    "ray": (("ray",), "studies and audits on several machines"),
    "vllm": (("vllm",), "fast generation on a GPU"),
}


@dataclass(frozen=True)
class Fact:
    """One line of the report: a value for a program and its text for a reader."""

    name: str
    value: Any
    text: str


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(places: Sequence[tuple[str, Path]]) -> list[Fact]:
    """Returns the facts on cores, memory, disk and GPU, and on the largest model that they hold.

    places: (what it is called, a folder on it) for each disk that matters.
    """
    total, free = memory()
    usable, disks = cores(), {name: _free(folder) for name, folder in places}
    return [
        Fact("cores", {"usable": usable, "all": os.cpu_count()}, f"{usable} of {os.cpu_count()}"),
        Fact("memory", {"bytes": total, "free": free}, f"{total / GB:.1f} GB, {free / GB:.1f} GB free"),
        Fact("disk free", disks, ", ".join(f"{size / GB:.0f} GB for {name}" for name, size in disks.items())),
        *_devices(),
        _largest(free),
    ]


def memory() -> tuple[int, int]:
    """Returns (total, free) bytes of memory that this process may use; a container's limit counts if it is smaller."""
    state = psutil.virtual_memory()
    limits = [int(file.read_text()) for file in CGROUP if file.is_file() and file.read_text().strip().isdigit()]
    limit = min([state.total, *limits])
    return limit, min(state.available, limit)


def fitting(free: int, width: int) -> float:
    """Estimates how many parameters a model may have to be audited in `free` bytes, with `width` bytes for each weight."""
    return free / (NEEDED * width)


def count(parameters: float) -> str:
    """Writes a number of parameters to two digits: 640 M, 3.3 B."""
    rounded = float(f"{parameters:.2g}")
    return f"{rounded / 1e9:g} B" if rounded >= 1e9 else f"{rounded / 1e6:g} M"


def extras() -> list[Fact]:
    """Returns the facts on the optional packages: their versions, or the command that installs missing ones."""
    found = []
    for name, (packages, use) in EXTRAS.items():
        versions = {package: version(package) for package in packages}
        missing = [package for package, there in versions.items() if not there]
        command = f"pip install {' '.join(missing)}" if missing else ""
        there = ", ".join(f"{package} {v}" for package, v in versions.items() if v)
        text = f"{f'missing; {command}' if missing else there}  ({use})"
        found.append(Fact(f"extra {name}", {"packages": versions, "for": use, "install": command}, text))
    return found


def version(package: str) -> str:
    """Returns a package's installed version; "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _free(folder: Path) -> int:
    """Returns the free bytes on the disk where a folder is or will be."""
    standing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(standing).free


def _devices() -> list[Fact]:
    import torch  # noqa: PLC0415

    found: list[dict[str, Any]] = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        found.append({"name": name, "bytes": total, "free": free, "bfloat16": torch.cuda.is_bf16_supported()})
    device = found[0]["name"] if found else "CPU"
    facts = [Fact("device", device, str(device)), Fact("threads", torch.get_num_threads(), str(torch.get_num_threads()))]
    lines = [f"{g['name']}, {g['bytes'] / GB:.0f} GB, {g['free'] / GB:.0f} GB free, holds {_models(g['free'])}" for g in found]
    return [*facts, Fact("GPU", found, "; ".join(lines) or "none that torch can use")]


def _models(free: int) -> str:
    return f"{count(fitting(free, 4))} parameters in float32, {count(fitting(free, 2))} in bfloat16"


def _largest(free: int) -> Fact:
    value = {"float32": int(fitting(free, 4)), "bfloat16": int(fitting(free, 2))}
    return Fact("largest model", value, f"{_models(free)} (in the memory that is free, at {NEEDED} times the weights)")
