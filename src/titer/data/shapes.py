"""Which format rows have, and how each is read: plain, Alpaca, chat or preference.

| reading | columns | becomes |
|---|---|---|
| plain | prompt (instruction, question, goal) or operator and operand; comply (output, completion, answer); refuse | as it stands |
| alpaca | instruction, input, output, system | input behind the instruction; a system text as a turn of its own |
| chat | messages or conversations: turns {role, content} or {from, value} | the last assistant turn is the answer, the rest the prompt |
| preference | prompt, chosen, rejected (texts or turns) | chosen is `comply`; unsafe rows: chosen `refuse`, rejected `comply` |

Any of harmful, label, kind and type may say safe or unsafe. A file that can be read in two ways is an error that names both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from titer.core.errors import TiterError, unknown, visible
from titer.data.formats import CHAT, CLASS, COMPLY, FORMAT, PAIR, PREFERENCE, PROMPT
from titer.data.readers import Row
from titer.data.turns import Turn, conversation, written

Parsed = tuple[str, bool | None, str | None, str | None]  # prompt, harmful, comply, refuse
Reading = Literal["plain", "alpaca", "chat", "preference"]
READINGS: tuple[str, ...] = get_args(Reading)
SURROGATE = re.compile("[\ud800-\udfff]")
WORDS = {"safe": False, "harmless": False, "false": False, "0": False, "unsafe": True, "harmful": True, "true": True, "1": True}


class Shape(NamedTuple):
    """How a file is read, the columns that are used (with what for) and those that are not."""

    reading: Reading
    used: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]


def shape(name: str, rows: Sequence[Row], reading: str | None = None) -> Shape:
    """How the rows of a file are read. Errors: two ways at once (both are named), an unknown `reading`."""
    if reading is not None and reading not in READINGS:
        unknown("reading", visible(reading, 80), READINGS)
    filled: dict[str, None] = {key: None for _, row in rows for key, value in row.items() if _filled(value)}
    turned = {key for _, row in rows for key in (*CHAT, *PREFERENCE) if isinstance(row.get(key), list)}
    ways = _ways(set(filled), turned)
    if reading is None:
        if len(ways) > 1:
            said = " or ".join(f"{way} ({', '.join(sorted(columns))})" for way, columns in ways.items())
            raise _ambiguous(name, said)
        _one_meaning(rows, next(iter(ways), "plain"))
    chosen: Any = reading or next(iter(ways), "plain")
    used = _used(chosen, rows, list(filled))
    spoken = {column for column, _ in used}
    return Shape(chosen, tuple(used), tuple(visible(column, 60) for column in filled if column not in spoken))


def parsed(where: str, row: Mapping[str, Any], labelled: bool, reading: str = "plain") -> Parsed:
    """One row. Errors, with its place: what is missing or blank, a class that is not stated where it must be."""
    harmful = harmful_in(row)
    if reading == "chat":
        column = next((key for key in CHAT if row.get(key) is not None), CHAT[0])
        prompt, comply = _split(conversation(where, column, row.get(column)), f"{where}, column {column}")
        refuse = text_in(row, ("refuse",))
    elif reading == "preference":
        prompt, good, bad = pair(where, row)
        comply, refuse = (bad, good) if harmful else (good, None)
    else:
        prompt, comply, refuse = _plain(where, row, PROMPT if reading == "plain" else PROMPT[1:2])
        system = row.get("system")
        if reading == "alpaca" and isinstance(system, str) and system.strip():
            prompt = written((Turn("system", system), Turn("user", prompt)))
    if labelled and harmful is None:
        raise TiterError(f"{where}, column label: safe or unsafe is not stated", expected=FORMAT)
    if any(SURROGATE.search(part) for part in (prompt, comply, refuse) if part):
        raise TiterError(f"{where}: half of a two-part character (a surrogate)", expected="whole characters")
    return prompt, harmful, comply, refuse


def pair(where: str, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of a preference row. Errors: a part missing, answers to different prompts."""
    stated = next((row[key] for key in PROMPT if _filled(row.get(key))), None)
    prompts: list[str] = [stated] if isinstance(stated, str) else []
    begun: tuple[Turn, ...] = conversation(where, "prompt", stated) if isinstance(stated, list) else ()
    answers: list[str] = []
    for column in PREFERENCE:
        value = row.get(column)
        if isinstance(value, list):
            said = conversation(where, column, value)
            before, answer = _split(
                (*begun, *said) if begun and said[0].role == "assistant" else said, f"{where}, column {column}", len(prompts)
            )
            prompts += [before] if before else []
        else:
            answer = value if isinstance(value, str) and value.strip() else None
        if answer is None:
            raise TiterError(
                f"{where}, column {column}: {visible(repr(value), 60)}", expected="an answer: a text, or turns that end with one"
            )
        answers.append(answer)
    if not prompts and begun:
        prompts = [written(begun)]
    if len(set(prompts)) != 1 or not prompts[0].strip():
        which = "no prompt" if not any(prompts) else f"{len(set(prompts))} different prompts"
        raise TiterError(f"{where}: {which} for chosen and rejected", expected="one prompt, and two answers to it")
    return prompts[0], answers[0], answers[1]


def harmful_in(row: Mapping[str, Any]) -> bool | None:
    """What a row says of its class."""
    column = _class_column(row)
    return None if column is None else WORDS[str(row[column]).strip().lower()]


def text_in(row: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The first of these columns that holds a text."""
    return next((row[key] for key in keys if isinstance(row.get(key), str) and row[key].strip()), None)


def _class_column(row: Mapping[str, Any]) -> str | None:
    return next((key for key in CLASS if isinstance(row.get(key), str | bool | int) and str(row[key]).strip().lower() in WORDS), None)


def _plain(where: str, row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, str | None, str | None]:
    column = next((key for key in columns if key in row), None)
    if column is None and all(isinstance(row.get(key), str) and row[key].strip() for key in PAIR):
        row, column = {**row, "prompt": " : ".join(row[key] for key in PAIR)}, "prompt"  # as the mechanistic study writes pairs
    if column is None:
        raise TiterError(f"{where}: no column {' or '.join(columns)} among {visible(', '.join(row), 120)}", expected=FORMAT)
    prompt = row[column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise TiterError(f"{where}, column {column}: {visible(repr(prompt), 60)}", expected="a text that is not empty")
    extra = row.get("input")
    whole = f"{prompt}\n\n{extra}" if column == "instruction" and isinstance(extra, str) and extra.strip() else prompt
    return whole, text_in(row, COMPLY), text_in(row, ("refuse",))


def _split(said: tuple[Turn, ...], place: str, known: int = 0) -> tuple[str, str | None]:
    """(prompt, answer): the last assistant turn is the answer; a conversation that ends with the user's turn has none."""
    if said[-1].role == "user":
        return written(said), None
    before = said[:-1]
    if not before or before[-1].role != "user":  # an answer alone, to a prompt that stands elsewhere
        if before or not known:
            raise TiterError(f"{place}: an answer to no request", expected="a user's turn before the assistant's")
        return "", said[-1].content
    return written(before), said[-1].content


def _filled(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None and value != []


def _ways(filled: set[str], turned: set[str]) -> dict[str, set[str]]:
    """Every reading that the filled columns allow, with the columns it rests on; `turned` columns hold lists."""
    prompts = filled & set(PROMPT)
    found: dict[str, set[str]] = {}
    plain = prompts or (set(PAIR) if set(PAIR) <= filled else set())
    chat, both = filled & turned & set(CHAT), set(PREFERENCE) <= filled and (plain or set(PREFERENCE) <= turned)
    if len(chat) > 1:
        found |= {f"chat in {column}": {column} for column in sorted(chat)}
    elif chat:
        found["chat"] = chat
    if both:
        found["preference"] = set(PREFERENCE) | prompts
    answers = filled & (set(COMPLY) | {"refuse"})
    if plain and not (both and not answers):  # chosen and rejected need the prompt themselves
        alpaca = prompts == {"instruction"} and bool(filled & {"output", "input"}) and not answers - {"output", "refuse"}
        found["alpaca" if alpaca else "plain"] = plain | answers
    return found


def _one_meaning(rows: Sequence[Row], way: str) -> None:
    """Two prompts, or two answers besides the plain word `comply`, that differ in one row."""
    if way not in ("plain", "alpaca"):
        return
    for where, row in rows:
        for what, keys in (("prompts", PROMPT), ("answers", () if text_in(row, COMPLY[:1]) else COMPLY)):
            texts = {key: row[key] for key in keys if isinstance(row.get(key), str) and row[key].strip()}
            if len(set(texts.values())) > 1:
                raise _ambiguous(where, " or ".join(f"{what} in {key}" for key in texts))


def _ambiguous(where: str, said: str) -> TiterError:
    return TiterError(
        f"{where} can be read in two ways: {said}",
        expected="columns that leave one reading",
        next_step="take out or rename the other columns.",
    )


def _used(reading: str, rows: Sequence[Row], filled: Sequence[str]) -> list[tuple[str, str]]:
    """(column, what for) of a reading, in the file's order of use."""
    purposes: dict[str, str] = {}
    if reading in ("plain", "alpaca"):
        prompts = [key for key in PROMPT if key in filled][: 1 if reading == "plain" else None]
        prompts = ["instruction"] if reading == "alpaca" else prompts
        purposes |= dict.fromkeys(prompts or PAIR, "prompt")
        if "instruction" in prompts:
            purposes["input"] = "prompt, behind the instruction"
        if reading == "alpaca":
            purposes["system"] = "system text"
        chosen = {next((key for key in COMPLY if _filled(row.get(key))), "comply"): 0 for _, row in rows}
        purposes |= dict.fromkeys(chosen, "answer (comply)")
    elif reading == "chat":
        purposes |= dict.fromkeys(CHAT, "turns: the last assistant turn is the answer (comply), the rest the prompt")
    else:
        purposes |= dict.fromkeys(PROMPT, "prompt") | {"chosen": "the preferred answer", "rejected": "the rejected answer"}
    purposes["refuse"] = "answer (refuse)"
    purposes |= dict.fromkeys(filter(None, {_class_column(row): 0 for _, row in rows}), "safe or unsafe")
    return [(column, purpose) for column, purpose in purposes.items() if column in filled]
