"""Coordinates several processes that train one model (torchrun, accelerate launch). Layer 0, the core.

Every process runs the same command. Only the first one locks the store, commits to it and prints. It tells the others whether there is
anything to train; they train with it, and go on once the result is committed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from titer.core.errors import TiterError


def several() -> bool:
    """Tells whether a launcher started this process as one of several."""
    return {"RANK", "MASTER_ADDR"} <= set(os.environ) and int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Tells whether this process is alone, or the first of several: the one that prints and writes."""
    return not several() or os.environ["RANK"] == "0"


@cache
def sharded() -> bool:
    """Tells whether accelerate's configuration asks for FSDP, which the loop applies itself. Errors: it asks for DeepSpeed or Megatron."""
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            raise TiterError(f"accelerate's configuration asks for {name}, which is not supported", expected="DDP or FSDP")
    return os.environ.pop("ACCELERATE_USE_FSDP", "false") == "true"  # otherwise accelerate would wrap the model a second time


def told(word: str = "") -> str:
    """Sends the first process's `word` to all others, and returns it in every process; the others wait for it."""
    PartialState(cpu=not torch.cuda.is_available())
    words: list[Any] = [word]
    broadcast_object_list(words, from_process=0)
    return str(words[0])


def artefact(keep: Callable[[Callable[[Path], None]], Path], make: Callable[[Path], None]) -> Path:
    """Makes an artefact in all processes together and returns its folder. The first calls `keep(make)`, which builds it if needed."""
    if not several():
        return keep(make)
    if not first():
        if work := told():
            make(Path(work))
        return Path(told())
    begun = False

    def together(work: Path) -> None:
        nonlocal begun
        begun = True
        told(str(work))
        make(work)

    folder = keep(together)
    if not begun:
        told("")
    return Path(told(str(folder)))
