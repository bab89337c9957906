"""What a method, attack, judge or probe is, in words, by its name. L6."""

from __future__ import annotations

from titer.core.errors import unknown
from titer.core.plugins import KINDS, describe, names, plugin
from titer.methods.base import Method


def shown(name: str) -> str:
    """The documentation and settings of one; the streams and models of a method. Errors: an unknown name, with the nearest."""
    where = next((kind for kind in KINDS if name in names(kind)), None)
    if where is None:
        unknown("name", name, [one for kind in KINDS for one in names(kind)])
    return "\n".join([describe(where, name), *([_wants(name)] if where == "methods" else [])])


def _wants(method: str) -> str:
    """What a method trains on and reads, as the options of align and finetune name it."""
    kind = plugin("methods", method, Method)  # type: ignore[type-abstract]
    lines = ["", f"Streams (--stream NAME=FILE; --data is train, or preferred and rejected): {', '.join(kind.STREAMS) or 'none'}"]
    return "\n".join([*lines, *([f"Models it reads (--read ROLE=MODEL): {', '.join(kind.MODELS)}"] if kind.MODELS else [])])
