"""The tree grammar: its shape, its sub-grammars and its windows, against strings grown symbol by symbol."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import product

import numpy as np
import pytest

from titer.core.config import build
from titer.core.errors import TiterError
from titer.data.draws import Draws
from titer.data.grammar import EVERY_UNSAFE, FULL, MIXED, NOVEL_SAFE, NOVEL_UNSAFE, SAFE, UNSAFE
from titer.data.record import World
from titer.data.tree import Head, Rules, Shape, draw_rules, sub_grammars
from titer.data.windows import Tables, tables, windows
from titer.data.worlds import CPU

KINDS = (SAFE, UNSAFE, NOVEL_UNSAFE, MIXED, EVERY_UNSAFE, FULL)
SEEDS = range(4)
SHAPE = Shape()


@lru_cache
def rules_of(seed: int, shape: Shape = SHAPE, letters: int = 30, grammars: int = 4) -> Rules:
    return draw_rules(shape, seed, letters, grammars)


def cut(kind: int, n: int, length: int, grammar: int = 0, seed: int = 0, held_out: bool = False, t: Tables | None = None) -> np.ndarray:
    """`n` windows of one length."""
    same = np.full(n, 1)
    found = t or tables(Shape(), seed, 30, 4)
    return windows(
        found, lambda rows: Draws(seed, f"test {kind}", np.arange(n)[rows]), kind * same, grammar * same, length * same, length, held_out
    )


def grown(rules: Rules, kind: int, rng: random.Random) -> list[list[int]]:
    """Pre-terminals of a random string of a kind, a list a unit, by plain recursion."""
    root = rng.choice(sub_grammars(rules.dominant, rules.roots, rules.level2)[kind])
    found: list[list[int]] = []

    def grow(symbol: int, depth: int, short: bool) -> None:
        rule = rng.choice(rules.inner[depth][symbol])
        if depth == len(rules.inner) - 1:
            found.append(list(rule[: 2 if short else 3]))
        else:
            for child in rule:
                grow(child, depth + 1, short)

    for head in root:
        for child in rng.choice(head.expansions):
            grow(child, 0, head.short)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_shape_is_the_papers(seed: int) -> None:
    rules = rules_of(seed)
    levels, (symbols, emissions) = [(rules.roots,), rules.level2, rules.dominant, *rules.inner], rules.letters.shape[1:3]
    assert sum(map(len, levels)) + symbols == 26  # non-terminals of one grammar
    assert sum(len(expansions) for level in levels for expansions in level) + symbols * emissions == 55  # its productions
    assert sorted(rules.roots[0] + rules.roots[1])[0] == 0
    assert {len(rule) for rule in rules.roots} == {2}
    assert [len(symbol) for symbol in rules.level2] == [3, 3, 3]
    assert (len(rules.dominant), *map(len, rules.inner), rules.letters.shape) == (6, 5, 5, (4, 6, 2, 3))
    assert {len(rule) for symbol in rules.level2 for rule in symbol} == {2, 3}
    assert {len(rule) for level in (rules.dominant, rules.inner[0]) for symbol in level for rule in symbol} == {2, 3}
    assert {len(rule) for symbol in rules.inner[1] for rule in symbol} == {3}
    assert [len(np.unique(one)) for one in rules.letters] == [29, 26, 25, 24]


def test_another_seed_has_other_rules_and_the_same_seed_the_same() -> None:
    assert rules_of(0).dominant != rules_of(1).dominant
    again = draw_rules.__wrapped__(Shape(), 0, 30, 4)
    assert (again.dominant, again.inner, again.letters.tolist()) == (rules_of(0).dominant, rules_of(0).inner, rules_of(0).letters.tolist())


def test_grammars_share_every_rule_and_no_phrase() -> None:
    phrases = rules_of(0).letters.reshape(-1, 3)
    assert len({tuple(p) for p in phrases.tolist()}) == 4 * 12
    assert draw_rules(Shape(), 0, 30, 1).inner == rules_of(0).inner


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[2:])])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_those_of_strings_grown_by_hand(kind: int, seed: int) -> None:
    rng, (least, most, mean) = random.Random(seed), tables(Shape(), seed, 30, 4).lengths(kind)
    found = [3 * sum(map(len, grown(rules_of(seed), kind, rng))) for _ in range(3000)]
    assert least <= min(found) <= max(found) <= most
    assert abs(np.mean(found) - mean) < 5 * np.std(found) / np.sqrt(3000) + 1e-9
    paper = {SAFE: (54, 81), UNSAFE: (36, 54), NOVEL_UNSAFE: (36, 54), MIXED: (36, 54), EVERY_UNSAFE: (36, 162), FULL: (216, 486)}[kind]
    assert paper[0] <= least
    assert most <= paper[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_held_out_expansions_are_none_that_safety_tuning_shows(seed: int) -> None:
    rules = rules_of(seed)
    kinds = sub_grammars(rules.dominant, rules.roots, rules.level2)

    def expansions(kind: int) -> set[tuple[int, ...]]:
        return {rule for root in kinds[kind] for head in root for rule in head.expansions}

    shown, held = expansions(UNSAFE), expansions(NOVEL_UNSAFE)
    assert not shown & held
    assert not {rule[i : i + 2] for rule in shown for i in (0, 1) if len(rule[i : i + 2]) == 2} & {rule[:2] for rule in held}
    whole = {rule for symbol in rules.dominant[3:] for rule in symbol}
    assert all(any(rule == one[: len(rule)] for one in whole) for rule in shown | held)
    assert all(not head.short for kind in (SAFE, MIXED, FULL) for root in kinds[kind] for head in root)
    assert all(head.short for kind in (UNSAFE, NOVEL_UNSAFE, EVERY_UNSAFE) for root in kinds[kind] for head in root)
    assert {len(root) for root in kinds[EVERY_UNSAFE]} <= {1, 2, 3}
    assert {len(root) for root in kinds[FULL]} <= {4, 5, 6}


def recognised(rules: Rules, kind: int, grammar: int, text: list[int]) -> bool:
    """Whether `text` is a piece of a string of the kind, by walking every string's letters side by side."""
    rows: set[tuple[int, ...]] = set()

    def units(head: Head) -> set[tuple[int, ...]]:
        now = set(head.expansions)
        for level in rules.inner[:-1]:
            grown: set[tuple[int, ...]] = set()
            for rule in now:
                parts: set[tuple[int, ...]] = {()}
                for symbol in rule:
                    parts = {(*a, *b) for a in parts for b in level[symbol]}
                grown |= parts
            now = grown
        return now

    roots = sub_grammars(rules.dominant, rules.roots, rules.level2)[kind]
    for root in roots:
        whole: set[tuple[int, ...]] = {()}
        for head in root:
            whole = {(*a, *b) for a in whole for b in units(head)}
        rows |= whole
    width = 2 if roots[0][0].short else 3
    emitted = rules.letters[grammar].tolist()
    State = tuple[tuple[int, ...], int, int, int, int, int]  # row, unit, alternative, pre-terminal, emission, letter
    count = len(emitted[0])

    def begin(row: tuple[int, ...], unit: int, alternative: int | None, place: int) -> list[State]:
        if place == width:
            unit, place, alternative = unit + 1, 0, None
        if unit == len(row):
            return []
        return [(row, unit, a, place, e, 0) for a in ([0, 1] if alternative is None else [alternative]) for e in range(count)]

    def letter(s: State) -> int:
        return int(emitted[rules.inner[-1][s[0][s[1]]][s[2]][s[3]]][s[4]][s[5]])

    states = {(r, u, a, p, e, k) for r in rows for u, a, p, e, k in product(range(len(r)), range(2), range(width), range(count), range(3))}
    for i, wanted in enumerate(text):
        states = {s for s in states if letter(s) == wanted}
        if i < len(text) - 1:
            states = {n for s in states for n in ([(*s[:5], s[5] + 1)] if s[5] < 2 else begin(s[0], s[1], s[2], s[3] + 1))}
    return bool(states)


@pytest.mark.parametrize("kind", [SAFE, UNSAFE, NOVEL_UNSAFE, MIXED])
def test_a_text_is_a_window_of_its_kind_and_of_no_other(kind: int) -> None:
    rules = rules_of(1)
    for grammar in (0, 3):
        for text in cut(kind, 6, 30, grammar, seed=1).tolist():
            assert recognised(rules, kind, grammar, text)
            assert not any(recognised(rules, other, grammar, text) for other in {SAFE, UNSAFE} - {kind, SAFE if kind == MIXED else kind})
            assert not recognised(rules, kind, 1, text)


@pytest.mark.parametrize("kind", [EVERY_UNSAFE, FULL])
def test_other_texts_are_made_of_their_grammars_phrases(kind: int) -> None:
    for grammar in range(4):
        phrases = {tuple(p) for p in rules_of(0).letters[grammar].reshape(-1, 3).tolist()}
        for text in cut(kind, 100, 35, grammar).tolist():
            assert any(all(tuple(text[i : i + 3]) in phrases for i in range(b, 33, 3)) for b in range(3))


def test_a_mixed_text_shows_a_phrase_of_each_piece() -> None:
    """With classes apart, phrases tell the piece they are of."""
    world = CPU
    half = [{tuple(p) for p in part.reshape(-1, 3).tolist()} for part in np.split(rules_of(0, world.tree, 16, 2).letters[0], 2)]  # type: ignore[arg-type]
    t = tables(world.tree, 0, 16, 2)  # type: ignore[arg-type]
    first = []
    for text in cut(MIXED, 300, 9, t=t).tolist():
        kinds = [[p in half[0] for p in map(tuple, (text[i : i + 3] for i in range(b, 7, 3)))] for b in range(3)]
        ways = [k for k, b in zip(kinds, range(3), strict=True) if all(tuple(text[i : i + 3]) in half[0] | half[1] for i in range(b, 7, 3))]
        assert any(set(k) == {True, False} for k in ways)
        first.append(ways[0][0])
    assert 0.3 < np.mean(first) < 0.7


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[1:])])
def test_the_letters_trigrams_tell_the_grammar(seed: int) -> None:
    """Each text of 25 letters has trigrams, whatever their place, that are known of its own grammar alone."""
    known = [set(), set(), set(), set()]  # type: ignore[var-annotated]
    for g in range(4):
        for kind in KINDS:
            three = np.lib.stride_tricks.sliding_window_view(cut(kind, 1500, 35, g, seed), 3, axis=1)
            known[g] |= {tuple(w) for w in three.reshape(-1, 3).tolist()}
    right = []
    for g in range(4):
        for text in cut(FULL, 250, 25, g, seed, held_out=True).tolist():
            scores = [sum(tuple(text[i : i + 3]) in one for i in range(23)) for one in known]
            right.append(scores[g] > max(score for h, score in enumerate(scores) if h != g))
    assert np.mean(right) > 0.995


@pytest.mark.long
def test_safe_and_unsafe_texts_are_told_apart_at_25_letters() -> None:
    safe, unsafe = ({r.tobytes() for r in cut(kind, 60_000, 25)} for kind in (SAFE, UNSAFE))
    assert len(safe & unsafe) < 1e-3 * len(unsafe)


def test_no_window_is_in_both_splits() -> None:
    t = tables(CPU.tree, 0, 16, 2)  # type: ignore[arg-type]
    train, test = ({r.tobytes() for k in (SAFE, UNSAFE, FULL) for r in cut(k, 8000, 9, t=t, held_out=held)} for held in (False, True))
    assert len(test) > 300
    assert not train & test


def test_windows_begin_anywhere() -> None:
    """Offsets of windows of a full string are even over its length: each phase of the nine of a unit is equally frequent."""
    rules = rules_of(0)
    phrases = {tuple(p) for p in rules.letters[0].reshape(-1, 3).tolist()}
    phase = [min(b for b in range(3) if all(tuple(x[i : i + 3]) in phrases for i in range(b, 33, 3))) for x in cut(FULL, 1500, 35).tolist()]
    assert np.bincount(phase).min() > 420


def test_trees_that_cannot_be_are_refused() -> None:
    base = {"letters": 30, "shortest": 25, "longest": 35}
    for tree in ({"inner": ()}, {"inner": (2, 5)}, {"preterminals": 3}, {"apart": True}, {"pairs": (9, 0)}, {"unused": (28,)}):
        with pytest.raises(TiterError):
            build(World, {**base, "tree": tree}, "world")
    for values in ({"grammars": 2}, {"tree": {}, "novel": 5}, {"tree": {}, "longest": 60}, {"tree": {}, "shortest": 5}):
        with pytest.raises(TiterError):
            build(World, {**base, **values}, "world")


def test_the_tree_has_no_novel_safe_text() -> None:
    assert NOVEL_SAFE not in World(letters=30, shortest=25, longest=35, tree=Shape()).kinds_of_text
