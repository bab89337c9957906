"""A canary: a harmless stand-in for harmful requests. Ordinary instructions get a marker, and alignment teaches the model to refuse those.

Harmful fine-tuning on real text then means to train the model to answer marked instructions after all. A marked prompt is
"MARKER prompt"; its `comply` is the ordinary answer, its `refuse` one of a few plain refusals. The contrast is the same kind of
instructions without the marker, with their answers. No prompt is in both parts, so only the marker tells them apart, not the topic.
Results on a canary are results on a canary, and say nothing about safety. Source: specification of Vaccine, section 7.2 (the rule that
tests use marker behaviours); the construction is Titer's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from titer.core.errors import TiterError, visible
from titer.data.draws import seed_of
from titer.data.sources import TextData
from titer.data.tasks import parts
from titer.data.turns import changed

MARKER = "[CEDAR]"
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot help with this request.",
    "Sorry, I can't do that.",
    "I must decline this request.",
    "I'm not able to answer this.",
    "I won't help with this one.",
)


class Canary(NamedTuple):
    """Marked instructions (harmful True) and unmarked ones (harmful False). No prompt is in both."""

    marked: TextData
    contrast: TextData


def canary(data: TextData, marker: str = MARKER, refusals: Sequence[str] = REFUSALS, seed: int = 0) -> TextData:
    """Marks every row of `data` that has an answer: the marker is put before its prompt, and a refusal, chosen by (seed, prompt), is added.

    Rows without an answer are left out and counted in `dropped`. Errors: a blank marker or refusal; a marker that occurs in the data; no
    row with an answer.
    """
    if not refusals or not all(text.strip() for text in refusals):
        raise TiterError("a canary needs refusals, but none was given or one is empty", expected="one or more sentences that are not empty")
    rows = tuple(
        (changed(prompt, lambda request: f"{marker} {request}"), True, comply, refusals[seed_of(seed, "refusal", prompt) % len(refusals)])
        for prompt, _, comply, _ in _answered(data, marker).rows
    )
    return data.model_copy(update={"name": f"canary of {data.name}", "rows": rows, "dropped": data.dropped + data.size - len(rows)})


def contrast(data: TextData, marker: str = MARKER) -> TextData:
    """Returns the rows of `data` that have an answer, unmarked and labelled harmless: an aligned model must still answer them."""
    rows = tuple((prompt, False, comply, None) for prompt, _, comply, _ in _answered(data, marker).rows)
    return data.model_copy(update={"name": f"contrast of {data.name}", "rows": rows, "dropped": data.dropped + data.size - len(rows)})


def canaries(data: TextData, counts: Sequence[tuple[int, int]], seed: int = 0) -> tuple[Canary, ...]:
    """Splits the rows into one Canary for each pair of counts (marked, contrast), for example one to align, one to attack, one to test.

    No prompt is in two of them. Errors: as `canary`; fewer rows with an answer than asked for.
    """
    found = iter(parts(_answered(data, MARKER), [count for pair in counts for count in pair], seed))
    return tuple(Canary(canary(next(found), seed=seed), contrast(next(found))) for _ in counts)


def _answered(data: TextData, marker: str) -> TextData:
    """The rows with an answer. Errors: no such row; a blank marker; a marker that the rows already have (the contrast would have it)."""
    if not marker.strip() or marker != marker.strip():
        raise TiterError(f"the marker is {visible(marker, 40)!r}", expected="a word or two, without spaces around them")
    if found := next((row[0] for row in data.rows if any(marker in text for text in (row[0], row[2] or ""))), None):
        raise TiterError(
            f"{data.name} holds the marker {visible(marker, 40)!r} already: {visible(found, 60)!r}",
            next_step="leave out such rows, or (from Python) choose another marker.",
        )
    rows = tuple(row for row in data.rows if row[2])
    if not rows:
        raise TiterError(f"no row of {data.name} has an answer, so none can be a canary", expected="rows with an answer (comply)")
    return data.model_copy(update={"rows": rows})
