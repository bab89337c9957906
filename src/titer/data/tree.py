"""Draws the tree grammar, a probabilistic context-free grammar, by seed, and derives its sub-grammars by masking symbols.

Source: arXiv 2407.10264, appendix (section 1.3 of its specification): its shape, not its rules. Root -> two of three
level-2 symbols -> safe- and unsafe-dominant symbols (three each) -> `inner` levels -> pre-terminals -> three letters.
All alternatives of a symbol are equally probable. Several grammars share every rule but the letters'.
A sub-grammar keeps some dominant symbols and some of their expansions (`sub_grammars`); that of an unsafe text
has units cut to two pre-terminals, as in the paper.
Vocabulary: a unit is the expansion of a symbol of the last inner level; a head is a dominant symbol as masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from titer.core.config import Record
from titer.data.draws import seed_of
from titer.data.grammar import EVERY_UNSAFE, FULL, MIXED, NOVEL_UNSAFE, PHRASE, SAFE, UNSAFE

Rule = tuple[int, ...]
Level = tuple[tuple[Rule, ...], ...]  # symbol -> its alternatives
DOMINANT = 3  # safe-dominant symbols, and as many unsafe-dominant ones after them
SHORT = 2  # pre-terminals of a unit in an unsafe sub-grammar; three elsewhere
MIX = (((2, 0), (2, 1), (2, 1)), ((3, 0), (2, 1), (1, 1)), ((1, 1), (1, 2), (0, 3)))  # level 2: (safe, unsafe) symbols
ATTEMPTS = 20_000


class Shape(Record):
    """How many symbols each level has. The defaults are the paper's: 26 non-terminals, 55 productions, depth 6.

    `apart`: safe- and unsafe-dominant symbols share no symbol below them, so every phrase tells the class; in
    the paper they share all, and the order of units tells it.
    """

    inner: tuple[int, ...] = Field(default=(5, 5), min_length=1, max_length=2)
    preterminals: int = Field(default=6, ge=4)
    emissions: int = Field(default=2, ge=2, le=8)  # alternatives of a pre-terminal
    pairs: tuple[int, int] = (2, 1)  # two-symbol expansions among the dominant symbols and the first of two inner levels
    unused: tuple[int, ...] = Field(default=(1, 4, 5, 6), min_length=1)  # letters that grammar 0, 1, .. never emits
    apart: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Shape:
        if min(self.inner) < (6 if self.apart else 3) or (self.apart and self.preterminals < 6):
            raise ValueError("an expansion needs three symbols to choose from (in each half, if apart)")
        if not 0 <= self.pairs[0] <= 8 or not 0 <= self.pairs[1] <= 2 * self.inner[0] or min(self.unused) < 0:
            raise ValueError("pairs are 0 to 8 and 0 to twice the first inner level; unused letters 0 or more")
        return self


class Head(NamedTuple):
    """A dominant symbol as a sub-grammar keeps it: its expansions into the first inner level, and short units or not."""

    expansions: tuple[Rule, ...]
    short: bool


class Rules(NamedTuple):
    """A drawn grammar: every level's rules, and the letters of each grammar's pre-terminals (G, symbols, emissions, 3)."""

    roots: tuple[Rule, ...]
    level2: Level
    dominant: Level
    inner: tuple[Level, ...]
    letters: NDArray[np.int64]


@lru_cache(maxsize=16)
def draw_rules(shape: Shape, seed: int, letters: int, grammars: int) -> Rules:
    """Draws the grammar of (shape, seed): at each level, the first attempt that passes the checks (`_whole`, `_heads_fit`).

    Errors: ValueError if the shape or the alphabet is too small.
    """
    rng = np.random.default_rng(seed_of(seed, "tree"))
    first, last, apart, two = shape.inner[0], shape.inner[-1], shape.apart, len(shape.inner) == 2
    level2 = _until(lambda: tuple(tuple(_mixed(rng, *counts) for counts in symbol) for symbol in MIX), lambda x: _whole(x, 2 * DOMINANT))
    units = _until(
        lambda: _level(rng, last, shape.preterminals, _arities(rng, last, 0), apart),
        lambda x: _whole(x, shape.preterminals) and len({rule[:SHORT] for symbol in x for rule in symbol}) == 2 * last,
    )
    middle = _until(lambda: _level(rng, first, last, _arities(rng, first, shape.pairs[1]), apart), lambda x: _whole(x, last)) if two else ()
    least = tuple(min(map(len, symbol)) for symbol in middle) or (1,) * first
    dominant = _until(
        lambda: _level(rng, 2 * DOMINANT, first, _arities(rng, 2 * DOMINANT, shape.pairs[0]), apart),
        lambda x: _whole(x, first) and _heads_fit(x, least, 6 if two else 2),
    )
    a, b, c = rng.permutation(len(MIX)).tolist()
    roots = ((a, b), (c, a) if rng.integers(2) else (b, c))  # two alternatives of two level-2 symbols; together they use all three
    inner = (middle, units) if two else (units,)
    return Rules(roots, level2, dominant, inner, _letters(shape, seed, letters, grammars))


def _until(make: Callable[[], Level], sound: Callable[[Level], bool]) -> Level:
    for _ in range(ATTEMPTS):
        level = make()
        if sound(level):
            return level
    raise ValueError("no grammar of this shape was found; give its levels more symbols")


def _whole(level: Level, children: int) -> bool:
    """Tells whether no rule occurs twice and every child symbol is used."""
    rules = [rule for symbol in level for rule in symbol]
    return len(set(rules)) == len(rules) and {child for rule in rules for child in rule} == set(range(children))


def _heads_fit(dominant: Level, least: Sequence[int], units: int) -> bool:
    """Tells whether held-out expansions share no pair of neighbours with shown ones, and each head's strings have `units` units or more.

    The last unsafe-dominant symbol, the one held out in part, must have three children in both its expansions.
    """
    if any(len(rule) != 3 for rule in dominant[-1]):
        return False
    kinds = sub_grammars(dominant)
    if not kinds[MIXED]:
        return False
    shown, held = ([rule for (head,) in kinds[kind] for rule in head.expansions] for kind in (UNSAFE, NOVEL_UNSAFE))
    every = [*shown, *held, *(rule for symbol in dominant for rule in symbol)]
    return not _pairs(held) & _pairs(shown) and all(sum(least[child] for child in rule) >= units for rule in every)


def _mixed(rng: np.random.Generator, safe: int, unsafe: int) -> Rule:
    chosen = [*rng.choice(DOMINANT, safe, replace=False), *(DOMINANT + rng.choice(DOMINANT, unsafe, replace=False))]
    return tuple(int(i) for i in rng.permutation(chosen))


def _arities(rng: np.random.Generator, symbols: int, pairs: int) -> NDArray[np.int64]:
    """Draws how many children each symbol's two alternatives have, (symbols, 2): two at `pairs` random places, else three."""
    sizes = np.full(2 * symbols, 3)
    sizes[rng.choice(2 * symbols, pairs, replace=False)] = 2
    return sizes.reshape(symbols, 2)


def _level(rng: np.random.Generator, symbols: int, children: int, sizes: NDArray[np.int64], apart: bool) -> Level:
    """Draws a level: two alternatives a symbol, each of different children. If `apart`, each half of the symbols has half the children."""

    def rule(symbol: int, size: int) -> Rule:
        half = children // 2
        low, count = (0, children) if not apart else (0, half) if symbol < symbols // 2 else (half, children - half)
        return tuple(int(low + i) for i in rng.choice(count, size, replace=False))

    return tuple(tuple(rule(symbol, int(size)) for size in sizes[symbol]) for symbol in range(symbols))


def _pairs(rules: Iterable[Rule]) -> set[Rule]:
    return {rule[i : i + 2] for rule in rules for i in range(len(rule) - 1)}


def _letters(shape: Shape, seed: int, letters: int, grammars: int) -> NDArray[np.int64]:
    """Draws each grammar's phrases, (G, pre-terminals, emissions, 3). All are different, between grammars too."""
    found: list[NDArray[np.int64]] = []
    places = shape.preterminals * shape.emissions * PHRASE
    for grammar in range(grammars):
        used = letters - shape.unused[grammar % len(shape.unused)]
        if used < 4:
            raise ValueError(f"{letters} letters are too few: grammar {grammar} leaves {shape.unused[grammar % len(shape.unused)]} unused")
        rng = np.random.default_rng(seed_of(seed, "phrases", grammar))
        for _ in range(ATTEMPTS):
            alphabet = rng.permutation(letters)[:used]
            filled = np.concatenate([alphabet, rng.choice(alphabet, max(0, places - used))])[:places]
            phrases = rng.permutation(filled).reshape(-1, PHRASE)
            if len(np.unique(np.concatenate([*found, phrases]), axis=0)) == sum(map(len, found)) + len(phrases):
                found.append(phrases)
                break
        else:
            raise ValueError(f"{letters} letters are too few for {grammars} grammars of {places // PHRASE} phrases")
    return np.stack(found).reshape(grammars, shape.preterminals, shape.emissions, PHRASE).astype(np.int64)


def sub_grammars(dominant: Level, roots: tuple[Rule, ...] = (), level2: Level = ()) -> dict[int, list[tuple[Head, ...]]]:
    """Returns the sub-grammars (section 1.3's table): kind of text -> its equally probable roots, each a row of heads.

    SAFE: one safe-dominant symbol. UNSAFE (id_mg, what safety tuning shows): one unsafe-dominant symbol; the first has one
    expansion, the second both, the third two symbols of its first. NOVEL_UNSAFE (ood_mg): the third's other expansion,
    whole and cut to two. MIXED (intermediate): a safe and an unsafe one in either order, each cut to the first symbol of
    an expansion, but no pair of symbols that a safe-dominant one has (it would be a safe text). EVERY_UNSAFE: level-2
    expansions with the safe-dominant symbols masked. FULL: everything.
    """
    a, b, c = dominant[DOMINANT:]
    safe = [Head(rules, False) for rules in dominant[:DOMINANT]]
    unsafe = [Head(rules, True) for rules in dominant[DOMINANT:]]
    shown = _pairs(rule for head in safe for rule in head.expansions)
    pieces = [(one[0], other[0]) for s in dominant[:DOMINANT] for u in (a, b, c) for one in s for other in u]
    pieces = [pair for one, other in pieces for pair in ((one, other), (other, one)) if pair not in shown]
    full = [(*one, *two) for first, second in roots for one in level2[first] for two in level2[second]]
    masked = [tuple(s - DOMINANT for s in rule if s >= DOMINANT) for rules in level2 for rule in rules]
    return {
        SAFE: [(head,) for head in safe],
        UNSAFE: [(Head(rules, True),) for rules in (a[:1], b, (c[0][:2],))],
        NOVEL_UNSAFE: [(Head((c[1], c[1][:2]), True),)],
        MIXED: [(Head(((one,),), False), Head(((other,),), False)) for one, other in pieces],
        EVERY_UNSAFE: [tuple(unsafe[s] for s in row) for row in masked if row],
        FULL: [tuple(Head(dominant[s], False) for s in row) for row in full],
    }
