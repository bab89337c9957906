"""The pages that the site has besides docs/: the README as its first page, and the reference, made from --help and docstrings.

mkdocs calls the functions named `on_...` (mkdocs.yml, hooks). These pages are not stored in the repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import Parameter, getdoc, signature
from pathlib import Path
from textwrap import fill
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from titer import api
from titer.cli import app
from titer.core import plugins

ROOT = Path(__file__).parents[1]
WIDTH = 110
BASES = (  # the base classes for plug-ins, and the classes for other trainers
    "titer.methods.base",
    "titer.repairs.base",
    "titer.decoders.base",
    "titer.attacks.base",
    "titer.judges.base",
    "titer.integrations.trl.TiterMixin",
    "titer.integrations.watch.Watch",
)
OUTSIDE = re.compile(r"<(?:script|img|iframe|link(?=[^>]*(?:stylesheet|preconnect|preload)))[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    pages = {
        "index.md": _read("README.md").replace("](docs/", "]("),
        "contributing.md": _read("CONTRIBUTING.md"),
        "changelog.md": _read("CHANGELOG.md"),
        "reference/commands.md": "\n".join(_commands()),
        "reference/python.md": "\n".join(_python()),
        "reference/plugins.md": "\n".join(_plugins()),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_post_page(output: str, page: Any, config: MkDocsConfig) -> str:
    """A page that loads anything from outside the site is an error."""
    if found := OUTSIDE.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from the network: {found[0]}")
    return output


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _commands() -> Iterator[str]:
    """The --help text of every command."""
    yield "# Commands\n\nExit status: 0 done, 1 failed, 2 wrong input. An audit with limits adds 3 and 4 ([gate](../gate.md)).\n"
    yield from _helped(typer.main.get_command(app), "titer", None)


def _helped(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, max_content_width=WIDTH, terminal_width=WIDTH)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    for below, one in getattr(command, "commands", {}).items():
        yield from _helped(one, below, context)


def _python() -> Iterator[str]:
    """titer.api with the arguments that its functions take, then the base classes of plug-ins from their source."""
    yield "# Python\n\n[How to use it](../python.md). Arguments mean the same as the options of the [command line](commands.md).\n"
    for name in sorted(api.__all__, key=str.swapcase):  # functions first, then records
        own = getattr(api, name)
        words = [str(one.replace(annotation=Parameter.empty)) for one in signature(own).parameters.values()]
        shown = fill(f"{name}({', '.join(words)})", WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        yield f"## {name}\n\n```python\n{shown}\n```\n\n{getdoc(own)}\n"
    for name in BASES:
        yield f"::: {name}\n"


def _plugins() -> Iterator[str]:
    """What `titer show` prints for each plug-in."""
    yield "# Methods, repairs, decoders, attacks, judges, probes, studies\n\nWhat `titer show NAME` prints.\n"
    for kind, names in plugins.listed().items():
        yield f"## {kind.capitalize()}\n"
        for name in names:
            yield f"### {name}\n\n```text\n{plugins.describe(kind, name)}\n```\n"
