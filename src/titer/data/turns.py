"""Conversations inside a prompt: a prompt is a text everywhere; here is the one form in which that text holds several turns.

A prompt of one user turn is that turn's text as it is. A prompt with a system text or earlier turns is written as
MARK role NEWLINE content, turn after turn, where MARK is U+001E (the record separator, which no written text holds). The
form is canonical: `turns(written(x)) == x`, so it may be stored, hashed and read back; a text that is not of this form is
one user turn. `templates.texts` hands the turns to the tokenizer's chat template; where there is none, `joined` says how
they stand: a system text before one request is kept apart by a blank line (as the task `persona` writes it); with more
turns each has its speaker's name on a line above it, and the last line is "Assistant:".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

from titer.core.errors import TiterError, visible

MARK = "\x1e"
Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
WANTED = "a list of turns, each {role, content} or {from, value}: a system text or none, then user and assistant in turn"


class Turn(NamedTuple):
    """What one speaker says."""

    role: Role
    content: str


def written(said: Sequence[Turn]) -> str:
    """The turns of a prompt as one text. Errors: a turn that holds MARK, turns that do not end with the user's."""
    if not said or said[-1].role != "user":
        raise TiterError("a prompt whose last turn is not the user's", expected=WANTED)
    if any(MARK in turn.content for turn in said):
        raise TiterError("a turn that holds the record separator U+001E", expected="text without it")
    if len(said) == 1:
        return said[0].content
    return "".join(f"{MARK}{turn.role}\n{turn.content}" for turn in said)


def turns(prompt: str) -> tuple[Turn, ...]:
    """The turns of a prompt; a text of no other form is one turn of the user's."""
    if not prompt.startswith(MARK):
        return (Turn("user", prompt),)
    pieces = [piece.partition("\n") for piece in prompt[1:].split(MARK)]
    if len(pieces) < 2 or pieces[-1][0] != "user" or any(role not in ROLES.values() or not line for role, line, _ in pieces):
        return (Turn("user", prompt),)
    return tuple(Turn(cast(Role, role), content) for role, _, content in pieces)


def changed(prompt: str, change: Callable[[str], str]) -> str:
    """The prompt with its last user turn changed: how a marker or a jailbreak is put before a request."""
    *before, last = turns(prompt)
    return written([*before, Turn("user", change(last.content))])


def joined(said: Sequence[Turn]) -> str:
    """The turns as plain text, for a model without a chat template and for a reader."""
    if all(turn.role == "system" for turn in said[:-1]):
        return "\n\n".join(turn.content for turn in said)
    named = [turn.content if turn.role == "system" else f"{turn.role.capitalize()}:\n{turn.content}" for turn in said]
    return "\n\n".join([*named, "Assistant:\n"])


def conversation(where: str, column: str, value: Any) -> tuple[Turn, ...]:
    """Turns from the user's data; an answer alone (one assistant turn) and a prompt alone are conversations too.

    Errors, each with its place: no list of turns, an unknown speaker, an empty turn, speakers out of turn.
    """
    place = f"{where}, column {column}"
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise TiterError(f"{place}: {visible(repr(value), 60)}", expected=WANTED)
    found = tuple(_turn(f"{place}, turn {number}", turn) for number, turn in enumerate(value, start=1))
    rest = [turn.role for turn in found[found[0].role == "system" :]]
    if not rest or "system" in rest or any(a == b for a, b in pairwise(rest)):
        raise TiterError(f"{place}: the speakers are {', '.join(turn.role for turn in found)}", expected=WANTED)
    return found


def _turn(where: str, turn: Mapping[str, Any]) -> Turn:
    speaker, content = (
        next((turn[key] for key in keys if turn.get(key) is not None), None) for keys in (("role", "from"), ("content", "value"))
    )
    role = ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise TiterError(f"{where}: unknown speaker {visible(repr(speaker), 40)}", expected=f"one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise TiterError(f"{where}: {visible(repr(content), 60)}", expected="a text that is not empty")
    if MARK in content:
        raise TiterError(f"{where}: the record separator U+001E", expected="text without it")
    return Turn(role, content)
