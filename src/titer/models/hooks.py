"""Reads, adds to and replaces activations at sites, and catches gradients; hooks are removed when their block ends, also after an error.

Shapes: an activation is (B, T, D) at its site. If a module's output is a tuple or a list, the activation is its first item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from titer.core.errors import TiterError
from titer.models.sites import Place, Sites

Edit = Callable[[torch.Tensor], torch.Tensor]


class _Seen(dict[str, torch.Tensor]):
    """The activations that were read, by site. Errors: a site that the model did not run."""

    def __missing__(self, name: str) -> torch.Tensor:
        raise TiterError(f"{name} was not reached: the model ran without that layer", expected="a site that every pass goes through")


@contextmanager
def reading(sites: Sites, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Yields a dict that holds, after each forward pass, the activation at every named site."""
    seen: dict[str, torch.Tensor] = _Seen()

    def store(name: str, activation: torch.Tensor) -> torch.Tensor:
        seen[name] = activation
        return activation

    with replacing(sites, {name: partial(store, name) for name in names}):
        yield seen


def adding(sites: Sites, deltas: dict[str, torch.Tensor]) -> AbstractContextManager[None]:
    """A context within which a tensor (broadcast to (B, T, D)) is added to the activation at each named site."""
    return replacing(sites, {name: partial(torch.add, delta) for name, delta in deltas.items()})


@contextmanager
def replacing(sites: Sites, edits: dict[str, Edit]) -> Iterator[None]:
    """A context within which the activation at each named site is replaced by the result of its edit."""
    with ExitStack() as stack:
        for name, edit in edits.items():
            stack.enter_context(_hooked(sites.place(name), edit))
        yield


def catching(sites: Sites, names: Sequence[str], keep: Callable[[str, torch.Tensor], None]) -> AbstractContextManager[None]:
    """A context within which each backward pass calls `keep(name, gradient)` with the gradient (B, T, D) at every named site."""

    def watched(name: str, activation: torch.Tensor) -> torch.Tensor:
        found = activation if activation.requires_grad else activation.detach().requires_grad_(True)  # nothing below is trained
        found.register_hook(partial(keep, name))
        return found

    return replacing(sites, {name: partial(watched, name) for name in names})


@contextmanager
def _hooked(place: Place, edit: Edit) -> Iterator[None]:
    shape: list[int] = []  # (B, T) of the batch in hand, for MLPs that see its positions in one row

    def begins(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape[:] = (args[0] if args else kwargs["hidden_states"]).shape[:2]

    def edited(activation: torch.Tensor) -> torch.Tensor:
        if activation.ndim == 2 and shape:
            return edit(activation.reshape(*shape, -1)).reshape(activation.shape)
        return edit(activation)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (edited(args[0]), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))  # the input, called by its name
        return args, {**kwargs, name: edited(kwargs[name])}

    def after(_: Any, __: Any, output: Any) -> Any:
        if hasattr(output, "_replace"):  # a named tuple, whose names are asked for
            return output._replace(**{output._fields[0]: edited(output[0])})
        return type(output)((edited(output[0]), *output[1:])) if isinstance(output, tuple | list) else edited(output)

    module = place.module
    handles = [module.register_forward_pre_hook(before, with_kwargs=True) if place.side == "input" else module.register_forward_hook(after)]
    if place.block is not None:
        handles.append(place.block.register_forward_pre_hook(begins, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
