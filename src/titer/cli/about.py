"""`titer models`, `list`, `show` and `doctor`: what there is to use, and what it runs on."""

from __future__ import annotations

from typing import Annotated

import typer

from titer.cli.options import AsJson
from titer.cli.output import show_result


def models_get(name: str, as_json: AsJson = False) -> None:
    """Fetch a named model once: download, check its sha256, convert to a safetensors folder in the cache."""
    from titer.models.fetch import get
    from titer.terminal import Terminal

    with Terminal() as terminal:
        found = get(name, terminal.tell)
    show_result(as_json, {"model": str(found.path)}, f"{name}: {found.path}")


def list_(
    kind: Annotated[str | None, typer.Argument(help="methods, attacks, judges, probes or prompt-sets")] = None, as_json: AsJson = False
) -> None:
    """What can be named on the command line."""
    from titer.core.plugins import listed

    found = {"prompt-sets": _prompt_sets()} if kind == "prompt-sets" else listed(kind)
    lines = [line for k, rows in found.items() for line in (k, *(f"  {name:12} {text}" for name, text in rows.items()))]
    show_result(as_json, found, "\n".join(lines))


def _prompt_sets() -> dict[str, str]:
    """The published sets that --data NAME:FILE takes; docs/prompt_sets.md says where they are to be had."""
    from titer.data.prompt_sets import SETS

    return {name: f"{one.title}, columns {', '.join(sorted(one.columns))}: {one.told}" for name, one in SETS.items()}


def show(name: str) -> None:
    """The documentation and settings of a method, attack, judge or probe; the streams and models of a method."""
    from titer.commands.showing import shown

    typer.echo(shown(name))


def doctor(as_json: AsJson = False) -> None:
    """What this machine can do and what is missing: cores, memory, GPU, packages, caches. Makes no connection."""
    from titer.commands.doctor import facts

    found = facts()
    width = max(len(fact.name) for fact in found)
    show_result(as_json, {fact.name: fact.value for fact in found}, "\n".join(f"{f.name:{width}}  {f.text}" for f in found))
