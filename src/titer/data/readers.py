"""Data files as rows by column: .csv, .json, .jsonl and .parquet, with the place of every fault. Nothing is ever unpickled."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from titer.core.errors import TiterError, visible
from titer.data.formats import FORMAT

Row = tuple[str, Mapping[str, Any]]  # where it stands, in words; its columns
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


class File(NamedTuple):
    """A data file as it was read; `sha256` is of its bytes. A table (Parquet, a hub data set) has rows instead of a text."""

    name: str
    suffix: str
    sha256: str
    text: str
    table: Sequence[Mapping[str, Any]] | None = None


def load(path: str | Path, suffixes: Sequence[str] = SUFFIXES, expected: str = FORMAT) -> File:
    """A data file's text or table. Errors: another suffix than `suffixes`, no file, bytes that are not UTF-8 or no Parquet."""
    file = Path(path)
    name, suffix = visible(file.name or str(path), 120), file.suffix.lower()
    if suffix not in suffixes:
        raise TiterError(f"{name}: unknown format {visible(file.suffix, 40)!r}", expected=expected)
    if not file.is_file():
        raise TiterError(f"no data file at {visible(str(path), 200)!r}", expected=expected)
    whole = file.read_bytes()
    checksum = hashlib.sha256(whole).hexdigest()
    if suffix == ".parquet":
        return File(name, suffix, checksum, "", _parquet(name, whole))
    body = whole.removeprefix(codecs.BOM_UTF8)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        place = len(whole) - len(body) + error.start
        raise TiterError(f"{name}, line {line}: byte {place} is not UTF-8", next_step="save the file as UTF-8.") from None
    return File(name, suffix, checksum, text)


def records(file: File) -> Iterator[Row]:
    """The rows of a file by column (names in small letters), each with its place in words."""
    if file.table is not None:
        return ((f"{file.name}, row {number}", _lower(row)) for number, row in enumerate(file.table, start=1))
    return {".csv": _csv, ".json": _json, ".jsonl": _jsonl}[file.suffix](file.name, file.text)


def _parquet(name: str, body: bytes) -> list[Mapping[str, Any]]:
    try:
        import pyarrow  # noqa: PLC0415  an optional extra
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise TiterError(f"{name}: reading Parquet needs pyarrow", next_step="pip install titer[data]") from None
    try:
        rows: list[Mapping[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(body)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise TiterError(f"{name}: not a readable Parquet file ({visible(str(error), 120)})") from None
    return rows


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
