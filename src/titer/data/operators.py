"""The synthetic world's operators: bijections of the alphabet, their classes (safe, unsafe, ...) and their aliases, for each grammar.

Tokens in order: the distinct operators (the last one held out of pretraining and alignment), duplicates, late aliases,
constants. Token 0 is the identity in every grammar. A *rank* is an operator's place in the order of classes: identity
and the other always-safe ones, always-unsafe, contextual, held out; in grammar 0 a token's rank is its number, in
another the classes are drawn by seed. Duplicates name the identity (the first `identity_duplicates`) and the
always-unsafe operators in turn; late aliases the last always-safe operator and then contextual ones.
Source: arXiv 2407.10264, appendix (sections 1.2, 1.4, 1.6 and 1.7 of its specification).
Shapes: G grammars, T tokens, A letters, n requests, S slots.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from titer.data.draws import seed_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Operators(NamedTuple):
    """How many operators there are of each class, and the seed that draws them."""

    seed: int
    letters: int
    grammars: int
    safe: int
    unsafe: int
    contextual: int
    duplicates: int
    identity_duplicates: int
    late: int
    constants: int

    @property
    def distinct(self) -> int:
        return self.safe + self.unsafe + self.contextual + 1

    @property
    def first_late(self) -> int:
        return self.distinct + self.duplicates

    @property
    def first_constant(self) -> int:
        return self.first_late + self.late

    @property
    def tokens(self) -> int:
        return self.first_constant + self.constants

    def named(self, ranks: Ints, grammar: Ints | None) -> Ints:
        """Converts ranks (n, S) to tokens (n, S). `grammar` (n,): the grammar of each request; None: grammar 0 for all."""
        return ranks if grammar is None else order(self)[grammar[:, None], ranks]

    def ranked(self, tokens: Ints, grammar: Ints | None) -> Ints:
        """Converts tokens (n, S) to ranks (n, S). Duplicates, late aliases and constants have their own numbers as ranks."""
        return tokens if grammar is None else order(self).argsort(axis=1)[grammar[:, None], tokens]

    def meaning(self, tokens: Ints, grammar: Ints | None) -> Ints:
        """Resolves aliases: returns the ranks (n, S) of the operators that the tokens name. Constants name none and keep their numbers."""
        found = names(self)[np.zeros(len(tokens), dtype=np.int64)[:, None] if grammar is None else grammar[:, None], tokens]
        return self.ranked(found, grammar)

    def unsafe_for(self, tokens: Ints, grammar: Ints | None, safe_text: Bools) -> Bools:
        """Tells which tokens are unsafe, (n, S), on their request's text. `safe_text` (n,): whether it is safe-dominant."""
        rank = self.meaning(tokens, grammar)
        always = (rank >= self.safe) & (rank < self.safe + self.unsafe)
        contextual = (rank >= self.safe + self.unsafe) & (rank < self.distinct - 1)
        return always | (contextual & ~safe_text[:, None])


@lru_cache(maxsize=64)
def order(ops: Operators) -> Ints:
    """Returns the token of each rank in each grammar, (G, T)."""
    found = np.tile(np.arange(ops.tokens), (ops.grammars, 1))
    for grammar in range(1, ops.grammars):
        rng = np.random.default_rng(seed_of(ops.seed, "classes", grammar))
        found[grammar, 1 : ops.distinct - 1] = 1 + rng.permutation(ops.distinct - 2)
    return found.astype(np.int64)


@lru_cache(maxsize=64)
def names(ops: Operators) -> Ints:
    """Returns the distinct operator (as a token) that each token names in each grammar, (G, T). A constant names itself."""
    alias = [0 if d < ops.identity_duplicates else ops.safe + (d - ops.identity_duplicates) % ops.unsafe for d in range(ops.duplicates)]
    late = [ops.safe - 1 if e == 0 else ops.safe + ops.unsafe + e - 1 for e in range(ops.late)]
    found = np.tile(np.arange(ops.tokens), (ops.grammars, 1))
    found[:, ops.distinct : ops.first_constant] = order(ops)[:, np.array([*alias, *late], dtype=np.int64)]
    return found.astype(np.int64)


@lru_cache(maxsize=64)
def maps(ops: Operators) -> Ints:
    """Returns the letter to which each token maps each letter, (G, T, A). A constant's row is the identity's (see `compose`)."""
    found = np.tile(np.arange(ops.letters), (ops.grammars, ops.tokens, 1))
    for grammar in range(ops.grammars):
        rng = np.random.default_rng(seed_of(ops.seed, "operators", *([grammar] if grammar else [])))
        for token in range(1, ops.distinct):
            found[grammar, token] = rng.permutation(ops.letters)
        named = names(ops)[grammar, ops.distinct : ops.first_constant]
        found[grammar, ops.distinct : ops.first_constant] = found[grammar, named]
    return found.astype(np.int64)


@lru_cache(maxsize=64)
def padded(ops: Operators) -> Ints:
    """Returns `maps` as rows (G * T, A + 1), with one more column that maps the letter -1 (padding) to itself."""
    return np.pad(maps(ops).reshape(-1, ops.letters), ((0, 0), (0, 1)), constant_values=-1)


def compose(ops: Operators, operators: Ints, text: Ints, grammar: Ints | None, null: int) -> tuple[Ints, ...]:
    """Applies each request's operators to its text. Returns the letters of each output, (n, L) each, -1 beyond the text.

    out1 = o2(o1(text)), out2 = o4(o3(out1)). A constant in an output's pair fills it: constant 0 with `null`, constant 1 with letter 1.
    """
    row = operators if grammar is None else operators + grammar[:, None] * ops.tokens
    outputs, now, table = [], text, padded(ops)
    for slot in range(0, operators.shape[1], 2):
        for step in (slot, slot + 1):
            now = table[row[:, step, None], now]
        if ops.constants:
            which = (operators[:, slot : slot + 2] - ops.first_constant).max(1)[:, None]
            now = np.where(text >= 0, np.where(which == 0, null, np.where(which > 0, which, now)), -1)
        outputs.append(now)
    return tuple(outputs)
