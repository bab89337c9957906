"""`titer models`, `list`, `show` and `doctor`: what there is to use, and what it runs on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.options import AsJson
from titer.cli.output import show_result

if TYPE_CHECKING:
    from titer.core.machine import Fact


def models_get(name: str, as_json: AsJson = False) -> None:
    """Fetch a named model once: download, check its sha256, convert to a safetensors folder in the cache."""
    from titer.models.fetch import get
    from titer.terminal import Terminal

    with Terminal() as terminal:
        found = get(name, terminal.tell)
    show_result(as_json, {"model": str(found.path)}, f"{name}: {found.path}")


def list_(kind: Annotated[str | None, typer.Argument(help="methods, attacks, judges or probes")] = None, as_json: AsJson = False) -> None:
    """What can be named on the command line."""
    from titer.core.errors import unknown
    from titer.core.plugins import names

    kinds = ("methods", "attacks", "judges", "probes")
    if kind is not None and kind not in kinds:
        unknown("kind", kind, kinds)
    found = {k: names(k) for k in ((kind,) if kind else kinds)}
    lines = [line for k, rows in found.items() for line in (k, *(f"  {name:12} {text}" for name, text in rows.items()))]
    show_result(as_json, found, "\n".join(lines))


def show(name: str) -> None:
    """The documentation and settings of a method, attack, judge or probe; the streams and models of a method."""
    from titer.core.errors import unknown
    from titer.core.plugins import describe, names

    kinds = ("methods", "attacks", "judges", "probes")
    where = next((k for k in kinds if name in names(k)), None)
    if where is None:
        unknown("name", name, [n for k in kinds for n in names(k)])
    typer.echo(describe(where, name))
    if where == "methods":
        typer.echo(_wants(name))


def _wants(method: str) -> str:
    """What a method trains on and reads, as the options of align and finetune name it."""
    from titer.core.plugins import plugin
    from titer.methods.base import Method

    kind = plugin("methods", method, Method)  # type: ignore[type-abstract]
    lines = ["", f"Streams (--stream NAME=FILE; --data is train, or preferred and rejected): {', '.join(kind.STREAMS) or 'none'}"]
    return "\n".join([*lines, *([f"Models it reads (--read ROLE=MODEL): {', '.join(kind.MODELS)}"] if kind.MODELS else [])])


def doctor(as_json: AsJson = False) -> None:
    """What this machine can do and what is missing: cores, memory, GPU, packages, caches. Makes no connection."""
    from titer.core.config import environment
    from titer.core.machine import Fact, extras, hardware
    from titer.models.fetch import NAMED, cache

    told = [Fact(name, version, version) for name, version in environment().items()]
    facts = [
        *told,
        *hardware([("runs", Path()), ("the cache", cache())]),
        *extras(),
        Fact("models by name", ", ".join(NAMED), ", ".join(NAMED)),
        *_caches(),
    ]
    width = max(len(fact.name) for fact in facts)
    show_result(as_json, {fact.name: fact.value for fact in facts}, "\n".join(f"{f.name:{width}}  {f.text}" for f in facts))


def _caches() -> list[Fact]:
    """Where fetched models are kept, and which are there; a place is told by what sets it, for a report may be shown around."""
    from titer.core.machine import Fact
    from titer.models.fetch import NAMED, cache, in_hub_cache, is_fetched

    from huggingface_hub import constants

    own, hub = cache(), Path(constants.HF_HUB_CACHE)
    named, ids = [name for name in NAMED if is_fetched(name)], in_hub_cache(hub)
    places = _place(own, {"TITER_CACHE": "", "XDG_CACHE_HOME": "titer"}), _place(hub, {"HF_HUB_CACHE": "", "HF_HOME": "hub"})
    writable = os.access(next(p for p in (own.absolute(), *own.absolute().parents) if p.exists()), os.W_OK)
    state = ", switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    return [
        Fact("cache", {"place": places[0], "holds": named}, f"{places[0]}: {', '.join(named) or 'no model yet (titer models get NAME)'}"),
        Fact("cache writable", writable, "yes" if writable else "no; set TITER_CACHE to a folder that is"),
        Fact("hub cache", {"place": places[1], "holds": ids}, f"{places[1]}: {_some(ids) or 'no model'}"),
        Fact("hub", {"asked": False, "offline": bool(constants.HF_HUB_OFFLINE)}, f"not asked{state}"),
    ]


def _place(folder: Path, settings: dict[str, str]) -> str:
    """A folder by the variable that sets it, else under ~."""
    for variable, below in settings.items():
        if (base := os.environ.get(variable)) and Path(base, below) == folder:
            return f"${variable}" + (f"/{below}" if below else "")
    return f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else folder.name


def _some(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
