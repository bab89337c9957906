"""Reads data files as rows of named columns: .csv, .tsv, .txt, .json, .jsonl, .parquet, compressed or not, and `save_to_disk` folders.

Each error names the place of the fault. Nothing is ever unpickled. A column of classes (ClassLabel) has the classes' names, not their
numbers; a missing value (null, NaN) is None. Column names are in small letters, and no name occurs twice.
"""

from __future__ import annotations

import ast
import bz2
import codecs
import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from titer.core.errors import Faulty, TiterError, beside, visible
from titer.data.content import check_content
from titer.data.formats import CHAT, CLASS, COMPLY, FORMAT, PROMPT
from titer.data.tables import folder_table, table

Row = tuple[str, Mapping[str, Any]]  # (its place in words, its columns)
LARGEST = 4 << 30  # most bytes that a compressed file may unpack to
SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")
ELSEWHERE = {  # other suffixes -> how to get their rows into a file that can be read
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV UTF-8 (File, Save As)."),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), "save it as .jsonl or .parquet: a pickle runs code when it is read."),
    **dict.fromkeys((".arrow", ".feather"), "give the folder that save_to_disk wrote, or save it as .parquet."),
    **dict.fromkeys((".zip", ".7z", ".tar", ".tgz"), "unpack it, and give the file inside."),
}
SEPARATOR = re.compile(r"\"?sep=(.)\"?(?:\r\n?|\n)", re.IGNORECASE)  # a first line by which Excel is told of the delimiter
SHEET_ERRORS = ("#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NULL!", "#NUM!", "#N/A", "#ERROR!", "#SPILL!")
HEADING = re.compile(r"#{1,6} ")  # of Markdown
BULLET = re.compile(r"(?:\d{1,4}[.)]|[-*\u2022])\s+(?=\S)")  # before each line of a list
GAP = re.compile(r"[,\s]*")  # between two values
BESIDE = re.compile(r"\}\s+\{(?=['\"])")  # between two objects of an array, as numpy prints it
PYTHON = re.compile(r"\s*\[?\s*\{\s*'")  # an object as Python prints it
UNSEEN = re.compile("[\u200b-\u200d\u2060\ufeff]+")  # in a column's name
COLUMNS = {*PROMPT, *CHAT, *COMPLY, *CLASS, "refuse", "text", "input"}
HEADER = re.compile(r'"?[a-z_]+"?(?:\s*,\s*"?[a-z_]+"?)+')  # names of columns
MARKS = {  # first bytes of a text -> its encoding; longer marks first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _zstd(body: IO[bytes]) -> Any:
    try:
        import pyarrow  # noqa: PLC0415  an optional extra
    except ImportError:
        raise TiterError("reading .zst needs pyarrow", next_step="pip install 'titer[data]'") from None
    return pyarrow.CompressedInputStream(body, "zstd")


PACKED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda body: gzip.GzipFile(fileobj=body),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}


class File(NamedTuple):
    """A data file that was read. `sha256`: that of its bytes. `table`: the rows of a table (Parquet, a hub data set), which has no text."""

    name: str
    suffix: str
    sha256: str
    text: str
    table: Sequence[Mapping[str, Any]] | None = None


def load(path: str | Path, suffixes: Sequence[str] = SUFFIXES, expected: str = FORMAT) -> File:
    """Read a data file's text or table. It is decompressed if its name ends in .gz, .bz2, .xz or .zst.

    Errors: a suffix that is not among `suffixes`; no file there; bytes that are not text, or not Parquet.
    """
    file = Path(path)
    packing = file.suffix.lower() if file.suffix.lower() in PACKED else ""
    inner = Path(file.stem) if packing else file
    name, suffix = visible(file.name or str(path), 120), inner.suffix.lower()
    if file.is_dir() and ".parquet" in suffixes:
        rows, checksum = folder_table(file, name)
        return File(name, "", checksum, "", rows)
    if suffix not in suffixes:
        raise TiterError(f"{name}: unknown format {visible(inner.suffix, 40)!r}", expected=expected, next_step=ELSEWHERE.get(suffix, ""))
    if not file.is_file():
        close = beside(file)
        raise TiterError(f"no data file at {visible(str(path), 200)!r}", expected="" if close else expected, next_step=close)
    whole = file.read_bytes()
    checksum = hashlib.sha256(whole).hexdigest()
    check_content(name, packing or suffix, whole)
    body = _unpacked(name, packing, whole) if packing else whole
    if suffix == ".parquet":
        return File(name, suffix, checksum, "", table(name, body, "Parquet"))
    return File(name, suffix, checksum, _text(name, body))


def _unpacked(name: str, packing: str, body: bytes) -> bytes:
    """Decompress bytes. Errors: another compression; cut short; larger than LARGEST."""
    stream = PACKED[packing](io.BytesIO(body))
    try:
        whole: bytes = stream.read(LARGEST + 1)
    except (OSError, EOFError, ValueError, lzma.LZMAError, MemoryError) as error:
        raise TiterError(
            f"{name}: not a whole {packing} file ({visible(str(error) or type(error).__name__, 120)})",
            next_step="fetch it again, or compress it again.",
        ) from None
    if len(whole) > LARGEST:
        raise TiterError(f"{name} unpacks to more than {LARGEST >> 30} GiB", next_step="give a smaller part of it.")
    return whole


def _text(name: str, body: bytes) -> str:
    """Bytes as text: UTF-8, or UTF-16 and UTF-32 if they have its mark (or, for ASCII letters in UTF-16, its zero bytes)."""
    coding = next((coding for mark, coding in MARKS.items() if body.startswith(mark)), "")
    if not coding:
        zeros = [byte == 0 for byte in body[:2]]
        coding = "utf-16-be" if zeros == [True, False] else "utf-16-le" if zeros == [False, True] else "utf-8"
    try:
        return body.decode(coding).lstrip("\ufeff")  # some programs write a second mark
    except UnicodeDecodeError as error:
        if coding not in ("utf-8", "utf-8-sig"):
            raise TiterError(f"{name}: not a whole {coding} text", next_step="save the file as UTF-8.") from None
        place = error.start + (len(codecs.BOM_UTF8) if coding == "utf-8-sig" else 0)
        line = body[:place].count(b"\n") + 1
        raise TiterError(f"{name}, line {line}: byte {place} is not UTF-8", next_step="save the file as UTF-8.") from None


def records(file: File) -> Iterator[Row]:
    """Returns a file's rows, each as (its place in words, {column name in small letters: value})."""
    if file.table is not None:
        return (_row(f"{file.name}, row {number}", row) for number, row in enumerate(file.table, start=1))
    if file.suffix == ".txt":
        return _txt(file.name, file.text)
    if file.suffix in (".csv", ".tsv"):
        return _csv(file.name, file.text, "\t" if file.suffix == ".tsv" else "")
    return (_json if file.suffix == ".json" else _jsonl)(file.name, file.text)


def _txt(name: str, text: str) -> Iterator[Row]:
    """One prompt on each line, below a name or none, without the numbers or bullets of a list; or a table, if the first line names
    columns. Errors: lines with tabs, and no names; headings among the prompts."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    lines = lines[1:] if lines and lines[0][1].lower() in PROMPT else lines
    heads = {mark: lines[0][1].lower().replace(mark, ",") for mark in "\t,;"} if lines else {}
    for mark, head in heads.items():
        if mark in lines[0][1] and HEADER.fullmatch(head) and set(re.findall("[a-z_]+", head)) & set(PROMPT):
            return _csv(name, text, mark)
    if len(lines) > 1 and all("\t" in line for _, line in lines):
        raise TiterError(
            f"{name}: each line has a tab, as in a table",
            next_step="save it as .tsv, with a first line that names the columns (prompt, label).",
        )
    headings = [number for number, line in lines if HEADING.match(line)]
    if 0 < len(headings) < len(lines):
        raise TiterError(
            f"{name}, line {headings[0]}: a heading among the prompts, {len(headings)} in all",
            next_step="remove the lines that begin with #; every other line is a prompt.",
        )
    bare = BULLET if len(lines) > 1 and all(BULLET.match(line) for _, line in lines) else re.compile("")
    return ((f"{name}, line {number}", {"prompt": bare.sub("", line, count=1)}) for number, line in lines)


def _row(where: str, row: Mapping[str, Any]) -> Row:
    """A row with its columns' names in small letters. Errors: a name occurs twice."""
    named = {_name(str(key)): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
    if len(named) < len(row):
        raise _twice(where, [_name(str(key)) for key in row])
    return where, named


def _name(column: str) -> str:
    """A column's name in small letters, without white space at its ends or marks that nobody sees (U+FEFF, U+200B)."""
    return UNSEEN.sub("", column).strip().lower()


def _twice(where: str, columns: Sequence[str]) -> TiterError:
    column = next(name for i, name in enumerate(columns) if name in columns[:i])
    return TiterError(
        f"{where}: there are two columns {visible(column, 60)!r}",
        expected="each name once",
        next_step="rename or remove one of the two.",
    )


def whole(where: str, *texts: str | None) -> None:
    """Checks texts. Errors: one has half of a two-part character (a surrogate), which cannot be encoded (JSON can contain one); one is
    what a spreadsheet shows in place of a text that begins with =, + or -."""
    if wrong := [text.strip() for text in texts if text and text.strip() in SHEET_ERRORS]:
        raise Faulty(
            f"{where}: {wrong[0]} is a spreadsheet's error, not a text",
            next_step="format that column of the sheet as text, and enter it again.",
        )
    if any(5 * text.count("\0") > 2 * len(text) for text in texts if text):
        raise Faulty(f"{where}: every other character is a NUL, so a part of the file is UTF-16", next_step="save the whole file as UTF-8.")
    if any("\ud800" <= letter <= "\udfff" for text in texts if text for letter in text):
        raise TiterError(f"{where}: a text has half of a two-part character (a surrogate)", expected="whole characters")


def _csv(name: str, text: str, delimiter: str) -> Iterator[Row]:
    """Rows below a header. Without a `delimiter`, it is what Excel's line sep= names, or the first of comma, semicolon, tab and bar that
    the header contains."""
    if told := SEPARATOR.match(text):
        delimiter, text = delimiter or told[1], "\n" + text[told.end() :]
    text = _below_title(text)
    begun = text.lstrip("\r\n").partition("\n")[0]
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # the library's own limit is 131,072 letters
    mark = delimiter or next((one for one in ",;\t|" if one in begun), ",")
    spaced = re.search(rf"{re.escape(mark)} +\S", begun) is not None  # `prompt, label`: blanks behind the marks are none of the fields
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=mark, skipinitialspace=spaced)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise TiterError(f"{name}, line {reader.line_num}: {error}", next_step="check the quotes of that line.") from None
        if row is None:
            return
        if not any(map(str.strip, row)):
            continue
        named = [_name(column) for column in row]
        if header is None:
            header = named
            if len(filled := [column for column in header if column]) > len(set(filled)):
                raise _twice(f"{name}, line {line}", filled)
        elif len(row) != len(header):
            raise TiterError(
                f"{name}, line {line}, column {min(len(row), len(header)) + 1}: {len(row)} fields where the header has {len(header)}",
                next_step="quote fields that hold commas.",
            )
        elif named == header and len(header) > 1:
            raise TiterError(f"{name}, line {line}: the header is repeated", expected="one header", next_step="remove that line.")
        else:
            yield f"{name}, line {line}", dict(zip(header, row, strict=True))


def _below_title(text: str) -> str:
    """Empties the lines above a table's header: titles, remarks, merged cells. They name no column and fill fewer cells than the header,
    which names two columns or more."""
    lines = text.split("\n", 10)
    cells = [{_name(cell.strip().strip('"')) for cell in re.split("[,;\t|]", line)} - {""} for line in lines[:10]]
    first = next((i for i, found in enumerate(cells) if found), 0)
    at = next((i for i, found in enumerate(cells) if len(found & COLUMNS) > 1), 0)
    above = at > first and not cells[first] & COLUMNS and (len(cells[first]) < len(cells[at]) or lines[first].startswith("#"))
    return "\n".join(["" if i < at else line for i, line in enumerate(lines)]) if above else text


def _jsonl(name: str, text: str) -> Iterator[Row]:
    """Rows of a .jsonl file: an object on each line; or objects over several lines, or a list, if the first line is none."""
    first = text.lstrip().partition("\n")[0]
    found = _several(text) if first[:1] in ("{", "[") and not _is_object(first) else []
    if found and all(isinstance(one, dict) for one in (found[0] if isinstance(found[0], list) else found)):
        yield from _json(name, text)
        return
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            found = _parsed(name, content, line)
            if not isinstance(found, dict):
                raise TiterError(
                    f"{name}, line {line}, column 1: a {type(found).__name__} and not an object", expected="one JSON object on each line"
                )
            yield _row(f"{name}, line {line}", found)


def _parsed(name: str, text: str, line: int = 0) -> Any:
    """Parse JSON. `line`: the line of a one-line text, 0 for a whole file. Errors: not JSON, with line and column; a key occurs twice."""
    twice: list[list[str]] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.append([key for key, _ in pairs])
        return found

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, nesting without end
        at = f"line {line or getattr(error, 'lineno', 1)}, column {getattr(error, 'colno', 1)}"
        why = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", "a number with too many digits")
        python = PYTHON.match(text)
        then = "write each row with json.dumps: these are Python's quotes." if python else "correct that line, or save the file again."
        raise TiterError(f"{name}, {at}: not JSON ({why})", next_step=then) from None
    if twice:
        raise _twice(f"{name}, line {line}" if line else name, twice[0])
    return found


def _json(name: str, text: str) -> Iterator[Row]:
    """Rows of a .json file: a list of objects or of prompts, a table by column, an object with one list of objects, JSON lines, or objects
    over several lines one after another, as jq prints them."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and _is_object(lines[0]):
        yield from _jsonl(name, text)
        return
    try:
        found = _parsed(name, text) if lines else []
    except TiterError:
        if not (found := _several(text)):
            raise
    if isinstance(found, dict):
        found = _rows_in(name, found)
    if not isinstance(found, list):
        raise TiterError(f"{name}: the top level is a {type(found).__name__}", expected="a list of objects")
    if found and all(isinstance(row, str) for row in found):
        found = [{"prompt": row} for row in found]
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise TiterError(f"{name}, item {number}: a {type(row).__name__} and not an object", expected="an object")
        yield _row(f"{name}, item {number}", row)


def _several(text: str) -> list[Any]:
    """Returns the JSON values that stand one after another in a text, with commas between them or none; [] if there is anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key occurs twice")
        return found

    found, at, decoder = list[Any](), GAP.match(text, 0).end(), json.JSONDecoder(object_pairs_hook=once)  # type: ignore[union-attr]
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            found.append(value)
            at = GAP.match(text, at).end()  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return []
    return found


def listed(text: str) -> list[Any] | None:
    """Returns the list that a text (a .csv file's cell) holds, as JSON or as Python writes it (as pandas does); None if it holds none.

    numpy writes no commas: between objects they are put in; its texts, which Python would read as a single one, are no list.
    """
    if text.lstrip()[:1] + text.rstrip()[-1:] != "[]":
        return None
    for read in (json.loads, ast.literal_eval, lambda text: ast.literal_eval(BESIDE.sub("}, {", text))):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        joined = read is ast.literal_eval and re.search(r"""['"]\s+['"]""", text) and all(isinstance(one, str) for one in found)
        return found if isinstance(found, list) and not joined else None
    return None


def _is_object(line: str) -> bool:
    """Whether a single line is a JSON object. A list that is spread over lines never begins with one."""
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows_in(name: str, found: Mapping[str, Any]) -> Any:
    """The rows of an object: its only list of objects; or its columns (as pandas and `datasets` write them); or the object as one row."""
    lists = {key: value for key, value in found.items() if isinstance(value, list) and value and all(isinstance(v, dict) for v in value)}
    turns = [key for key in lists if {"role", "from", "content", "parts"} & set(lists[key][0])]
    if len(lists) > 1 and not turns:
        names = ", ".join(visible(key, 40) for key in lists)
        raise TiterError(
            f"{name} has several lists of objects: {names}",
            expected="one list of objects",
            next_step="save the list that you mean as a file of its own.",
        )
    if lists and not turns:
        return next(iter(lists.values()))
    values = list(found.values())
    parts = [found.get("columns"), *found["data"]] if isinstance(found.get("data"), list) else [None]
    if set(found) == {"columns", "index", "data"} and all(isinstance(one, list) for one in parts):
        return [dict(zip(found["columns"], cells, strict=False)) for cells in found["data"]]
    if values and all(key.isdecimal() and isinstance(value, dict) for key, value in found.items()):
        return values
    if values and all(isinstance(value, dict) and value.keys() == values[0].keys() and value for value in values):
        return [{key: column[at] for key, column in found.items()} for at in values[0]]
    columns = bool(values) and all(isinstance(value, list) and len(value) == len(values[0]) for value in values)
    if columns and (len(values) > 1 or all(isinstance(cell, str) for cell in values[0])):
        return [dict(zip(found, cells, strict=True)) for cells in zip(*values, strict=True)]
    return [found]
