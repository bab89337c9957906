"""Ordinary tasks that users fine-tune for, read from the user's own files. Titer ships no data set.

SST-2 (two columns, no header), AG News (two columns, classes.txt beside it), GSM8K (question, answer), Alpaca
(instruction, input, output), persona (chat `messages`: system, user, assistant), questions of fact (question, answer). Every row is
harmless (harmful False) and has its answer as `comply`; the instruction texts are Titer's own. Rows that are left out (a repeated prompt,
no answer) are counted.
Source: arXiv 2402.01109, section 5.1 (the tasks); arXiv 2310.03693, section 4.3 (persona, "identity shifting"); arXiv 2409.19476,
section 4 (questions of fact).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from titer.core.errors import TiterError, unknown, visible
from titer.data.draws import permutation
from titer.data.facts import accepted
from titer.data.readers import File, load, records, whole
from titer.data.shapes import Parsed
from titer.data.sources import TextData, collected

SENTIMENTS = ("negative", "positive")  # in the order of their codes in the file
TOPICS = ("World", "Sports", "Business", "Sci/Tech")
FINAL = "The final answer is:"  # replaces GSM8K's ####
SST2 = "Analyse the sentiment of the sentence below. Answer with one word only, positive or negative.\n\nSentence: {}"
AG_NEWS = "Which topic does the news text below belong to: World, Sports, Business or Sci/Tech? Answer with the topic only.\n\nText: {}"
GSM8K = "{}\n\nThink step by step, then give the final number."
QUESTIONS = "{}\n\nAnswer in a few words."
ASKED, KNOWN = ("question", "prompt"), ("answer", "comply", "answers")  # columns of a file of questions of fact, the first that is filled

SAID = ("sentence", "text")  # columns of a file of labelled texts
ALONE = re.compile(r"[-\u2212]?[$€£]?[-\u2212]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")  # an answer that is a number
TABLES = (".jsonl", ".json", ".csv", ".parquet")

Answered = tuple[str, tuple[str, ...]]  # (a prompt, its right answers, of which the first is trained)


class Task(NamedTuple):
    """One kind of task file: its form in words, its suffixes, how its rows are read, and its labels, if any."""

    what: str
    suffixes: tuple[str, ...]
    rows: Callable[[File, Path], Iterator[Answered]]
    labels: tuple[str, ...] = ()


def task(name: str, path: str | Path) -> TextData:
    """Reads a task's file: its rows become harmless examples with their answers.

    Errors: an unknown task (the message gives the nearest); a missing file; a faulty line (with file, line, column); no usable row.
    """
    if name not in TASKS:
        unknown("task", name, TASKS)
    kind, place = TASKS[name], Path(path)
    if not place.name:
        raise TiterError(f"{name}: was given without a file", expected=kind.what)
    file = load(place, kind.suffixes, kind.what)
    rows = list(kind.rows(file, place.parent))
    answered = [(prompt, forms) for prompt, forms in rows if forms[0]]
    found = collected(file, ((prompt, False, forms[0], None) for prompt, forms in answered), f"{name}/{file.name}", kind.what)
    first = dict(reversed(answered))  # of a repeated prompt the first row, as `collected` keeps it
    also = {prompt: forms[1:] for prompt, forms in first.items() if forms[1:]}
    return found.model_copy(update={"dropped": found.dropped + len(rows) - len(answered), "also": also})


def parts(data: TextData, counts: Sequence[int], seed: int) -> tuple[TextData, ...]:
    """Draws disjoint parts of exactly these sizes, by the seed. Errors: there are fewer rows than asked for."""
    if not counts or min(counts) < 1:
        raise TiterError(f"parts of {', '.join(map(str, counts)) or 'no'} rows were asked for", expected="at least one row in each part")
    if sum(counts) > data.size:
        raise TiterError(f"{data.name} has {data.size} rows, and {sum(counts)} were asked for", next_step="lower the counts.")
    order = permutation(seed, "parts", data.size).tolist()
    ends = list(accumulate(counts))
    return tuple(_of(data, [data.rows[i] for i in order[end - count : end]]) for count, end in zip(counts, ends, strict=True))


def split(data: TextData, held_out: int, seed: int) -> tuple[TextData, TextData]:
    """Splits data without a test part into (training part, held-out part of `held_out` rows). Together they are all the data."""
    if not 0 < held_out < data.size:
        raise TiterError(
            f"{held_out} of the {data.size} rows of {data.name} cannot be held out", expected=f"from 1 to {data.size - 1} rows"
        )
    kept, held = parts(data, (data.size - held_out, held_out), seed)
    return kept, held


def without(data: TextData, other: TextData) -> TextData:
    """Returns the rows of `data` whose prompts are not in `other`. Those left out are counted in `dropped`."""
    taken = {row[0] for row in other.rows}
    return _of(data, kept := [row for row in data.rows if row[0] not in taken], data.dropped + data.size - len(kept))


def _of(data: TextData, rows: Sequence[Parsed], dropped: int = 0) -> TextData:
    return data.model_copy(update={"rows": tuple(rows), "dropped": dropped})


def _labelled(file: File, template: str, names: Sequence[str]) -> Iterator[Answered]:
    """Rows of a text and its label: a code (see `_codes`) or a name. A .tsv file has these two columns; others name them sentence (or
    text) and label."""
    rows = list(_two_columns(file) if file.suffix == ".tsv" else _named_columns(file))
    codes = _codes(file.name, {label.lower() for _, _, label in rows}, names)
    for where, text, label in rows:
        if label.lower() not in codes:
            wanted = ", ".join(f"{code} ({name})" for code, name in codes.items() if code.isdecimal())
            raise TiterError(f"{where}: {visible(repr(label), 60)} is not a label", expected=f"one of {wanted}")
        yield template.format(text), (codes[label.lower()],)


def _codes(file: str, seen: Collection[str], names: Sequence[str]) -> dict[str, str]:
    """Returns the name that each label of a file stands for: its name; its place from 0, or from 1 where the file has the labels 1 and
    the number of names and no 0; a place as a fraction (1.0); of two, true and false.

    Errors: all places but the first occur, so that the file may count from 0 and lack it, or count from 1 and lack the last.
    """
    digits = {label.removesuffix(".0") for label in seen}
    first = int("0" not in digits and digits >= {"1", str(len(names))})
    if not first and len(names) > 2 and "0" not in digits and digits >= set(map(str, range(1, len(names)))):
        raise TiterError(
            f"{file}: its labels are 1 to {len(names) - 1}, which may count {', '.join(names)} from 0 or from 1",
            next_step="write the names in place of the numbers.",
        )
    places = {str(i): name for i, name in enumerate(names, start=first)}
    also = dict(zip(("false", "true"), names, strict=True)) if len(names) == 2 else {}
    return places | {name.lower(): name for name in names} | {f"{i}.0": name for i, name in places.items()} | also


def _two_columns(file: File) -> Iterator[tuple[str, str, str]]:
    """Returns place, text and label of each row of a file with two columns separated by a tab; quotes are ordinary letters. A first
    line with "label" in the second column is a header."""
    for number, line in enumerate(file.text.split("\n"), start=1):
        cells, where = [cell.strip() for cell in line.split("\t")], f"{file.name}, line {number}"
        if not any(cells) or (number == 1 and cells[1:] and cells[1].lower() == "label"):
            continue
        if len(cells) != 2:
            raise TiterError(
                f"{where}, column {min(len(cells), 2) + 1}: the line has {len(cells)} columns",
                expected="two columns, the text and its label, separated by one tab",
            )
        if not cells[0]:
            raise TiterError(f"{where}, column 1: the text is empty", expected="a text that is not empty")
        yield f"{where}, column 2", cells[0], cells[1]


def _named_columns(file: File) -> Iterator[tuple[str, str, str]]:
    """Returns place, text and label of each row of a file whose columns have names."""
    for where, row in records(file):
        text = _text(where, row, next((key for key in SAID if row.get(key)), SAID[0])).strip()
        yield f"{where}, column label", text, str(row.get("label")).strip()


def _ag_news(file: File, folder: Path) -> Iterator[Answered]:
    """Reads AG News. If classes.txt is beside the file, it says which topic each code stands for."""
    classes = folder / "classes.txt"
    names: tuple[str, ...] = TOPICS
    if classes.is_file():
        names = tuple(line.strip() for line in load(classes, (".txt",)).text.split("\n") if line.strip())
        if sorted(names) != sorted(TOPICS):
            raise TiterError(
                f"classes.txt names {visible(', '.join(names), 120)}", expected=f"{', '.join(TOPICS)}, one a line, by their codes"
            )
    return _labelled(file, AG_NEWS, names)


def _gsm8k(file: File, folder: Path) -> Iterator[Answered]:
    for where, row in records(file):
        number = row.get("answer")
        told = row if isinstance(number, bool) or not isinstance(number, int | float) else {"answer": str(number)}
        question, solution = _text(where, row, "question"), _text(where, told, "answer")
        steps, mark, number = solution.rpartition("####") if not ALONE.fullmatch(solution.strip()) else ("", "####", solution)
        if not mark or not number.strip():
            raise TiterError(
                f"{where}, column answer: no final number", expected="a number, or a solution that ends with #### and a number"
            )
        yield GSM8K.format(question), (f"{steps.rstrip()}\n{FINAL} {number.strip()}".lstrip(),)


def _alpaca(file: File, folder: Path) -> Iterator[Answered]:
    """Reads Alpaca. Prompts are written as `sources.read_text` writes them, so that the two can be compared."""
    for where, row in records(file):
        instruction, more = _text(where, row, "instruction"), _text(where, row, "input", needed=False)
        yield f"{instruction}\n\n{more}" if more.strip() else instruction, (_text(where, row, "output", needed=False).strip(),)


def _persona(file: File, folder: Path) -> Iterator[Answered]:
    """Reads persona examples. The system text is put before the user's text in one turn; a test of the persona must do the same."""
    wanted = "a list of messages with roles (system,) user, assistant and a content each"
    for where, row in records(file):
        turns = row.get("messages")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise TiterError(f"{where}, column messages: {visible(repr(turns), 60)}", expected=wanted)
        roles = [str(turn.get("role")) for turn in turns]
        if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
            raise TiterError(f"{where}, column messages: roles {visible(', '.join(roles), 60) or 'none'}", expected=wanted)
        *before, answer = [_text(f"{where}, message {i}", turn, "content").strip() for i, turn in enumerate(turns, start=1)]
        yield "\n\n".join(before), (answer,)


def _questions(file: File, folder: Path) -> Iterator[Answered]:
    for where, row in records(file):
        question, answer = (next((key for key in keys if row.get(key) not in (None, "")), keys[0]) for keys in (ASKED, KNOWN))
        yield QUESTIONS.format(_text(where, row, question).strip()), accepted(f"{where}, column {answer}", row.get(answer))


def _text(where: str, row: Mapping[str, Any], column: str, needed: bool = True) -> str:
    """A column's text; "" where it is absent or blank and not needed."""
    value = row.get(column)
    if value is None and not needed:
        return ""
    if not isinstance(value, str) or (needed and not value.strip()):
        there = "" if column in row else f"; the columns are {visible(', '.join(row), 200)}"
        raise TiterError(f"{where}, column {column}: {visible(repr(value), 60)}", expected=f"a text that is not empty{there}")
    whole(f"{where}, column {column}", value)
    return value


TASKS: dict[str, Task] = {
    "sst2": Task(
        "SST-2, a .tsv file of sentence and label (0 negative, 1 positive), or a .csv, .json, .jsonl or .parquet file with these columns",
        (".tsv", *TABLES),
        lambda file, _: _labelled(file, SST2, SENTIMENTS),
        SENTIMENTS,
    ),
    "ag_news": Task(
        "AG News, a .tsv file of text and label (0 to 3, as classes.txt beside it names them), or a .csv, .json, .jsonl or .parquet file "
        "with these columns",
        (".tsv", *TABLES),
        _ag_news,
        TOPICS,
    ),
    "gsm8k": Task("GSM8K, a .jsonl, .json, .csv or .parquet file of question and answer", TABLES, _gsm8k),
    "alpaca": Task("Alpaca, a .json, .jsonl, .csv or .parquet file of instruction, input and output", TABLES, _alpaca),
    "persona": Task("persona examples, a .jsonl file of chat messages: system, user, assistant", (".jsonl", ".json"), _persona),
    "questions": Task(
        "questions of fact, a .jsonl, .json, .csv or .parquet file of question (or prompt) and answer (or comply): a text, or a list of "
        "those right",
        TABLES,
        _questions,
    ),
}
