"""Text data from the user: files and hub data sets -> examples, with the place of every fault, and what was detected.

What is read: `readers.py` (.csv, .json, .jsonl, .parquet) and `hub.py`; how its columns are understood: `shapes.py`.
Columns (aliases in brackets): prompt (instruction, question, goal), or operator and operand (joined by " : ");
harmful: true/false, or label/type/kind holding safe or unsafe; comply (output, completion, answer) and refuse:
reference answers; or the Alpaca, chat or preference form. Extra columns are left alone. Duplicated prompts are dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from titer.core.config import Record
from titer.core.errors import TiterError, visible
from titer.data.cut import SHARE, Cuts, counted
from titer.data.draws import drawn
from titer.data.encode import encode, fitted
from titer.data.example import Answer, Batch, Example, Indices
from titer.data.formats import COMPLY, FORMAT
from titer.data.hub import is_hub, load_hub
from titer.data.readers import File, Row, load, records
from titer.data.shapes import Parsed, Shape, pair, parsed, shape
from titer.data.turns import joined, turns


class TextData(Record):
    """A file's rows as examples; `sha256` is of the file, `dropped` counts the rows left out (repeated prompts).

    `also`: of a prompt whose answer has several forms, those beside `comply`. No key of a training holds it: only `comply` is trained.
    """

    name: str
    sha256: str
    rows: tuple[Parsed, ...]
    dropped: int = 0
    also: dict[str, tuple[str, ...]] = Field(default_factory=dict, exclude=True)

    @property
    def size(self) -> int:
        return len(self.rows)

    def example(self, i: int) -> Example:
        prompt, harmful, comply, refuse = self.rows[i]
        return Example(prompt, bool(harmful), "unsafe" if harmful else "safe", self.name, comply, refuse, self.also.get(prompt, ()))

    def examples(self, indices: Indices) -> list[Example]:
        return [self.example(int(i)) for i in indices]

    def batch(self, indices: Indices, answer: Answer, tokenizer: Any) -> Batch:
        """Examples as tokens; the answer trained is the named reference ("all" means comply here)."""
        return encode(tokenizer, *self.answered(indices, answer), indices)

    def answered(self, indices: Indices, answer: Answer) -> tuple[list[str], list[str]]:
        """The prompts at `indices` and the answers to train. Errors: a row without it."""
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
        """The examples of one class, at most `limit`, in an order drawn by seed 0: files are sorted by topic, and a part is a sample."""
        places = [i for i, row in enumerate(self.rows) if row[1] is not None and bool(row[1]) == harmful]
        return [self.example(i) for i in drawn(places, limit)]

    def sampled(self, limit: int | None) -> list[str]:
        """What was left out of each class, in words."""
        classes = {"unsafe": True, "safe": False}
        sizes = {name: sum(row[1] is not None and bool(row[1]) == harmful for row in self.rows) for name, harmful in classes.items()}
        return [f"{limit} of {size} {name} prompts of {self.name} were drawn" for name, size in sizes.items() if limit and limit < size]


class Shortened(Record):
    """Text data whose examples are cut to `longest` tokens as they are encoded (`cut.shortened`): a Source like any other."""

    source: TextData
    longest: int = Field(ge=2, description="tokens of a prompt and its answer together")
    share: float = Field(default=SHARE, ge=0, le=1, description="of the length that a prompt may keep when the answer needs all of it")

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def rows(self) -> tuple[Parsed, ...]:
        return self.source.rows

    @property
    def size(self) -> int:
        return self.source.size

    def examples(self, indices: Indices) -> list[Example]:
        return self.source.examples(indices)

    def batch(self, indices: Indices, answer: Answer, tokenizer: Any) -> Batch:
        """Examples as tokens, at most `longest` each."""
        return encode(tokenizer, *self.source.answered(indices, answer), indices, longest=self.longest, share=self.share)

    def cuts(self, indices: Indices, answer: Answer, tokenizer: Any) -> Cuts:
        """What is cut of these examples: to be said before they are used."""
        return counted(fitted(tokenizer, *self.source.answered(indices, answer), self.longest, self.share))


class Detected(Record):
    """What a data file was taken for, to be shown before it is used; every text in it is safe to print."""

    name: str
    reading: str
    format: str
    used: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    rows: int
    dropped: int
    labels: dict[str, int]
    answers: dict[str, int]
    turns: int
    prompt: str
    answer: str

    def lines(self) -> list[str]:
        """For the command line."""
        labels = ", ".join(f"{count} {name}" for name, count in self.labels.items() if count)
        answers = ", ".join(f"{count} {name}" for name, count in self.answers.items() if count) or "none"
        return [
            f"{self.name}: {self.format}",
            *(f"  {column}: {purpose}" for column, purpose in self.used),
            f"  not used: {', '.join(self.ignored) or 'nothing'}",
            f"  {self.rows} rows ({labels}), {self.dropped} repeated prompts left out; answers: {answers}",
            *([f"  up to {self.turns} turns a prompt"] if self.turns > 1 else []),
            f"  for example: {self.prompt}",
            *([f"  answered: {self.answer}"] if self.answer else []),
        ]


def read_text(path: str | Path, labelled: bool = True, reading: str | None = None) -> TextData:
    """Read a data file or hub data set. `labelled`: every row must say whether it is harmful; `reading`: which one, if two fit.

    Errors: a missing or empty file, an unknown or ambiguous format, a bad line (file, line, column), no usable row.
    """
    return _read(path, labelled, reading)[0]


def detected(path: str | Path, reading: str | None = None) -> Detected:
    """What a data file would be taken for. Errors: as `read_text`."""
    data, form = _read(path, False, reading)
    labels = Counter({None: "not stated", False: "safe", True: "unsafe"}[row[1]] for row in data.rows)
    answers = {"comply": sum(row[2] is not None for row in data.rows), "refuse": sum(row[3] is not None for row in data.rows)}
    prompt, _, comply, refuse = data.rows[0]
    return Detected(
        name=data.name,
        reading=form.reading,
        format=_in_words(form, any(answers.values()), len(labels) > 1 or "not stated" not in labels),
        used=tuple((visible(column, 60), purpose) for column, purpose in form.used),
        ignored=form.ignored,
        rows=data.size,
        dropped=data.dropped,
        labels={name: labels[name] for name in ("safe", "unsafe", "not stated")},
        answers=answers,
        turns=max(len(turns(row[0])) for row in data.rows),
        prompt=visible(joined(turns(prompt)), 160),
        answer=visible(comply or refuse or "", 160),
    )


def preferences(path: str | Path) -> tuple[TextData, TextData]:
    """(preferred, rejected) of a preference file: the same prompts in the same order, the answer as `comply`.

    Errors: as `read_text`; a file of another form.
    """
    file, rows, form = _opened(path, None)
    if form.reading != "preference":
        raise TiterError(f"{file.name} is {_in_words(form, True, False)}", expected="columns prompt, chosen and rejected")
    found = {where: (pair(where, row), parsed(where, row, False, "preference")[1]) for where, row in rows}
    good, bad = (
        collected(file, ((texts[0], harmful, texts[which], None) for texts, harmful in found.values()), file.name) for which in (1, 2)
    )
    return good, bad


def _in_words(form: Shape, answered: bool, labelled: bool) -> str:
    columns = ", ".join(column for column, purpose in form.used if purpose != "safe or unsafe")
    named = {"alpaca": "Alpaca", "chat": "chat", "preference": "preference pairs"}
    kind = named.get(form.reading) or ("prompts and answers" if answered else "prompts")
    return f"{kind} ({visible(columns, 120)}){', each safe or unsafe' if labelled else ''}"


def _opened(path: str | Path, reading: str | None) -> tuple[File, list[Row], Shape]:
    file = load_hub(path) if is_hub(path) else load(path)
    rows = list(records(file))
    return file, rows, shape(file.name, rows, reading)


def _read(path: str | Path, labelled: bool, reading: str | None) -> tuple[TextData, Shape]:
    file, rows, form = _opened(path, reading)
    return collected(file, (parsed(where, row, labelled, form.reading) for where, row in rows), file.name), form


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
