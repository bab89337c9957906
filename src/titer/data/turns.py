"""Stores conversations inside a prompt. A prompt is a text everywhere; this file defines how that text holds several turns.

A prompt of one user turn is that turn's text as it is. A prompt with a system text or earlier turns is written as
MARK role NEWLINE content, turn after turn, where MARK is U+001E (the record separator, which no written text holds). The
form is canonical: `turns(written(x)) == x`, so it may be stored, hashed and read back; a text that is not of this form is
one user turn. `templates.texts` hands the turns to the tokenizer's chat template; where there is none, `joined` says how
they stand: a system text before one request is kept apart by a blank line (as the task `persona` writes it); with more
turns each has its speaker's name on a line above it, and the last line is "Assistant:".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

from titer.core.errors import Faulty, TiterError, visible
from titer.data.readers import listed

MARK = "\x1e"
Role = Literal["system", "user", "assistant"]
SPEAKERS: dict[Role, tuple[str, ...]] = {  # role -> its names in files
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatbot", "chatgpt", "ai"),
}
ROLES = {name: role for role, names in SPEAKERS.items() for name in names}
TOOLS = ("tool", "function", "ipython", "tool_calls", "function_call", "observation")  # speakers and keys that mark turns of tools
SAYS = (("role", "from", "speaker"), ("content", "value", "parts", "text", "refusal"))  # keys of a turn: who speaks, what is said
WEIGHTS = ("weight", "train", "loss")  # keys that say whether a turn is trained: 0 or false means no
SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # how transcripts name their speakers; source: Anthropic's HH-RLHF
PICTURED = "with an image, a video or a sound"  # why a row is left out
WANTED = "a list of turns, each {role, content} or {from, value}: a system text or none, then user and assistant in turn"


class Turn(NamedTuple):
    """What one speaker says."""

    role: Role
    content: str


def written(said: Sequence[Turn]) -> str:
    """Writes the turns of a prompt as one text. Errors: a turn contains MARK, or the last turn is not the user's."""
    if not said or said[-1].role != "user":
        raise TiterError("a prompt whose last turn is not the user's", expected=WANTED)
    if any(MARK in turn.content for turn in said):
        raise TiterError("a turn that holds the record separator U+001E", expected="text without it")
    if len(said) == 1:
        return said[0].content
    return "".join(f"{MARK}{turn.role}\n{turn.content}" for turn in said)


def turns(prompt: str) -> tuple[Turn, ...]:
    """Reads the turns of a prompt (the inverse of `written`); a text in any other form is one user turn."""
    if not prompt.startswith(MARK):
        return (Turn("user", prompt),)
    pieces = [piece.partition("\n") for piece in prompt[1:].split(MARK)]
    if len(pieces) < 2 or pieces[-1][0] != "user" or any(role not in SPEAKERS or not line for role, line, _ in pieces):
        return (Turn("user", prompt),)
    return tuple(Turn(cast(Role, role), content) for role, _, content in pieces)


def changed(prompt: str, change: Callable[[str], str]) -> str:
    """Applies `change` to the last user turn of a prompt, for example to put a marker or a jailbreak before the request."""
    *before, last = turns(prompt)
    return written([*before, Turn("user", change(last.content))])


def request(prompt: str, system: bool = False) -> str:
    """Normalises a prompt, so that prompts with equal results count as the same request: without its system text (unless `system`), in
    small letters, with single spaces, without punctuation at the ends. A prompt of punctuation alone keeps it.
    """
    said = "\n".join(turn.content for turn in turns(prompt) if system or turn.role != "system")
    plain = " ".join(unicodedata.normalize("NFKC", said).casefold().split())
    inside = [i for i, letter in enumerate(plain) if letter != " " and not unicodedata.category(letter).startswith("P")]
    return plain[inside[0] : inside[-1] + 1] if inside else plain


def joined(said: Sequence[Turn]) -> str:
    """Writes turns as plain text, for a model without a chat template and for a human reader."""
    if all(turn.role == "system" for turn in said[:-1]):
        return "\n\n".join(turn.content for turn in said)
    named = [turn.content if turn.role == "system" else f"{turn.role.capitalize()}:\n{turn.content}" for turn in said]
    return "\n\n".join([*named, "Assistant:\n"])


class LeftOut(Exception):  # noqa: N818  it is no error: the row is counted
    """Raised for a sound row that cannot be used here. Its text gives the reason; rows are counted by reason."""


def conversation(where: str, column: str, value: Any) -> tuple[Turn, ...]:
    """Reads turns from the user's data. A single answer (one assistant turn) and a prompt without an answer are conversations too.

    Texts without speakers are the user's and the assistant's in turn; an empty system text is left out. An answer with
    weight 0 is not trained, so all turns after the last answer with another weight are cut off. Errors, each with its place: not a list of
    turns, an unknown speaker, an empty turn, speakers out of turn. Raises LeftOut for turns of tools, for images, or if no answer
    is to be trained.
    """
    place = f"{where}, column {column}"
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        value = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(value)]
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise Faulty(f"{place}: {visible(repr(value), 60)}", expected=WANTED)
    if any(turn.get("role", turn.get("from")) in TOOLS or any(turn.get(key) for key in TOOLS) for turn in value):
        raise LeftOut("with turns of tools")
    if any(_pictured(part) for turn in value if isinstance(content := _of(turn, SAYS[1]), list) for part in content):
        raise LeftOut(PICTURED)
    first = _of(value[0], SAYS[0])
    value = value[1:] if len(value) > 1 and first in SPEAKERS["system"] and _blank(_of(value[0], SAYS[1])) else value
    found = tuple(_turn(f"{place}, turn {number}", turn) for number, turn in enumerate(value, start=1))
    rest = [turn.role for turn in found[found[0].role == "system" :]]
    if not rest or "system" in rest or any(a == b for a, b in pairwise(rest)):
        raise Faulty(f"{place}: the speakers are {', '.join(turn.role for turn in found)}", expected=WANTED)
    return _trained(found, [_of(turn, WEIGHTS) for turn in value])


def besides(value: Any) -> set[str]:
    """Returns the turns' fields that are not read, such as a thought in its own field, or a speaker's name."""
    known = {key for keys in (*SAYS, WEIGHTS, TOOLS) for key in keys}
    said = [turn for turn in value if isinstance(turn, Mapping)]
    parts = [part for turn in said if isinstance(content := _of(turn, SAYS[1]), list) for part in content if _thought(part)]
    return {str(key) for turn in said for key, value in turn.items() if value and key not in known} | {str(part["type"]) for part in parts}


def _thought(part: Any) -> bool:
    """Tells whether a part of content is a thought: {type: thinking, thinking: ...}."""
    return isinstance(part, Mapping) and part.get("type") in ("thinking", "reasoning", "redacted_thinking")


def _pictured(part: Any) -> bool:
    """Tells whether a part of content is an image, a video or a sound: {type: image_url, ...}, {type: input_audio, ...}."""
    return isinstance(part, Mapping) and re.search("image|video|audio", str(part.get("type")), re.IGNORECASE) is not None


def _blank(content: Any) -> bool:
    return content is None or content == [] or (isinstance(content, str) and not content.strip())


def _of(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def turns_of(value: Any) -> Any:
    """Returns turns as a list: of a single turn, of turns in JSON (a .csv file's cell), and of a table of turns, {role: [...], content:
    [...]}, as Parquet files of older `datasets` hold them; anything else unchanged."""
    if isinstance(value, Mapping) and {"role", "from"} & set(value):
        cells = list(value.values())
        if all(isinstance(cell, list) and len(cell) == len(cells[0]) for cell in cells):
            return [dict(zip(value, turn, strict=True)) for turn in zip(*cells, strict=True)]
        return [value]
    if isinstance(value, str) and value.lstrip().startswith("[{") and (found := listed(value)) is not None:
        return found if all(isinstance(turn, dict) and {"role", "from"} & set(turn) for turn in found) else value
    return value


def transcript(where: str, column: str, text: str) -> tuple[Turn, ...]:
    """Reads turns from a text that names its speakers: "\n\nHuman: ... \n\nAssistant: ...".
    Raises LeftOut for an empty turn, or a speaker twice in a row."""
    pieces = SPOKEN.split(text.strip())
    said = [{"role": role.lower(), "content": content.strip()} for role, content in zip(pieces[1::2], pieces[2::2], strict=True)]
    if pieces[0].strip() or not said or any(not turn["content"] for turn in said):
        raise LeftOut("with an empty turn")
    if any(a["role"] == b["role"] for a, b in pairwise(said)):
        raise LeftOut("with one speaker twice in a row")
    return conversation(where, column, said)


def is_transcript(value: Any) -> bool:
    """Tells whether a value is a transcript: a text that begins with "Human:" and has an "Assistant:" after a blank line."""
    return isinstance(value, str) and re.match(r"\s*Human: ?", value) is not None and "\n\nAssistant:" in value


def is_asked(value: Any) -> bool:
    """Tells whether a value is a list of turns whose last one is the user's."""
    last = value[-1] if isinstance(value, list) and value else None
    return isinstance(last, Mapping) and ROLES.get(str(_of(last, SAYS[0])).lower()) == "user"


def unanswered(value: Any) -> Any:
    """Returns a list of turns without an empty last turn of the assistant, where an answer is to be written; anything else unchanged."""
    last = value[-1] if isinstance(value, list) and len(value) > 1 else None
    if not isinstance(last, Mapping) or any(last.get(key) for key in TOOLS):
        return value
    return value[:-1] if ROLES.get(str(_of(last, SAYS[0])).lower()) == "assistant" and _blank(_of(last, SAYS[1])) else value


def history(where: str, column: str, held: Any) -> tuple[Turn, ...]:
    """Reads the turns before a request. Errors: they are neither pairs of texts nor turns that end with an answer."""
    if isinstance(held, list) and all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) and t.strip() for t in p) for p in held
    ):
        held = [text for pair in held for text in pair]
    elif not isinstance(held, list) or not all(isinstance(turn, Mapping) for turn in held) or is_asked(held):
        expected = "a list of pairs (a request and its answer), or of turns {role, content} that ends with an answer"
        raise TiterError(f"{where}, column {column}: {visible(repr(held), 60)} is not a history", expected=expected)
    return conversation(where, column, held) if held else ()


def with_system(said: tuple[Turn, ...], where: str, text: Any) -> tuple[Turn, ...]:
    """Puts a system text from its own column before the turns. Errors: the turns begin with a different system text."""
    if not isinstance(text, str) or not text.strip():
        return said
    if said[0].role == "system" and said[0].content != text:
        raise Faulty(f"{where}: two system texts, in the turns and in a column", next_step="take out one of the two.")
    return said if said[0].role == "system" else (Turn("system", text), *said)


def _trained(found: tuple[Turn, ...], weights: Sequence[Any]) -> tuple[Turn, ...]:
    """Cuts the turns after the last answer whose weight is not 0, if some weight is 0 and the turns end with an answer."""
    if not any(isinstance(weight, int | float) and weight == 0 for weight in weights) or found[-1].role == "user":
        return found
    kept = [i for i, (turn, weight) in enumerate(zip(found, weights, strict=True)) if turn.role == "assistant" and weight != 0]
    if not kept:
        raise LeftOut("whose answers all have the weight 0")
    return found[: kept[-1] + 1]


def _turn(where: str, turn: Mapping[str, Any]) -> Turn:
    speaker, content = (_of(turn, keys) for keys in SAYS)
    role = ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise Faulty(f"{where}: unknown speaker {visible(repr(speaker), 40)}", expected=f"one of {', '.join(ROLES)}")
    content = plain_text(where, content)
    if not isinstance(content, str) or not content.strip():
        raise Faulty(f"{where}: {visible(repr(content), 60)}", expected="a text that is not empty")
    if MARK in content:
        raise Faulty(f"{where}: the record separator U+001E", expected="text without it")
    return Turn(role, content)


def plain_text(where: str, content: Any) -> Any:
    """Joins content in parts, [{type: text, text: ...}, ...], to one text; returns anything else unchanged. A part that is a thought is
    left out. Errors: a part is no text."""
    if not isinstance(content, list) or not content:
        return content
    content = [part for part in content if not _thought(part)]
    texts = [part if isinstance(part, str) else _of(part, ("text", "refusal")) if isinstance(part, Mapping) else None for part in content]
    if wrong := [part for part, text in zip(content, texts, strict=True) if not isinstance(text, str)]:
        kind = wrong[0].get("type") if isinstance(wrong[0], Mapping) else wrong[0]
        raise Faulty(f"{where}: a part of content that is no text ({visible(repr(kind), 40)})", expected="parts {type: text, text: ...}")
    return "".join(map(str, texts))
