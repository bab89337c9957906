"""What this machine has and what is missing, for `titer doctor`. It makes no network connection. L6."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import constants

from titer.core.config import environment
from titer.core.machine import Fact, extras, hardware
from titer.models.fetch import NAMED, cache, in_hub_cache, is_fetched

WRITABLE = "cache writable"


def facts() -> list[Fact]:
    """Returns facts on versions, cores, memory, GPU, optional packages, models by name, caches."""
    told = [Fact(name, version, version) for name, version in environment().items()]
    return [
        *told,
        *hardware([("runs", Path()), ("the cache", cache())]),
        *extras(),
        Fact("models by name", ", ".join(NAMED), ", ".join(NAMED)),
        *(held := _caches()),
        _next(all(fact.value for fact in held if fact.name == WRITABLE)),
    ]


def _next(ready: bool) -> Fact:
    """Says what the reader can do next."""
    told = (
        "titer demo, or titer audit BASE ALIGNED TUNED --data prompts.csv" if ready else "set TITER_CACHE to a folder that can be written"
    )
    return Fact("next", told, f"everything that is needed is installed: {told}" if ready else told)


def _caches() -> list[Fact]:
    """Says where fetched models are kept, and which are there.

    A folder is named by the environment variable that sets it, not by its path, since the output may be shown to others.
    """
    own, hub = cache(), Path(constants.HF_HUB_CACHE)
    named, ids = [name for name in NAMED if is_fetched(name)], in_hub_cache(hub)
    places = _place(own, {"TITER_CACHE": "", "XDG_CACHE_HOME": "titer"}), _place(hub, {"HF_HUB_CACHE": "", "HF_HOME": "hub"})
    writable = os.access(next(p for p in (own.absolute(), *own.absolute().parents) if p.exists()), os.W_OK)
    state = ", switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    return [
        Fact("cache", {"place": places[0], "holds": named}, f"{places[0]}: {', '.join(named) or 'no model yet (titer models get NAME)'}"),
        Fact(WRITABLE, writable, "yes" if writable else "no; set TITER_CACHE to a folder that can be written"),
        Fact("hub cache", {"place": places[1], "holds": ids}, f"{places[1]}: {_some(ids) or 'no model'}"),
        Fact("hub", {"asked": False, "offline": bool(constants.HF_HUB_OFFLINE)}, f"not contacted{state}"),
    ]


def _place(folder: Path, settings: dict[str, str]) -> str:
    """Names a folder by the variable that sets it; else by its path from ~; else by its own name."""
    for variable, below in settings.items():
        if (base := os.environ.get(variable)) and Path(base, below) == folder:
            return f"${variable}" + (f"/{below}" if below else "")
    return f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else folder.name


def _some(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
