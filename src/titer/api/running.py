"""Makes the API's functions: they take the fields of a request as arguments, and can show progress. L8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field
from functools import update_wrapper
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args, get_origin

from typer.models import ArgumentInfo

from titer.commands.requests import checked, ordered, told
from titer.core.parallel import Silent
from titer.pipeline import Reporter
from titer.terminal import Terminal

Place = str | Path
RUNS = Path("runs")
P = ParamSpec("P")
Q = TypeVar("Q")
T = TypeVar("T")


def asked(kind: Callable[P, Q]) -> Callable[[Callable[[Q, Reporter, str], T]], Callable[P, T]]:
    """Decorator: turns `run(request, reporter, words that say in a report what made it)` into a function of the request's fields.

    A field with several arguments on the command line (models, tasks) takes several here too. None stands for a field's default.
    """

    def made(run: Callable[[Q, Reporter, str], T]) -> Callable[P, T]:
        shape = _signature(kind)

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            given = shape.bind(*args, **kwargs).arguments
            order = checked(kind(**{name: value for name, value in given.items() if value is not None}))  # type: ignore[call-arg]
            with reporter(getattr(order, "progress", False)) as shown:
                return run(order, shown, f"from Python: titer.api.{run.__name__}")

        update_wrapper(call, run)
        call.__signature__ = shape  # type: ignore[attr-defined]
        return call

    return made


def _signature(kind: Any) -> Signature:
    """Returns the signature of the API function: names, types and defaults of the fields. `help` shows it."""
    found: list[Parameter] = []
    for one in ordered(kind):
        own = get_args(one.type)[0] if told(one) else one.type
        many = isinstance(told(one), ArgumentInfo) and get_origin(own) is Sequence
        after = one.kw_only or any(other.kind is Parameter.VAR_POSITIONAL for other in found)
        place = Parameter.VAR_POSITIONAL if many else Parameter.KEYWORD_ONLY if after else Parameter.POSITIONAL_OR_KEYWORD
        found.append(Parameter(one.name, place, default=_default(one), annotation=get_args(own)[0] if many else own))
    return Signature(found)


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return Parameter.empty if one.default is MISSING else one.default


@contextmanager
def reporter(progress: bool) -> Iterator[Reporter]:
    """Yields what shows progress: on standard error, or nowhere if `progress` is False."""
    if not progress:
        yield Silent()
        return
    with Terminal() as terminal:
        yield terminal
