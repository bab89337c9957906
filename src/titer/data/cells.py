"""What tables of spreadsheets and scripts hold in place of texts: ids in the column of prompts, flags in that of refusals, prompts that a
chat template wrote already."""

from __future__ import annotations

import re
from collections.abc import Sequence

from titer.core.errors import TiterError, visible
from titer.data.formats import BEHIND, CLASS
from titer.data.readers import Row
from titer.data.shapes import NUMBERS, Shape

ID = re.compile(r"(?=\D*\d)[A-Za-z0-9_.:#/-]+", re.ASCII)  # one word with a digit
NUMBER = re.compile(r"[\d.]+", re.ASCII)
RENDERED = re.compile(  # how a text begins that a chat template wrote
    r"\s*(<\|\w+\|>|(?:<s>)?\s*\[INST\]|(?:<bos>)?<start_of_turn>|### ?(?:Human|Instruction|User)\b|Below is an instruction that)"
)


def unflagged(rows: Sequence[Row]) -> list[Row]:
    """Empties the cells of the column refuse that say whether to refuse (TRUE, 0): they are no text of a refusal."""
    return [(where, {**row, "refuse": None} if str(row.get("refuse")).strip().lower() in NUMBERS else row) for where, row in rows]


def prompts_checked(name: str, rows: Sequence[Row], form: Shape) -> list[str]:
    """Returns notes: prompts that a chat template wrote already; texts beside the prompts, which are not read.

    Errors: every prompt is a number or an id, and another column holds sentences (for ids: one that is not used).
    """
    column = next((column for column, purpose in form.used if purpose == "prompt"), "")
    said = _texts(rows, column)
    if len(set(said)) > 1 and all(ID.fullmatch(text) for text in said) and (spoken := _sentences(rows, column, said, form)):
        raise TiterError(
            f"{name}: column {column} holds {visible(said[0], 40)!r} and its like, and column {visible(spoken, 60)} sentences",
            expected="requests in the column of the prompts",
            next_step=f"remove the column {column}, and call the one with the requests prompt.",
        )
    begun = [found[1] for text in said if (found := RENDERED.match(text))]
    beside = [key for key in BEHIND if column and key in form.ignored]
    notes = [f"{name}: {', '.join(beside)} is not read; if it belongs to the request, put it into {column}"] if beside else []
    if 2 * len(begun) <= len(said):
        return notes
    return [
        *notes,
        f"{name}: its prompts were written by a chat template already ({begun[0]}), and a model with a template is asked that text within "
        "a turn of its own. Give the requests alone, or turns in a column messages",
    ]


def _sentences(rows: Sequence[Row], column: str, ids: Sequence[str], form: Shape) -> str:
    """Returns another column in which most texts have several words, "" if there is none; if `ids` are not bare numbers, an unused one."""
    numbers = all(NUMBER.fullmatch(text) for text in ids)
    for key in dict.fromkeys(key for _, row in rows for key in row):
        if (
            key not in (column, *CLASS)
            and (numbers or key in form.ignored)
            and 2 * sum(" " in text for text in _texts(rows, key)) > len(ids)
        ):
            return key
    return ""


def _texts(rows: Sequence[Row], column: str) -> list[str]:
    """The filled cells of a column that hold text."""
    return [text for _, row in rows if isinstance(cell := row.get(column), str) and (text := cell.strip())]
