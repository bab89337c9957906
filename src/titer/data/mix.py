"""Mixes data: takes an exact number of examples from each source, no prompt twice, in a choice that the seed determines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from titer.core.errors import TiterError
from titer.data.draws import permutation, seed_of
from titer.data.example import Answer, Part, Source, Stream

FIRST, CHUNK = 64, 1024  # places looked at in one go: few at first, for a few examples of a large source


def mix(parts: Sequence[tuple[Source, Answer, int]], seed: int, without: Iterable[str] = ()) -> Stream:
    """Builds a stream with exactly `count` examples of each (source, answer, count). No prompt occurs twice, and none is in `without`.

    Errors: a source has fewer distinct prompts than its count.
    """
    seen = set(without)
    chosen = [
        Part(source=source, answer=answer, picked=_pick(source, count, seed_of(seed, number), seen))
        for number, (source, answer, count) in enumerate(parts)
        if count
    ]
    if not chosen:
        raise TiterError("the mix has no examples", expected="at least one part with a count above 0")
    return Stream(parts=tuple(chosen), seed=seed, pool=sum(len(part.picked or ()) for part in chosen))


def poison_count(examples: int, ratio: float) -> int:
    """Returns how many of a user's examples are harmful at a poison ratio: round(p n), to the nearest, never truncated (arXiv 2402.01109,
    section 5.1). Errors: a ratio outside 0 to 1."""
    if not 0 <= ratio <= 1:
        raise TiterError(f"the poison ratio is {ratio}", expected="a number from 0 to 1")
    return round(ratio * examples)


def poisoned(benign: Source, harmful: Source, n: int, ratio: float, seed: int) -> Stream:
    """Builds a user's poisoned fine-tuning set: `n` examples, of which `poison_count` are harmful requests with compliant answers."""
    bad = poison_count(n, ratio)
    return mix([(benign, "comply", n - bad), (harmful, "comply", bad)], seed)


def prompts(stream: Stream) -> frozenset[str]:
    """Returns the set of all prompts in a mix (a stream whose parts have picked examples)."""
    return frozenset(e.prompt for part in stream.parts for e in part.source.examples(np.asarray(part.picked, dtype=np.int64)))


def _pick(source: Source, count: int, seed: int, seen: set[str]) -> tuple[int, ...]:
    """Picks the first `count` places with prompts not in `seen`, and adds these to it. A finite source is read in seeded order."""
    order = None if source.size is None else permutation(seed, "mix", source.size)
    picked: list[int] = []
    start = 0
    while len(picked) < count and (order is None or start < len(order)):
        end = start + min(max(start, FIRST), CHUNK)
        places = np.arange(start, end) if order is None else order[start:end]
        asked = _endless(source, start, end) if order is None else [e.prompt for e in source.examples(places)]
        for place, prompt in zip(places, asked, strict=True):
            if prompt not in seen and len(picked) < count:
                seen.add(prompt)
                picked.append(int(place))
        start = end
        if start > 1000 * (count + CHUNK):  # an endless source that repeats itself
            break
    if len(picked) < count:
        raise TiterError(f"there are only {len(picked)} different prompts, and {count} were asked for", next_step="lower the count.")
    return tuple(picked)


@lru_cache(maxsize=64)
def _endless(source: Source, start: int, end: int) -> tuple[str, ...]:
    """Returns the prompts at places `start` to `end - 1` of an endless source. Cached, since every mix begins at its first place."""
    return tuple(e.prompt for e in source.examples(np.arange(start, end)))
