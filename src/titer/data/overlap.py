"""Prompts that recur between sets, or within one: dropped and counted, or refused.

Two prompts are the same request if they are equal in small letters, with blanks run together and without punctuation at
their ends; of a conversation the turns count, not the system text. The order of the sets is their precedence: the first
keeps all its rows, each later one loses what an earlier one holds. Evaluation comes first, so what is measured stays whole
and training gives way; then alignment; then the attack, as users choose their data last.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

from titer.core.errors import TiterError, visible
from titer.data.sources import TextData
from titer.data.tasks import without
from titer.data.turns import turns

ORDER = ("evaluation", "alignment", "attack")


class Recurring(NamedTuple):
    """So many rows of set `loser` that set `holder` (or, of the same name, an earlier row) holds."""

    loser: str
    holder: str
    rows: int

    def line(self, dropped: bool = True) -> str:
        """In words."""
        end = " and were left out" if dropped else ""
        if self.loser == self.holder:
            return f"{self.rows} prompts of {self.loser} stand in it twice{end}"
        return f"{self.rows} prompts of {self.loser} stand in {self.holder} too{end}"


class Apart(NamedTuple):
    """The sets without what recurs, and what was dropped of which because of which."""

    sets: dict[str, TextData]
    recurring: tuple[Recurring, ...]

    @property
    def dropped(self) -> int:
        return sum(one.rows for one in self.recurring)

    def lines(self) -> list[str]:
        """For the command line and the report."""
        return [one.line() for one in self.recurring] or [f"no prompt recurs in {', '.join(self.sets)}"]


def request(prompt: str) -> str:
    """What makes two prompts the same request; a prompt of punctuation alone is itself."""
    said = "\n".join(turn.content for turn in turns(prompt) if turn.role != "system")
    plain = " ".join(unicodedata.normalize("NFKC", said).casefold().split())
    start, end = 0, len(plain)
    while start < end and _edge(plain[start]):
        start += 1
    while end > start and _edge(plain[end - 1]):
        end -= 1
    return plain[start:end] or plain


def apart(sets: Mapping[str, TextData], strict: bool = False) -> Apart:
    """The sets, in the order of their precedence, with no request twice; what is left out is counted in `dropped` too.

    Errors: with `strict`, anything that recurs (the counts are named); a set of which nothing is left.
    """
    holder: dict[str, str] = {}
    found: dict[str, TextData] = {}
    counts: dict[tuple[str, str], int] = {}
    for name, data in sets.items():
        hits = []
        for row in data.rows:
            if (key := request(row[0])) in holder:
                counts[name, holder[key]] = counts.get((name, holder[key]), 0) + 1
                hits.append(row)
            else:
                holder[key] = name
        found[name] = without(data, data.model_copy(update={"rows": tuple(hits)})) if hits else data
    recurring = tuple(Recurring(*pair, count) for pair, count in counts.items())
    if strict and recurring:
        raise TiterError(
            "the sets overlap: " + "; ".join(one.line(dropped=False) for one in recurring),
            expected="no request in two sets, or twice in one",
            next_step="take them out, or leave out --strict: they are dropped then, and counted.",
        )
    if empty := next((name for name, data in found.items() if not data.rows), None):
        raise TiterError(
            f"nothing is left of {visible(found[empty].name, 120)} ({visible(empty, 60)}): every prompt stands in another set",
            next_step="give other data.",
        )
    return Apart(found, recurring)


def _edge(letter: str) -> bool:
    return letter == " " or unicodedata.category(letter).startswith("P")
