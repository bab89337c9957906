"""Samples texts of the tree grammar, vectorised: each text is a window of a string, drawn with tables of the grammar's expansions.

A text is a window of L letters, at a uniform offset, of a string of its kind's sub-grammar. Strings are never
written out: one draw per head chooses its row of units, the offset says which units the window shows, and one draw per
unit chooses its letters. Each piece of a mixed text fills at least a third of its window.
A text belongs to the held-out split if a hash of its letters is 0 modulo 5 (texts of the other split are drawn again),
so no text is in both. Source: arXiv 2407.10264, appendix (section 1.3 of its specification).
Shapes: n texts, L letters at most, K kinds, C roots a kind, M heads a root, H heads, R rows a head or unit, W units a
head, U units a window, G grammars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import lcm

import numpy as np
from numpy.typing import NDArray

from titer.data.draws import GOLDEN, Draws, scramble
from titer.data.grammar import FOLDS, MIXED, PHRASE
from titer.data.tree import SHORT, Head, Level, Rule, Rules, Shape, draw_rules, sub_grammars

Ints = NDArray[np.int64]
UNITS_FROM = 32  # slot of the first unit's draw; 0 the root, 1.. the heads, 16 the offset
ROUND = 64  # slots of one attempt at a text of the right split
ROUNDS = 2000


@dataclass(frozen=True)
class Tables:
    """A tree's expansions as arrays. Each row occurs as often as it is probable, so that a uniform draw of a row is right."""

    roots: Ints  # (K, C, M) heads, the last one empty
    choices: Ints  # (K,) roots of a kind, 0 where the tree has no such kind
    short: Ints  # (K,) 1 where units are cut short
    units: Ints  # (H, R, W) unit symbols of a head
    sizes: Ints  # (H, R) units in a row
    letters: Ints  # (G * 2 * symbols * R', 9) letters of a unit, short ones padded
    symbols: int
    rows: int  # R'

    def lengths(self, kind: int) -> tuple[int, int, float]:
        """Returns the exact shortest, longest and mean length of a kind's strings, in letters."""
        width = PHRASE * (SHORT if self.short[kind] else 3)
        heads = self.roots[kind, : self.choices[kind]]
        least, most, mean = (f(self.sizes, axis=1)[heads].sum(1) for f in (np.min, np.max, np.mean))
        return int(least.min()) * width, int(most.max()) * width, float(mean.mean()) * width


@lru_cache(maxsize=16)
def tables(shape: Shape, seed: int, letters: int, grammars: int) -> Tables:
    """Draws the tree grammar of (shape, seed) and returns its tables."""
    rules = draw_rules(shape, seed, letters, grammars)
    kinds = sub_grammars(rules.dominant, rules.roots, rules.level2)
    heads = list(dict.fromkeys(head for roots in kinds.values() for root in roots for head in root))
    spread = [_spread(head, rules.inner[:-1]) for head in heads]
    rows = lcm(*(len(one) for one in spread))
    units = np.full((len(heads) + 1, rows, max(len(row) for one in spread for row in one)), -1, dtype=np.int64)
    for h, one in enumerate(spread):
        for r in range(rows):
            row = one[r * len(one) // rows]
            units[h, r, : len(row)] = row
    total = max(kinds) + 1
    choices = np.array([len(kinds.get(kind, ())) for kind in range(total)], dtype=np.int64)
    widest = max(len(root) for roots in kinds.values() for root in roots)
    roots = np.full((total, choices.max(), widest), len(heads), dtype=np.int64)
    for kind, found in kinds.items():
        for c, root in enumerate(found):
            roots[kind, c, : len(root)] = [heads.index(head) for head in root]
    short = np.array([int(kinds[kind][0][0].short) if kind in kinds else 0 for kind in range(total)], dtype=np.int64)
    symbols = len(rules.inner[-1])
    flat = _unit_letters(rules)
    return Tables(roots, choices, short, units, (units >= 0).sum(2), flat.reshape(-1, 3 * PHRASE), symbols, flat.shape[3])


def _spread(head: Head, between: tuple[Level, ...]) -> list[Rule]:
    """Returns all rows of units that a head can expand to, each as often as it is probable."""
    found: list[tuple[Fraction, Rule]] = [(Fraction(1, len(head.expansions)), rule) for rule in head.expansions]
    for level in between:
        grown: list[tuple[Fraction, Rule]] = []
        for chance, rule in found:
            for parts in product(*(level[symbol] for symbol in rule)):
                share = chance
                for symbol in rule:
                    share /= len(level[symbol])
                grown.append((share, tuple(unit for part in parts for unit in part)))
        found = grown
    rows = lcm(*(chance.denominator for chance, _ in found))
    return [rule for chance, rule in found for _ in range(int(chance * rows))]


def _unit_letters(rules: Rules) -> Ints:
    """Returns the letters of every expansion of each unit, in full and cut to two pre-terminals, (G, 2, symbols, R', 9)."""
    grammars, _, emissions, _ = rules.letters.shape
    level = rules.inner[-1]
    found = np.zeros((grammars, 2, len(level), 2 * emissions**3, 3 * PHRASE), dtype=np.int64)
    for symbol, alternatives in enumerate(level):
        for row, (rule, emitted) in enumerate(product(alternatives, product(range(emissions), repeat=3))):
            found[:, 0, symbol, row] = rules.letters[:, np.array(rule), np.array(emitted)].reshape(grammars, -1)
    found[:, 1] = np.where(np.arange(3 * PHRASE) < SHORT * PHRASE, found[:, 0], 0)
    return found


def windows(t: Tables, draws: Callable[[Ints], Draws], kinds: Ints, grammar: Ints, length: Ints, longest: int, held_out: bool) -> Ints:
    """Draws texts (n, longest), -1 beyond their `length` (n,), all in the held-out split or all outside it.

    `draws`: returns the random numbers of the examples at given places. A text of the other split is drawn again.
    """
    text, rest = np.empty((len(kinds), longest), dtype=np.int64), np.arange(len(kinds))
    for attempt in range(ROUNDS):
        if not rest.size:
            return text
        found = _window(t, draws(rest).after(ROUND * attempt), kinds[rest], grammar[rest], length[rest], longest)
        fine = (fold(found) == 0) == held_out
        text[rest[fine]] = found[fine]
        rest = rest[~fine]
    raise ValueError("a kind of text that is nearly all of one split")


def _window(t: Tables, d: Draws, kinds: Ints, grammar: Ints, length: Ints, longest: int) -> Ints:
    n, place = len(kinds), np.arange(longest)[None]
    heads = t.roots[kinds, d.below(t.choices[kinds], 0)]
    filled = int((heads < len(t.units) - 1).sum(1).max())
    heads = heads[:, :filled]
    row = d.below(t.units.shape[1], 1 + np.arange(filled))
    sizes = t.sizes[heads, row]
    short = t.short[kinds]
    width = PHRASE * np.where(short == 1, SHORT, 3)
    offset = _offset(d, kinds, sizes * width[:, None], length)
    first, phase = np.divmod(offset, width)
    count = -(-(longest + int(width.max()) - 1) // int(width.min()))
    symbol = _units(t, heads, row, sizes, first[:, None] + np.arange(count)[None])
    block = (grammar * 2 + short)[:, None] * t.symbols + symbol
    block = block * t.rows + d.below(t.rows, UNITS_FROM + np.arange(count))
    unit, within = np.divmod(np.arange(longest + 3 * PHRASE)[None], PHRASE * np.array([[3], [SHORT]]))  # (2, ..)
    moved = place + phase[:, None]
    which, inside = unit[short[:, None], moved], within[short[:, None], moved]
    found = t.letters.reshape(-1)[np.take_along_axis(block, which, axis=1) * (3 * PHRASE) + inside]
    return np.where(place < length[:, None], found, -1).reshape(n, longest)


def _offset(d: Draws, kinds: Ints, letters: Ints, length: Ints) -> Ints:
    """Draws where each window begins, (n,). `letters` (n, M): the heads' lengths. Each piece of a mixed text fills a third or more."""
    low, high, border = np.zeros_like(length), letters.sum(1) - length, letters[:, 0]
    mixed, part = kinds == MIXED, np.maximum(PHRASE, length // 3)
    low = np.where(mixed, np.maximum(low, border + part - length), low)
    high = np.where(mixed, np.minimum(high, border - part), high)
    return low + d.below(high - low + 1, 16)


def _units(t: Tables, heads: Ints, row: Ints, sizes: Ints, number: Ints) -> Ints:
    """Looks up the symbols of units `number` (n, U) of each string. Beyond a string's end they are arbitrary, and never shown."""
    base = (heads * t.units.shape[1] + row) * t.units.shape[2]
    start = base[:, :1] + number
    ends = sizes.cumsum(1)
    for m in range(1, heads.shape[1]):
        begun = ends[:, m - 1, None]
        start = np.where(number >= begun, base[:, m, None] + number - begun, start)
    return np.asarray(np.maximum(t.units.reshape(-1)[np.minimum(start, t.units.size - 1)], 0))


def fold(text: Ints) -> Ints:
    """Hashes each text's letters to its fold, 0 to 4, (n,)."""
    weights = scramble(np.arange(1, text.shape[1] + 1).astype(np.uint64) * GOLDEN).view(np.int64)
    mixed = scramble(((text + 1) @ weights).view(np.uint64))
    return ((mixed >> np.uint64(32)) % np.uint64(FOLDS)).astype(np.int64)
