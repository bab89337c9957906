"""Makes commands from the records of commands/requests.py: each field becomes an option. The layers below get mappings, not NAME=VALUE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, Field
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from titer.commands.requests import ordered, told
from titer.core.errors import TiterError, visible

Runs = Annotated[Path, typer.Option("--runs", help="Folder that keeps results and trained models.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Check everything and print what would run and what is stored already; run nothing.")]
HERE = Path("runs")


def command(run: Callable[..., None]) -> Callable[..., None]:
    """Decorator: makes a command of `run(order, ...)`. Its options are the fields of the order's record, then `run`'s other parameters."""
    kind = get_type_hints(run)["order"]
    own = [one for one in ordered(kind) if told(one)]
    hints = get_type_hints(run, include_extras=True)
    further = [
        one.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, one in signature(run).parameters.items()
        if name != "order"
    ]

    def called(**given: Any) -> None:
        values = {one.name: _value(one, given.pop(one.name)) for one in own}
        run(kind(**{name: value for name, value in values.items() if value is not None}), **given)

    update_wrapper(called, run)
    called.__signature__ = Signature([*map(_parameter, own), *further])  # type: ignore[attr-defined]
    return called


def _first(one: Field[Any]) -> tuple[Any, bool]:
    """Returns (the field's type on the command line, whether it may be left out). Of several allowed types, the first is taken."""
    kinds = _members(get_args(one.type)[0])
    return kinds[0], NoneType in kinds


def _members(kind: Any) -> list[Any]:
    return [part for one in get_args(kind) for part in _members(one)] if get_origin(kind) in (Union, UnionType) else [kind]


def _parameter(one: Field[Any]) -> Parameter:
    """Returns a field as a parameter for typer, with a type that typer knows and the name of the option."""
    info, (kind, optional) = copy(told(one)), _first(one)
    assert info is not None
    default: Any = Parameter.empty if one.default is MISSING else one.default
    if info.parser is not None:
        kind, info.parser, default = str, None, "" if one.default == () else one.default
    elif get_origin(kind) in (Sequence, Mapping):
        kind, optional = list[str], one.default is not MISSING or one.default_factory is not MISSING
        default = None if optional else default
    if isinstance(info, OptionInfo) and info.default is ...:
        info.default = _option(one)
    return Parameter(one.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind | None if optional else kind, info])


def _option(one: Field[Any]) -> str:
    """Returns the name of a field's option, such as `--max-new-tokens` for `max_new_tokens`."""
    info = told(one)
    return info.default if info is not None and isinstance(info.default, str) else f"--{one.name.replace('_', '-')}"


def _value(one: Field[Any], given: Any) -> Any:
    """Turns the given words into the field's value. Errors: a text that is not NAME=VALUE; a file or model given twice for one name; what
    the option's own parser refuses."""
    from titer.core.config import parse_settings

    info, (kind, _) = told(one), _first(one)
    if given is None or info is None:
        return None
    if info.parser is not None:
        return info.parser(given)
    if get_origin(kind) is Mapping:
        return pairs(_option(one), given) if get_args(kind)[1] is str else parse_settings(given, _option(one))
    return tuple(given) if get_origin(kind) is Sequence else given


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """Turns NAME=VALUE texts into a mapping: `["a=x"]` -> `{"a": "x"}`. Errors: a text of another form; a name given twice."""
    found: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            form = "ROLE=MODEL" if option == "--read" else "NAME=FILE"
            raise TiterError(f"{option} {visible(pair, 80)!r} is not {form}", expected=f"{option} {form}")
        if name in found:
            raise TiterError(
                f"{option} {name} was given twice",
                next_step="put the rows in one file." if option == "--stream" else "leave out one of the two.",
            )
        found[name] = value
    return found
