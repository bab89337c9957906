"""Multiple choice: questions with a few options, one of them right. Source of the form: MMLU, arXiv 2009.03300.

Columns: question (or prompt, goal); choices or options (a list; in a .csv file a JSON list), or one column for each option: A, B, C, D
and so on; answer (or label, target): the right option's letter, its index from 0, or its text. A column `subject` is kept; a passage
stands before its question. The columns of ARC, CommonsenseQA, OpenBookQA, HellaSwag, PIQA, WinoGrande, MedMCQA and RACE are known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from titer.core.config import Record
from titer.core.errors import TiterError, visible
from titer.data.hub import is_hub, load_hub
from titer.data.readers import listed, load, records, whole

QUESTION = ("question", "prompt", "goal", "question_stem", "query", "ctx", "sentence")
PASSAGE = ("passage", "article", "context")  # what a question is about, before it
OPTIONS = ("choices", "options", "endings")
NUMBERED = (  # the columns of the options, and what the answer calls them
    (("option1", "option2"), "12"),
    (("sol1", "sol2"), "01"),
    (("opa", "opb", "opc", "opd"), "0123"),
    (("answer0", "answer1", "answer2", "answer3"), "0123"),
)
ANSWER = ("answerkey", "answer", "label", "target", "cop", "correct_option", "correct_answer")
CHOICES = """\
a .csv, .json, .jsonl or .parquet file (or hub:OWNER/NAME) with columns question, A, B, C, D (or a list `choices`) and answer \
(a letter, or a place counted from 0), for example

question,A,B,C,D,answer
What rises in an oven?,stone,bread,iron,glass,B
"""


class Question(NamedTuple):
    """One question; `right` is the index of the right option, from 0."""

    text: str
    options: tuple[str, ...]
    right: int
    subject: str = ""


class ChoiceData(Record):
    """A file's questions; `dropped` counts the repeated ones, which are left out."""

    name: str
    sha256: str
    questions: tuple[Question, ...]
    dropped: int = 0


def read_choices(path: str | Path) -> ChoiceData:
    """Read a multiple-choice file. Errors: as `sources.read_text`; fewer than two options; equal options; an answer that is no option."""
    file = load_hub(path) if is_hub(path) else load(path, expected=CHOICES)
    kept: dict[tuple[str, tuple[str, ...]], Question] = {}
    total = 0
    for where, row in records(file):
        found = _question(where, row)
        same = kept.setdefault((found.text, found.options), found)
        if same.right != found.right:
            raise TiterError(f"{where}: an earlier equal question has another answer", next_step="remove one of the two rows.")
        total += 1
    if not kept:
        raise TiterError(f"{file.name} holds no question", expected=CHOICES)
    return ChoiceData(name=file.name, sha256=file.sha256, questions=tuple(kept.values()), dropped=total - len(kept))


def _question(where: str, row: Mapping[str, Any]) -> Question:
    text = next((row[key] for key in QUESTION if row.get(key) is not None), None)
    if not isinstance(text, str) or not text.strip():
        raise TiterError(f"{where}, column question: {visible(repr(text), 60)} is not a question", expected=CHOICES)
    options, names = _options(where, row)
    column = next((key for key in ANSWER if row.get(key) not in (None, "")), ANSWER[0])
    subject = row.get("subject")
    right = _right(f"{where}, column {column}", row.get(column), options, names)
    passage = next((row[key] for key in PASSAGE if isinstance(row.get(key), str) and row[key].strip()), "")
    text = f"{passage.strip()}\n\n{text.strip()}" if passage else text
    whole(where, text, *options)
    return Question(text.strip(), options, right, subject if isinstance(subject, str) else "")


def _options(where: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], Sequence[str]]:
    """Returns a question's options, and the names that its answer column uses for them ("" if those are A, B, C or 0, 1, 2).

    Errors: fewer than two; two equal ones; a gap in the letters; something other than texts.
    """
    found: Any
    column = next((key for key in OPTIONS if row.get(key) not in (None, "")), None)
    names: Sequence[str] = ""
    if column is None and (known := next((one for one in NUMBERED if set(one[0]) <= set(row)), None)):
        found, names = [row[key] for key in known[0]], known[1]
    elif column is None:
        letters = [letter for letter in ascii_uppercase if row.get(letter.lower()) not in (None, "")]
        if "".join(letters) != ascii_uppercase[: len(letters)]:
            raise TiterError(f"{where}: the options are {', '.join(letters)}", expected="A, B, C and so on, without a gap")
        found = [row[letter.lower()] for letter in letters]
    else:
        found = row[column]
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except (ValueError, RecursionError):
                if (found := listed(row[column])) is None:
                    raise TiterError(
                        f"{where}, column {column}: {visible(repr(row[column]), 60)} is not JSON", expected="a JSON list of texts"
                    ) from None
    if isinstance(found, dict) and isinstance(found.get("text"), list) and isinstance(found.get("label"), list):
        found, names = found["text"], [str(name) for name in found["label"]]
    if not isinstance(found, list) or not all(isinstance(one, str | int | float) and str(one).strip() for one in found):
        raise TiterError(f"{where}: the options are {visible(repr(found), 60)}", expected="a list of texts, none of them empty")
    options = tuple(str(one).strip() for one in found)
    if not 2 <= len(options) <= len(ascii_uppercase) or len(set(options)) < len(options):
        raise TiterError(f"{where}: {len(options)} options, {len(set(options))} of them different", expected="from 2 to 26, no two equal")
    return options, names


def _right(place: str, value: Any, options: Sequence[str], names: Sequence[str]) -> int:
    """Returns the index of the right option. Errors: `value` fits no option, or is the text of one option and the name of another."""
    word, letters = str(value).strip(), ascii_uppercase[: len(options)]
    if word.endswith(".0") and word not in options:  # a place as tables with gaps store it
        value, word = word[:-2], word[:-2]
    if not isinstance(value, bool) and isinstance(value, str | int):
        by_text = options.index(word) if isinstance(value, str) and word in options else None
        by_name = names.index(word) if word in names else None
        if names == "" and len(word) == 1 and word.upper() in letters:
            by_name = letters.index(word.upper())
        elif names == "" and word.isascii() and word.isdigit() and len(word) < 3 and int(word) < len(options):
            by_name = int(word)
        if None not in (by_text, by_name) and by_text != by_name:
            raise TiterError(
                f"{place}: {visible(repr(value), 60)} is the text of one option and the name of another",
                next_step="write the letter (A, B, C).",
            )
        found = by_text if by_name is None else by_name
        if found is not None:
            return found
    raise TiterError(
        f"{place}: {visible(repr(value), 60)} is no answer",
        expected=f"a letter from A to {letters[-1]}, an index from 0 to {len(options) - 1}, or the option's text",
    )
