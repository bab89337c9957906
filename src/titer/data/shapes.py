"""Decides how a file's rows are read (as plain, Alpaca, chat, preference or unpaired data), and reads each row.

| reading | columns | becomes |
|---|---|---|
| plain | one of `formats.PROMPT` (a text or turns), or operator and operand; one of `formats.COMPLY`; refuse | as it is |
| alpaca | instruction, input (or Dolly's context), output (or response) | input behind the instruction |
| chat | messages, conversations or contents: turns {role, content} or {from, value} | the last assistant turn is the answer |
| preference | prompt, chosen, rejected (texts, turns or transcripts) | chosen is `comply`; unsafe rows: `refuse`, and rejected `comply` |
| unpaired | prompt, completion, label or kto_tag (is the completion wanted?) | a wanted completion is `comply`, another no answer |

The columns harmful, label, prompt_label, prompt_harm_label, kind and type may say safe or unsafe. So may is_safe, unsafe, toxic, jailbreak
and the like, if the row has no answer (`formats.CLASS`). A column `system` is the system text, `input` or `text` the prompt without others.
If several readings fit, the command's need decides (`chosen_way`); if it cannot, the error names the readings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

from titer.core.errors import Faulty, TiterError, unknown, visible
from titer.data import formats
from titer.data.formats import BEHIND, CHAT, CLASS, COMPLY, EARLIER, FORMAT, HARM, PAIR, PREFERENCE, PROMPT, SAFE, SEEN, SYSTEM, UNSAFE
from titer.data.prompt_sets import UNSTATED
from titer.data.readers import Row, whole
from titer.data.turns import (
    PICTURED,
    LeftOut,
    Turn,
    besides,
    conversation,
    history,
    is_asked,
    is_transcript,
    plain_text,
    transcript,
    turns_of,
    unanswered,
    with_system,
    written,
)

Parsed = tuple[str, bool | None, str | None, str | None]  # prompt, harmful, comply, refuse
Reading = Literal["plain", "alpaca", "chat", "preference", "unpaired"]
Need = Literal["prompts", "answers", "pairs"]  # what a command needs from a file
READINGS: tuple[str, ...] = get_args(Reading)
PROMPTS_FIRST = ["plain", "alpaca", "unpaired", "preference"]  # readings with a column of prompts, in order of preference
HARMS = ("harmful", "toxic", "malicious", "jailbreak")
NOT = ("non-", "non_", "non ", "non", "not ", "not_", "not-", "un")
NOT_HARMS, NOT_SAFE = ([f"{no}{word}" for word in words for no in NOT] for words in (HARMS, ["safe"]))
TRUTHS = {"true": True, "false": False}
NUMBERS = {**TRUTHS, "1": True, "1.0": True, "0": False, "0.0": False}  # values of an unpaired label
YES = {"yes": True, "no": False, "y": True, "n": False}
WORDS = NUMBERS | dict.fromkeys((*NOT_SAFE, *HARMS), True) | dict.fromkeys(("safe", "harmless", "benign", *NOT_HARMS), False)
SAID = {*WORDS} - {*NUMBERS}  # words that say safe or unsafe, whatever their column's name
OF_SAFE = {word: not said for word, said in (NUMBERS | YES).items()} | {"safe": False} | dict.fromkeys(NOT_SAFE, True)
WISHES = dict.fromkeys(formats.WANTED, True) | dict.fromkeys(formats.UNWANTED, False)
OPENAI_PAIR = ("preferred_output", "non_preferred_output")
ALONE = ("input", "text")  # the prompt, where no other column may be one
TREE = {"message_id", "text", "role"}  # OpenAssistant's tree: one row for each message


class Shape(NamedTuple):
    """How a file is read: the reading; (column, its use) for each used column; the other columns; notes for the user on the choice."""

    reading: Reading
    used: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    told: tuple[str, ...] = ()


def straight(rows: Iterable[Row]) -> list[Row]:
    """Brings rows to one form: turns as lists (a .csv file has JSON, a column may have a single turn), pairs as chosen and rejected."""
    columns = (*CHAT, *PREFERENCE, "prompt", "completion")
    found: list[Row] = [(where, _paired({k: turns_of(v) if k in columns else v for k, v in row.items()})) for where, row in rows]
    there = {key for _, row in found for key in row}
    if there & {*PROMPT, *CHAT, *PREFERENCE, *PAIR, "role"}:
        return found
    alone = next((key for key in ALONE if key in there), "")
    return [(where, {"prompt" if key == alone else key: value for key, value in row.items()}) for where, row in found]


def _paired(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Gives rows of OpenAI's or LLaMA-Factory's pairs (beside a conversation without answer) a column prompt; others are unchanged."""
    asked = row.get("input")
    if isinstance(asked, Mapping) and set(OPENAI_PAIR) <= set(row):
        rest = {key: value for key, value in row.items() if key not in ("input", *OPENAI_PAIR)}
        return {**rest, "prompt": asked.get("messages"), **{name: row[key] for name, key in zip(PREFERENCE, OPENAI_PAIR, strict=True)}}
    if all(_filled(row.get(key)) for key in PREFERENCE) and not any(_filled(row.get(key)) for key in PROMPT):
        column = next((key for key in CHAT if is_asked(row.get(key))), "")
        return {"prompt" if key == column else key: value for key, value in row.items()}
    return row


def shape(name: str, rows: Sequence[Row], reading: str | None = None, need: Need = "answers") -> Shape:
    """Decides how a file's rows are read. Errors: two readings fit the need equally (the error names both); an unknown `reading`."""
    if reading is not None and reading not in READINGS:
        unknown("reading", visible(reading, 80), READINGS)
    filled = list(dict.fromkeys(key for _, row in rows for key, value in row.items() if _filled(value)))
    if set(filled) >= TREE and not set(filled) & {*PROMPT, *CHAT}:
        raise TiterError(
            f"{name} has one row for each message, as in OpenAssistant's tree",
            next_step="join the rows of each conversation into a column `messages`.",
        )
    turned = {key for _, row in rows for key in (*CHAT, *PREFERENCE) if isinstance(row.get(key), list) or is_transcript(row.get(key))}
    ways = _ways(set(filled), turned, _is_unpaired(rows))
    way = reading or chosen_way(name, ways, need, bool(set(filled) & {*COMPLY, "refuse"}))
    if reading is None:
        _one_meaning(rows, way)
    said = {(key, str(row[key]).strip().lower()) for _, row in rows for key in _class_columns(row)}
    numbered = sorted({key for key, word in said if word in NUMBERS} - {*HARM, *UNSAFE, *SAFE})
    others = [f"{other} ({', '.join(sorted(columns))})" for other, columns in ways.items() if other != way]
    told = []
    if others and reading is None:
        told.append(f"{name} is read as {way}; it could be read as {' or '.join(others)} (--reading)")
    if numbered and way != "unpaired":
        told.append(f"{name} has numbers or true/false in {', '.join(numbered)}: 1 and true count as unsafe, 0 and false as safe")
    told += _passed_over(name, rows, way)
    used = _used(way, rows, filled)
    ignored = tuple(visible(column, 60) for column in filled if column not in dict(used))
    return Shape(cast(Reading, way), tuple(used), ignored, tuple(told))


def _passed_over(name: str, rows: Sequence[Row], way: str) -> list[str]:
    """Notes: which parts of turns are not read, and that a label beside an answer counts as the prompt's class."""
    lost = sorted(
        {key for _, row in rows for column in (*CHAT, *PREFERENCE) if isinstance(row.get(column), list) for key in besides(row[column])}
    )
    plain = ("label", "kind", "type")  # names that do not say whose class they are
    beside = (
        sorted({key for _, row in rows if _texts(row, COMPLY[1:]) for key in _class_columns(row) if key in plain}) if way == "plain" else []
    )
    return [
        *([f"{name}: in its turns, {visible(', '.join(lost), 120)} is not read"] if lost else []),
        *([f"{name}: {', '.join(beside)} counts as the class of the prompt, not of the answer beside it"] if beside else []),
    ]


def chosen_way(name: str, ways: Mapping[str, set[str]], need: Need, answered: bool) -> str:
    """Chooses the reading that gives what the command needs (pairs, answers to train, or prompts). Errors: two readings give it."""
    fit = list(ways) or ["plain"]
    if need == "pairs" and "preference" in fit:
        fit = ["preference"]
    elif need == "prompts" and len(fit) > 1:  # prefer a column of prompts to a conversation that contains them
        fit = [way for way in PROMPTS_FIRST if way in fit][:1] or fit
    elif len(fit) > 1:  # prompts without answers do not fit; a conversation beside a pair ends with the chosen answer
        fit = [way for way in fit if not (way == "plain" and not answered) and not (way == "preference" and "chat" in fit)]
    if len(fit) > 1:
        said = " or ".join(f"{way} ({', '.join(sorted(ways[way]))})" for way in fit)
        raise _ambiguous(name, said, f"choose one: --reading {fit[0].split()[0]}, or remove the other columns.")
    return fit[0]


def parsed(where: str, row: Mapping[str, Any], labelled: bool, reading: str = "plain", need: Need = "answers") -> Parsed:
    """Reads one row. Errors, with its place: something is missing or blank; a class is needed and not stated.

    Raises LeftOut if the row cannot be used (turns of tools, an image, no answer to train, a completion that is not wanted).
    """
    if any(_filled(row.get(key)) for key in SEEN):
        raise LeftOut(PICTURED)
    wish = next((key for key in formats.WISH if _filled(row.get(key))), "label")
    stated = {**row, wish: None} if reading == "unpaired" else row
    harmful = harmful_in(where, stated)
    if reading == "chat" or (reading == "unpaired" and not any(_filled(row.get(key)) for key in PROMPT)):
        column = next((key for key in CHAT if row.get(key) is not None), CHAT[0])
        talk = unanswered(row.get(column)) if need == "prompts" else row.get(column)
        said = with_system(conversation(where, column, talk), where, _system(where, row))
        before, comply = _split(said, f"{where}, column {column}")
        prompt, refuse = written(before), _texts(row, ["refuse"]).get("refuse")
    elif reading == "preference":
        prompt, good, bad = pair(where, row)
        comply, refuse = (bad, good) if harmful else (good, None)
    else:
        wanted = FORMAT if labelled or need == "prompts" else formats.ANSWERS
        prompt, comply, refuse = _plain(where, row, PROMPT if reading != "alpaca" else PROMPT[1:2], wanted)
    if reading == "unpaired" and not (NUMBERS | WISHES).get(str(row.get(wish)).strip().lower(), False):
        if need == "answers":
            raise LeftOut("whose completion is not wanted")
        comply = None
    if labelled and harmful is None:
        raise LeftOut("whose class the set does not state") if row.get("harmful") == UNSTATED else _no_class(where, stated, reading)
    whole(where, prompt, comply, refuse)
    return prompt, harmful, comply, refuse


def pair(where: str, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Reads a preference row as (prompt, chosen, rejected). Errors: a missing part; answers to different prompts (transcripts: LeftOut)."""
    column = next((key for key in PROMPT if _filled(row.get(key))), "")
    begun = _said(where, column, row[column]) if column else ()
    prompts: list[tuple[Turn, ...]] = []
    answers: list[str] = []
    for column in PREFERENCE:
        value, answer = row.get(column), None
        if isinstance(value, list) or is_transcript(value):
            said = transcript(where, column, value) if isinstance(value, str) else conversation(where, column, value)
            said = (*begun, *said) if begun and said[0].role == "assistant" else said
            before, answer = _split(said, f"{where}, column {column}")
            prompts += [before]
        elif isinstance(value, str) and value.strip():
            answer = value
        if answer is None:
            expected = "a text, or turns that end with the assistant's answer"
            raise Faulty(f"{where}, column {column}: {visible(repr(value), 60)} is not an answer", expected=expected)
        answers.append(answer)
    if begun and not any(one[-len(begun) :] == begun for one in prompts):
        prompts.append(begun)
    if len(set(prompts)) != 1:
        if is_transcript(row.get("chosen")) and prompts:
            raise LeftOut("whose two answers follow different prompts")
        which = f"{len(set(prompts))} different prompts" if prompts else "no prompt"
        raise Faulty(f"{where}: {which} for chosen and rejected", expected="one prompt and two answers to it")
    return written(with_system(prompts[0], where, _system(where, row))), answers[0], answers[1]


def harmful_in(where: str, row: Mapping[str, Any]) -> bool | None:
    """Reads whether a row calls its prompt harmful; None if it does not say. Errors: two columns contradict each other."""
    said = {column: _words(column)[str(row[column]).strip().lower()] for column in _class_columns(row)}
    if len(set(said.values())) > 1:
        words = ", ".join(f"{column} says {visible(repr(row[column]), 40)}" for column in said)
        raise TiterError(f"{where} is called safe and unsafe at once ({words})", next_step="correct or remove one of the two columns.")
    return next(iter(said.values()), None)


def _texts(row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """Returns the columns among `keys` that have a text, with it."""
    return {key: row[key] for key in keys if isinstance(row.get(key), str) and row[key].strip()}


def _class_columns(row: Mapping[str, Any]) -> list[str]:
    theirs = (*UNSAFE, *SAFE) if _has_answer(row) else ()
    said = {key: str(row[key]).strip().lower() for key in CLASS if isinstance(row.get(key), str | bool | int | float)}
    return [key for key, word in said.items() if key not in theirs and word in _words(key)]


def _has_answer(row: Mapping[str, Any]) -> bool:
    return any(_filled(row.get(key)) for key in (*COMPLY, *CHAT, *PREFERENCE, "refuse"))


def _words(column: str) -> Mapping[str, bool]:
    """Returns word -> whether it means harmful, for a column of classes. Yes and no count only in columns named for harm or safety."""
    return OF_SAFE if column in SAFE else WORDS | YES if column in (*HARM, *UNSAFE) else WORDS


def _no_class(where: str, row: Mapping[str, Any], reading: str) -> TiterError:
    """The error for a row without a class: an unknown word, or no such column."""
    column = next((key for key in CLASS if row.get(key) is not None and str(row[key]).strip()), "label")
    what = "safe or unsafe is not stated"
    if reading == "unpaired":
        what += " (label says which completions are wanted, not which prompts are unsafe)"
    elif column in (*UNSAFE, *SAFE) and _has_answer(row):
        what += " (the row has an answer, and the column may be about that)"
    elif _filled(row.get(column)):
        what = f"{visible(repr(row[column]), 60)} is neither safe nor unsafe"
    elif reading in ("chat", "preference"):
        what += f" (the file is read as {reading})"
    says = next((key for key, word in row.items() if key not in CLASS and isinstance(word, str) and word.strip().lower() in SAID), "")
    then = f"call the column {visible(says, 60)} label, if it says so of the prompts" if says else "add the column"
    return TiterError(
        f"{where}, column {column}: {what}",
        expected=FORMAT,
        next_step=f"{then}; or, if it is the same for all prompts, give safe:FILE or unsafe:FILE.",
    )


def _is_unpaired(rows: Sequence[Row]) -> bool:
    """Whether the rows are unpaired preferences: answers, with a label that is true or false in every row.

    Words such as "rejected" are never a class. In TRL's columns (prompt, completion) the label may be a number. Beside other answers, a
    number in `label` is a class; beside `comply`, Titer's own column, every label is a class.
    """
    wish = next((key for key in formats.WISH if any(_filled(row.get(key)) for _, row in rows)), "label")
    labels = {str(row[wish]).strip().lower() for _, row in rows if _filled(row.get(wish))}
    own = any(_filled(row.get("prompt")) and _filled(row.get("completion")) for _, row in rows)
    talks = [row[key] for _, row in rows for key in CHAT if isinstance(row.get(key), list)]
    answered = any(_filled(row.get(key)) for _, row in rows for key in COMPLY[1:]) or any(len(talk) > 1 for talk in talks)
    known = {*WISHES, *(NUMBERS if own or wish != "label" or "-1" in labels else TRUTHS)}
    return bool(labels) and (own or answered) and labels <= known


def _system(where: str, row: Mapping[str, Any]) -> Any:
    """The system text of a row, from a text or from an object with parts; None without one. Errors: something else."""
    value = next((row[key] for key in SYSTEM if _filled(row.get(key))), None)
    text = plain_text(where, value.get("parts", value.get("content")) if isinstance(value, Mapping) else value)
    if text is not None and not isinstance(text, str):
        raise TiterError(f"{where}: the system text is {visible(repr(value), 60)}", expected="a text")
    return text


def _said(where: str, column: str, value: Any) -> tuple[Turn, ...]:
    """The turns of a prompt's column: a user's text, turns, or a transcript (in which the assistant's answer is still missing)."""
    if isinstance(value, list):
        return conversation(where, column, value)
    return transcript(where, column, value.strip().removesuffix("Assistant:")) if is_transcript(value) else (Turn("user", value),)


def _plain(where: str, row: Mapping[str, Any], columns: Sequence[str], expected: str) -> tuple[str, str | None, str | None]:
    column = next((key for key in columns if _filled(row.get(key))), next((key for key in columns if key in row), None))
    if column is None and len(parts := _texts(row, PAIR)) == len(PAIR):
        row, column = {**row, "prompt": " : ".join(parts.values())}, "prompt"  # the form of the mechanistic study's pairs
    if column is None:
        raise TiterError(f"{where}: no column {' or '.join(columns)} among {visible(', '.join(row), 120)}", expected=expected)
    prompt = row[column]
    if not isinstance(prompt, str | list) or not _filled(prompt):
        raise Faulty(f"{where}, column {column}: {visible(repr(prompt), 60)} is not a prompt", expected="a text that is not empty")
    if column == "instruction" and isinstance(prompt, str):
        prompt = "\n\n".join([prompt, *_texts(row, BEHIND).values()])
    said = with_system((*history(where, EARLIER, row.get(EARLIER) or []), *_said(where, column, prompt)), where, _system(where, row))
    if said[-1].role != "user":
        expected = "a prompt that ends with the user's turn, the answer in another column"
        raise Faulty(f"{where}, column {column}: the last turn is not the user's", expected=expected)
    return written(said) if len(said) > 1 else said[0].content, _answer(where, row, COMPLY), _answer(where, row, ("refuse",))


def _answer(where: str, row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """The answer in the first of the columns that has one: a text, or a single turn of the assistant. Errors: other turns."""
    column = next((key for key in columns if _filled(row.get(key)) and isinstance(row[key], str | list)), None)
    if column is None or isinstance(row[column], str):
        return row[column] if column else None
    if not all(isinstance(turn, Mapping) for turn in row[column]):  # a list of texts is neither a conversation nor one answer
        return None
    said = conversation(where, column, row[column])
    if len(said) != 1 or said[0].role != "assistant":
        raise TiterError(f"{where}, column {column}: {len(said)} turns, or not the assistant's", expected="one turn, of the assistant")
    return said[0].content


def _split(said: tuple[Turn, ...], place: str) -> tuple[tuple[Turn, ...], str | None]:
    """Splits turns into (prompt, answer). The answer is the last turn if it is the assistant's; otherwise None."""
    if said[-1].role == "user":
        return said, None
    if len(said) < 2 or said[-2].role != "user":  # an answer alone
        raise Faulty(f"{place}: there is no request before the answer", expected="a user's turn before the assistant's")
    return said[:-1], said[-1].content


def _filled(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None and value != []


def _ways(filled: set[str], turned: set[str], unpaired: bool) -> dict[str, set[str]]:
    """Returns the readings that the filled columns allow: reading -> its columns. `turned`: the columns that have turns."""
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
    if unpaired:
        found.pop("chat", None)
        found["unpaired"] = {*(filled & set(formats.WISH)), *((prompts | answers) or chat)}
    elif plain and not (both and not answers):  # the prompt belongs to chosen and rejected
        alpaca = prompts == {"instruction"} and bool(filled & {"output", *BEHIND}) and not answers - {"output", "response", "refuse"}
        found["alpaca" if alpaca else "plain"] = plain | answers
    return found


def _one_meaning(rows: Sequence[Row], way: str) -> None:
    """Checks the rows. Errors: a row has two different prompts, or two different answers (unless it has `comply`)."""
    if way not in ("plain", "alpaca", "unpaired"):
        return
    for where, row in rows:
        for what, keys in (("prompts", PROMPT), ("answers", () if _texts(row, COMPLY[:1]) else COMPLY)):
            texts = _texts(row, keys)
            if len(set(texts.values())) > 1:
                raise _ambiguous(where, " or ".join(f"{what} in {key}" for key in texts), "remove or rename the other columns.")


def _ambiguous(where: str, said: str, next_step: str) -> TiterError:
    return TiterError(f"{where} can be read in two ways: {said}", expected="columns that fit one reading only", next_step=next_step)


def _used(reading: str, rows: Sequence[Row], filled: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (column, its use) for the columns that a reading uses."""
    purposes: dict[str, str] = {}
    if reading in ("plain", "alpaca", "unpaired"):
        prompts = ["instruction"] if reading == "alpaca" else [key for key in PROMPT if key in filled][:1]
        purposes |= dict.fromkeys(prompts or PAIR, "prompt")
        if "instruction" in prompts:
            purposes |= dict.fromkeys(BEHIND, "prompt, behind the instruction") | {EARLIER: "turns before it"}
        purposes |= dict.fromkeys(SYSTEM, "system text")
        chosen = {next((key for key in COMPLY if _filled(row.get(key))), "comply"): 0 for _, row in rows}
        purposes |= dict.fromkeys(chosen, "answer (comply)")
    elif reading.startswith("chat"):
        purposes |= dict.fromkeys(CHAT, "turns: the last assistant turn is the answer (comply), the rest the prompt")
    else:
        purposes |= dict.fromkeys(PROMPT, "prompt") | {"chosen": "the preferred answer", "rejected": "the rejected answer"}
    purposes |= {"refuse": "answer (refuse)"} | dict.fromkeys(SYSTEM, "system text")
    classes = dict.fromkeys((column for _, row in rows for column in _class_columns(row)), "safe or unsafe")
    if reading == "unpaired":
        classes |= {next((key for key in formats.WISH if key in filled), "label"): "whether the completion is wanted"}
    return [(column, purpose) for column, purpose in (purposes | classes).items() if column in filled]
