"""Reads the user's text data: files and hub data sets become examples. Error messages name the place of the fault.

`readers.py` and `hub.py` read the rows; `shapes.py`, and `prompt_sets.py` for published sets, interpret their columns. Other columns are
ignored. Repeated prompts are dropped and counted. Rows that cannot be used are left out and counted by reason. `TextData.notes` reports
both wherever the data are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar
from unicodedata import normalize

import numpy as np
from pydantic import Field

from titer.core.config import Record
from titer.core.errors import Faulty, TiterError, visible
from titer.data.cards import card_features
from titer.data.cells import prompts_checked, unflagged
from titer.data.cut import SHARE, in_words
from titer.data.draws import drawn
from titer.data.encode import encode, fitted
from titer.data.example import Answer, Batch, Example, Indices
from titer.data.formats import COMPLY, FORMAT
from titer.data.hub import is_hub, load_hub
from titer.data.prompt_sets import PREFIXES, SAFE, UNSAFE, as_plain, recognised
from titer.data.readers import File, Row, load, records
from titer.data.shapes import Need, Parsed, Shape, pair, parsed, shape, straight
from titer.data.tables import named
from titer.data.turns import LeftOut, request, turns

T = TypeVar("T")
FEW = 0.1  # share of a file's rows that may be faulty: they are left out and counted


class TextData(Record):
    """A file's rows as a Source of examples. A row is (prompt, harmful, comply, refuse).

    `sha256`: of the file. `dropped`: how many repeated prompts were left out. `also`: prompt -> further right answers beside `comply`.
    `left_out`: reason -> rows that cannot be used. `told`: notes on how the file was read. The last three are in no training's key, since
    only the rows are trained.
    """

    name: str
    sha256: str
    rows: tuple[Parsed, ...]
    dropped: int = 0
    also: dict[str, tuple[str, ...]] = Field(default_factory=dict, exclude=True)
    left_out: dict[str, int] = Field(default_factory=dict, exclude=True)
    told: tuple[str, ...] = Field(default=(), exclude=True)

    @property
    def notes(self) -> list[str]:
        """Notes for the user: how the file was read, and how many rows were left out and why."""
        dropped = [f"{self.dropped} repeated prompts of {self.name} were left out"] if self.dropped else []
        return [*self.told, *dropped, *(f"{count} rows of {self.name} {why} were left out" for why, count in self.left_out.items())]

    @property
    def size(self) -> int:
        return len(self.rows)

    def example(self, i: int) -> Example:
        prompt, harmful, comply, refuse = self.rows[i]
        return Example(prompt, bool(harmful), "unsafe" if harmful else "safe", self.name, comply, refuse, self.also.get(prompt, ()))

    def examples(self, indices: Indices) -> list[Example]:
        return [self.example(int(i)) for i in indices]

    def batch(self, indices: Indices, answer: Answer, tokenizer: Any) -> Batch:
        """Encodes the examples at `indices`, with labels on the named answer ("all" means comply here)."""
        return encode(tokenizer, *self.answered(indices, answer), indices)

    def answered(self, indices: Indices, answer: Answer) -> tuple[list[str], list[str]]:
        """Returns (the prompts at `indices`, their answers to train). Errors: a row without that answer."""
        chosen = self.examples(np.asarray(indices))
        wanted = "refuse" if answer == "refuse" else "comply"
        answers = [getattr(example, wanted) for example in chosen]
        for example, text in zip(chosen, answers, strict=True):
            if text is None:
                raise TiterError(
                    f"{self.name}: {visible(example.prompt, 60)!r} has no answer to train",
                    expected=f"a column {wanted} ({', '.join(COMPLY)})",
                )
        return [e.prompt for e in chosen], answers

    def of_class(self, harmful: bool, limit: int | None = None) -> list[Example]:
        """Returns at most `limit` examples of a class (None: all), in an order drawn with seed 0, since files are often sorted by topic."""
        places = [i for i, row in enumerate(self.rows) if row[1] is not None and bool(row[1]) == harmful]
        return [self.example(i) for i in drawn(places, limit)]

    def sampled(self, limit: int | None) -> list[str]:
        """Returns a note for each class with more prompts than `limit`: how many of them were drawn."""
        classes = {"unsafe": True, "safe": False}
        sizes = {name: sum(row[1] is not None and bool(row[1]) == harmful for row in self.rows) for name, harmful in classes.items()}
        return [f"{limit} of {size} {name} prompts of {self.name} were drawn" for name, size in sizes.items() if limit and limit < size]


class Shortened(Record):
    """Text data whose examples are cut to `longest` tokens when they are encoded (`cut.shortened`). It is a `Source`."""

    source: TextData
    longest: int = Field(ge=2, description="tokens of a prompt and its answer together")
    share: float = Field(
        default=SHARE, ge=0, le=1, description="share of the length that a prompt keeps even if the answer needs all of it"
    )

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def rows(self) -> tuple[Parsed, ...]:
        return self.source.rows

    @property
    def notes(self) -> list[str]:
        return self.source.notes

    @property
    def size(self) -> int:
        return self.source.size

    def examples(self, indices: Indices) -> list[Example]:
        return self.source.examples(indices)

    def batch(self, indices: Indices, answer: Answer, tokenizer: Any) -> Batch:
        """Encodes the examples at `indices`, each cut to at most `longest` tokens."""
        return encode(tokenizer, *self.source.answered(indices, answer), indices, longest=self.longest, share=self.share)

    def cuts(self, indices: Indices, answer: Answer, tokenizer: Any) -> str:
        """Says in words what is cut from these examples, to be reported before they are used."""
        return in_words(fitted(tokenizer, *self.source.answered(indices, answer), self.longest, self.share))


class Detected(NamedTuple):
    """A data file's rows and how they were read, to be shown before the data are used."""

    data: TextData
    form: Shape

    def lines(self) -> list[str]:
        """Returns lines for the command line: form, columns and counts. They show no row's text, since it may be harmful."""
        name, rows = self.data.name, self.data.rows
        classes = Counter({None: "not stated", False: "safe", True: "unsafe"}[row[1]] for row in rows)
        answers = {"comply": sum(row[2] is not None for row in rows), "refuse": sum(row[3] is not None for row in rows)}
        kind = _in_words(self.form, any(answers.values()), classes["not stated"] < len(rows))
        labels = ", ".join(f"{classes[word]} {word}" for word in ("safe", "unsafe", "not stated") if classes[word])
        longest = max(len(turns(row[0])) for row in rows)
        return [
            f"{name}: {kind}",
            *(f"  {visible(column, 60)}: {purpose}" for column, purpose in self.form.used),
            f"  not used: {', '.join(self.form.ignored) or 'nothing'}",
            f"  {len(rows)} rows ({labels}), {self.data.dropped} repeated prompts left out; "
            f"answers: {', '.join(f'{count} {word}' for word, count in answers.items() if count) or 'none'}",
            *([f"  up to {longest} turns in a prompt"] if longest > 1 else []),
            *(f"  {visible(note, 400)}" for note in self.data.told),
            *(f"  {visible(f'{count} rows {why} left out', 400)}" for why, count in self.data.left_out.items()),
        ]


def read_text(path: str | Path, labelled: bool = True, reading: str | None = None, need: Need | None = None) -> TextData:
    """Reads a data file, a hub data set, a published set as NAME:FILE, or a file of one class as safe:FILE or unsafe:FILE.

    `labelled`: each row must say whether it is harmful. `reading`: which reading to use, if several fit. `need`: what the command needs
    from the file; by default prompts if `labelled`, else answers.
    Errors: a missing or empty file; an unknown or ambiguous form; a faulty line (with file, line, column); no usable row; a prompt that
    is safe in one row and unsafe in another.
    """
    return _read(path, labelled, reading, need or ("prompts" if labelled else "answers"))[0]


def detected(path: str | Path, reading: str | None = None, need: Need = "answers") -> Detected:
    """Reads a data file and also returns how it was read. Errors: as `read_text`."""
    return Detected(*_read(path, False, reading, need))


def preferences(path: str | Path, reading: str | None = None) -> tuple[TextData, TextData]:
    """Reads a preference file as (preferred, rejected): the same prompts in the same order, each with that answer as `comply`.

    Errors: as `read_text`; a file of another form.
    """
    file, rows, form, told = _opened(path, reading, "pairs")
    if form.reading != "preference":
        there = dict.fromkeys(key for _, row in rows for key in row)
        raise TiterError(
            f"{file.name} has no pairs of answers; its columns are {visible(', '.join(there), 120)}",
            expected="a file with the columns prompt, chosen and rejected",
        )
    found, left_out = _of_use(rows, lambda where, row: (pair(where, row), parsed(where, row, False, "preference", "pairs")[1]))
    good, bad = (
        collected(file, ((texts[0], harmful, texts[which], None) for texts, harmful in found), file.name, left_out=left_out, told=told)
        for which in (1, 2)
    )
    return good, bad


def _of_use(rows: Iterable[Row], read: Callable[[str, Mapping[str, Any]], T]) -> tuple[list[T], Counter[str]]:
    """Reads the usable rows; returns (results of `read`, reason -> rows left out). Errors: over 10 % of the rows are faulty: the first."""
    found, left_out, faults = list[T](), Counter[str](), list[Faulty]()
    for where, row in rows:
        try:
            found.append(read(where, row))
        except LeftOut as why:
            left_out[str(why)] += 1
        except Faulty as fault:
            faults.append(fault)
    if len(faults) > FEW * (len(found) + len(faults)):
        raise faults[0]
    if faults:
        left_out[f"that cannot be read (the first: {faults[0].what})"] = len(faults)
    return found, left_out


def _in_words(form: Shape, answered: bool, labelled: bool) -> str:
    columns = ", ".join(column for column, purpose in form.used if purpose != "safe or unsafe")
    named = {
        "alpaca": "Alpaca",
        "chat": "chat",
        "preference": "preference pairs",
        "unpaired": "unpaired preferences, whose label says which completions are wanted",
    }
    kind = named.get(form.reading) or ("prompts and answers" if answered else "prompts")
    return f"{kind} ({visible(columns, 120)}){', each safe or unsafe' if labelled else ''}"


def _opened(path: str | Path, reading: str | None, need: Need) -> tuple[File, list[Row], Shape, tuple[str, ...]]:
    """Opens a file; returns (file, its rows, how they are read, notes). A published set, named or recognised, becomes plain rows."""
    prefix, place = place_of(path)
    file = load_hub(place) if is_hub(place) else load(place)
    found, classes = _by_card(place, file, list(records(file)))
    rows, told = unflagged(straight(found)), ""
    columns = {key for _, row in rows for key in row}
    if name := prefix if prefix not in ("", SAFE, UNSAFE) else "" if reading else recognised(file.name, columns):
        rows, told = as_plain(name, file.name, rows)
    if prefix in (SAFE, UNSAFE):
        rows = [(where, {**row, "harmful": prefix == UNSAFE}) for where, row in rows]
        told = f"every prompt of {file.name} counts as {prefix}, as {prefix}:FILE says"
    form = shape(file.name, rows, reading, need)
    return file, rows, form, (*filter(None, [classes, told]), *form.told, *prompts_checked(file.name, rows, form))


def _by_card(place: str | Path, file: File, rows: list[Row]) -> tuple[list[Row], str]:
    """Replaces class numbers by the names that the data set's card beside the file gives them; returns (rows, a note, "" without one)."""
    said, card = ({}, "") if is_hub(place) else card_features(Path(place))
    features = {column.strip().lower(): feature for column, feature in said.items()}
    renamed = [(where, row) for (where, _), row in zip(rows, named(features, (row for _, row in rows), file.name), strict=True)]
    columns = [
        column for column in features if any(old.get(column) != new.get(column) for (_, old), (_, new) in zip(rows, renamed, strict=True))
    ]
    return renamed, f"{file.name}: {card} names the classes of {visible(', '.join(columns), 120)}" if columns else ""


def place_of(path: str | Path) -> tuple[str, str | Path]:
    """Splits NAME:FILE to (name, file) if NAME is a published set, "safe" or "unsafe"; returns ("", path) for any other path."""
    name, colon, rest = str(path).partition(":")
    if colon and rest and name.lower() in PREFIXES:
        return name.lower(), rest
    return "", path


def _read(path: str | Path, labelled: bool, reading: str | None, need: Need) -> tuple[TextData, Shape]:
    file, rows, form, told = _opened(path, reading, need)
    found, left_out = _of_use(rows, lambda where, row: parsed(where, row, labelled, form.reading, need))
    return collected(file, found, file.name, left_out=left_out, told=told), form


def collected(
    file: File,
    rows: Iterable[Parsed],
    name: str,
    expected: str = FORMAT,
    left_out: Mapping[str, int] = MappingProxyType({}),
    told: Sequence[str] = (),
) -> TextData:
    """Collects rows as TextData called `name`. Only a prompt's first row is kept, the others are counted as dropped.
    Errors: no row; a prompt that is safe in one row and unsafe in another."""
    kept: dict[str, Parsed] = {}
    labels: dict[str, tuple[str, bool]] = {}  # a request -> its first prompt and label
    alike: list[str] = []
    total = 0
    for row in rows:
        kept.setdefault(row[0], row)
        total += 1
        if row[1] is None:
            continue
        first, harmful = labels.setdefault(request(row[0], system=True), (row[0], row[1]))
        if row[1] != harmful and normalize("NFC", first) == normalize("NFC", row[0]):
            raise TiterError(
                f"{file.name}: the prompt {visible(row[0], 60)!r} is safe in one row and unsafe in another",
                next_step="remove one of the two rows.",
            )
        alike += [row[0]] if row[1] != harmful else []
    if alike:
        few = (
            f"{len(alike)} prompts of {file.name} have the other label than a prompt that differs in capitals, spaces or punctuation alone"
        )
        told = (*told, f"{few}, such as {visible(alike[0], 60)!r}")
    if not kept:
        why = ", ".join(f"{count} rows {why}" for why, count in left_out.items())
        raise TiterError(f"{file.name} holds no example{f' that can be used ({why})' if why else ''}", expected=expected)
    dropped, whys = total - len(kept), dict(left_out)
    return TextData(name=name, sha256=file.sha256, rows=tuple(kept.values()), dropped=dropped, left_out=whys, told=tuple(told))
