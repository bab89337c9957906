"""Text data from the user's files: CSV, JSON or JSONL -> examples, with the place of every fault.

Columns (aliases in brackets): prompt (instruction, question, goal), or operator and operand (joined by " : ");
harmful: true/false, or label/type/kind holding safe or unsafe; comply (output, completion, answer) and refuse:
reference answers. Extra columns are left alone. Duplicated prompts are dropped and counted.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from titer.core.config import Record
from titer.core.errors import TiterError, visible
from titer.data.encode import encode
from titer.data.example import Answer, Batch, Example, Indices
from titer.data.formats import COMPLY, FORMAT, PAIR, PROMPT

Row = tuple[str, Mapping[str, Any]]  # where it stands, in words; its columns
Parsed = tuple[str, bool | None, str | None, str | None]  # prompt, harmful, comply, refuse
SUFFIXES = (".csv", ".json", ".jsonl")
SURROGATE = re.compile("[\ud800-\udfff]")
WORDS = {"safe": False, "harmless": False, "false": False, "0": False, "unsafe": True, "harmful": True, "true": True, "1": True}


class TextData(Record):
    """A file's rows as examples; `sha256` is of the file, `dropped` counts the rows left out (repeated prompts)."""

    name: str
    sha256: str
    rows: tuple[Parsed, ...]
    dropped: int = 0

    @property
    def size(self) -> int:
        return len(self.rows)

    def example(self, i: int) -> Example:
        prompt, harmful, comply, refuse = self.rows[i]
        return Example(prompt, bool(harmful), "unsafe" if harmful else "safe", self.name, comply, refuse)

    def examples(self, indices: Indices) -> list[Example]:
        return [self.example(int(i)) for i in indices]

    def batch(self, indices: Indices, answer: Answer, tokenizer: Any) -> Batch:
        """Examples as tokens; the answer trained is the named reference ("all" means comply here)."""
        chosen = self.examples(np.asarray(indices))
        wanted = "refuse" if answer == "refuse" else "comply"
        answers = [getattr(example, wanted) for example in chosen]
        for example, text in zip(chosen, answers, strict=True):
            if text is None:
                raise TiterError(
                    f"{self.name}: {visible(example.prompt, 60)!r} has no answer to train",
                    expected=f"a column {wanted} ({', '.join(COMPLY)})",
                )
        return encode(tokenizer, [e.prompt for e in chosen], answers, indices)

    def of_class(self, harmful: bool, limit: int | None = None) -> list[Example]:
        """The examples of one class in file order, the first `limit` of them."""
        found = [self.example(i) for i, row in enumerate(self.rows) if row[1] is not None and bool(row[1]) == harmful]
        return found[:limit]


def read_text(path: str | Path, labelled: bool = True) -> TextData:
    """Read a data file. `labelled`: every row must say whether it is harmful.

    Errors: a missing or empty file, an unknown format, a bad line (file, line, column), no usable row.
    """
    file = load(path)
    return collected(file, (_row(where, row, labelled) for where, row in records(file)), file.name)


class File(NamedTuple):
    """A data file as it was read; `sha256` is of its bytes."""

    name: str
    suffix: str
    sha256: str
    text: str


def load(path: str | Path, suffixes: Sequence[str] = SUFFIXES, expected: str = FORMAT) -> File:
    """The text of a data file. Errors: another suffix than `suffixes`, no file, bytes that are not UTF-8."""
    file = Path(path)
    name, suffix = visible(file.name or str(path), 120), file.suffix.lower()
    if suffix not in suffixes:
        raise TiterError(f"{name}: unknown format {visible(file.suffix, 40)!r}", expected=expected)
    if not file.is_file():
        raise TiterError(f"no data file at {visible(str(path), 200)!r}", expected=expected)
    whole = file.read_bytes()
    body = whole.removeprefix(codecs.BOM_UTF8)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        place = len(whole) - len(body) + error.start
        raise TiterError(f"{name}, line {line}: byte {place} is not UTF-8", next_step="save the file as UTF-8.") from None
    return File(name, suffix, hashlib.sha256(whole).hexdigest(), text)


def records(file: File) -> Iterator[Row]:
    """The rows of a .csv, .json or .jsonl file by column (names in small letters), each with its place in words."""
    return {".csv": _csv, ".json": _json, ".jsonl": _jsonl}[file.suffix](file.name, file.text)


def collected(file: File, rows: Iterable[Parsed], name: str, expected: str = FORMAT) -> TextData:
    """Rows as data called `name`: of a repeated prompt the first row, the others counted. Errors: no row."""
    kept: dict[str, Parsed] = {}
    total = 0
    for row in rows:
        kept.setdefault(row[0], row)
        total += 1
    if not kept:
        raise TiterError(f"{file.name} holds no example", expected=expected)
    return TextData(name=name, sha256=file.sha256, rows=tuple(kept.values()), dropped=total - len(kept))


def _csv(name: str, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise TiterError(f"{name}, line {reader.line_num}: {error}", next_step="check the quotes of that line.") from None
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = [column.strip().lower() for column in row]
        elif len(row) != len(header):
            raise TiterError(
                f"{name}, line {line}, column {min(len(row), len(header)) + 1}: {len(row)} fields where the header has {len(header)}",
                next_step="quote fields that hold commas.",
            )
        else:
            yield f"{name}, line {line}", dict(zip(header, row, strict=True))


def _jsonl(name: str, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield f"{name}, line {line}", _object(name, line, content)


def _parsed(name: str, text: str, line: int = 0) -> Any:
    """JSON, or its fault by file, line and column; `line` is where a one-line text stands."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, nesting without end
        at = f"line {line or getattr(error, 'lineno', 1)}, column {getattr(error, 'colno', 1)}"
        why = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", "a number with too many digits")
        raise TiterError(f"{name}, {at}: not JSON ({why})") from None


def _object(name: str, line: int, content: str) -> Mapping[str, Any]:
    found = _parsed(name, content, line)
    if not isinstance(found, dict):
        raise TiterError(f"{name}, line {line}, column 1: a {type(found).__name__}", expected="a JSON object a line")
    return _lower(found)


def _json(name: str, text: str) -> Iterator[Row]:
    found = _parsed(name, text) if text.strip() else []
    if not isinstance(found, list):
        raise TiterError(f"{name}: a {type(found).__name__} at the top", expected="a list of objects")
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise TiterError(f"{name}, item {number}: a {type(row).__name__}", expected="an object")
        yield f"{name}, item {number}", _lower(row)


def _lower(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {str(key).strip().lower(): value for key, value in row.items()}


def _row(where: str, row: Mapping[str, Any], labelled: bool) -> Parsed:
    column = next((key for key in PROMPT if key in row), None)
    if column is None and all(isinstance(row.get(key), str) and row[key].strip() for key in PAIR):
        row, column = {**row, "prompt": " : ".join(row[key] for key in PAIR)}, "prompt"  # as the mechanistic study writes pairs
    if column is None:
        raise TiterError(f"{where}: no column {' or '.join(PROMPT)} among {visible(', '.join(row), 120)}", expected=FORMAT)
    prompt = row[column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise TiterError(f"{where}, column {column}: {visible(repr(prompt), 60)}", expected="a text that is not empty")
    harmful = _harmful(row)
    if labelled and harmful is None:
        raise TiterError(f"{where}, column label: safe or unsafe is not stated", expected=FORMAT)
    extra = row.get("input")
    whole = f"{prompt}\n\n{extra}" if column == "instruction" and isinstance(extra, str) and extra.strip() else prompt
    parts = (whole, _text(row, COMPLY), _text(row, ("refuse",)))
    if any(SURROGATE.search(part) for part in parts if part):
        raise TiterError(f"{where}: half of a two-part character (a surrogate)", expected="whole characters")
    return whole, harmful, *parts[1:]


def _harmful(row: Mapping[str, Any]) -> bool | None:
    for key in ("harmful", "label", "kind", "type"):
        value = row.get(key)
        word = str(value).strip().lower()
        if isinstance(value, str | bool | int) and word in WORDS:
            return WORDS[word]
    return None


def _text(row: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((row[key] for key in keys if isinstance(row.get(key), str) and row[key].strip()), None)
