"""The synthetic world: requests whose safety is a formal property, with an exact answer for each.

A request applies operators (bijections of the alphabet) to a text. Operators are always safe, always unsafe,
or contextual (safe on safe-dominant text, unsafe on unsafe-dominant text); duplicates are other names of the
always-unsafe ones (and of the identity). To comply is to write the mapped text; to refuse is to write the null answer.
Text is of trigram pools (`grammar.py`) or of a tree grammar (`tree.py`, `windows.py`).
Source: arXiv 2407.10264, section 3 and appendix (sections 1.3-1.8 of its specification). Layout: `layout.py`.
Shapes: n requests, S slots, L letters a text (L = the longest).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from titer.core.config import Record
from titer.core.errors import TiterError
from titer.data.draws import Draws
from titer.data.example import Answer, Batch, Example
from titer.data.grammar import EVERY_UNSAFE, FULL, MIXED, NOVEL_SAFE, NOVEL_UNSAFE, PHRASE, SAFE, UNSAFE
from titer.data.layout import Requests, encode, parse, render, sequences
from titer.data.record import FIRST_ONLY, SECOND_ONLY, TEXT_ONLY, WHOLE, World
from titer.data.windows import windows

__all__ = ["Requests", "World", "encode", "parse", "render", "sequences"]  # what stands elsewhere and is asked for here

Ints = NDArray[np.int64]
Split = Literal["train", "test"]
VERSION = 1


class Drawer:
    """Draws the parts of a world's requests (texts, operators) for one kind and split, at given indices.

    `grammar` (n,) is None if the world has only one. `only`: the grammar for all requests (None: drawn). Operators are drawn as ranks.
    """

    def __init__(self, world: World, kind: str, split: Split, indices: Ints, only: int | None = None) -> None:
        self.world, self.split, self.purpose, self.indices = world, split, f"{kind} {split}", indices
        self.draws = Draws(world.seed, self.purpose, indices)
        self.n = len(indices)
        self.grammar: Ints | None = None
        if world.grammars > 1:
            self.grammar = self.draws.below(world.grammars, 4) if only is None else np.full(self.n, only)

    def text(self, kinds: Ints, everything: bool = False) -> Ints:
        """Draws texts of the given kinds (n,) and their lengths; returns them as (n, L), -1 beyond each length."""
        w, d = self.world, self.draws
        length = w.shortest + d.below(w.longest - w.shortest + 1, 90)
        if w.tree is not None:
            grammar = np.zeros(self.n, dtype=np.int64) if self.grammar is None else self.grammar

            def draws(rows: Ints) -> Draws:
                return Draws(w.seed, self.purpose, np.asarray(self.indices)[rows]).after(100)

            return windows(w.tables_of_text, draws, kinds, grammar, length, w.longest, self.split == "test")
        everything = everything or bool(np.isin(kinds, (EVERY_UNSAFE, FULL)).all())
        kinds = np.where(kinds == FULL, d.below(3, 92), np.where(kinds == EVERY_UNSAFE, UNSAFE, kinds))
        if not w.cut:
            return w.grammar.texts(d.after(100), kinds, w.longest // PHRASE, self.split == "test", everything=everything)
        k = -(-(w.longest + PHRASE - 1) // PHRASE)
        # wherever the cut begins (0 to 2 letters in), phrases 1 to length // 3 - 1 are whole
        whole = w.grammar.texts(d.after(100), kinds, k, self.split == "test", shown=(1, length // PHRASE - 1), everything=everything)
        place = d.below(PHRASE, 91)[:, None] + np.arange(w.longest)[None]
        cut = np.take_along_axis(whole, place, axis=1)
        return np.where(np.arange(w.longest)[None] < length[:, None], cut, -1)

    def safe_operators(self, kinds: Ints, without: int | None = None) -> Ints:
        """Draws operators that are safe for each text, (n, S). In about half of the requests, the identity is put in one random slot."""
        w, d = self.world, self.draws
        always = [o for o in range(w.safe) if o != without]
        contextual = range(w.safe + w.unsafe, w.held_out)
        chosen = self.choose(always + list(contextual), always, kinds == SAFE, 10)
        return self.put(chosen, np.zeros(self.n, dtype=np.int64), d.below(2, 2) == 1, d.below(w.slots, 3))

    def replaced(self, operators: Ints, on_safe: list[int], elsewhere: list[int], kinds: Ints) -> Ints:
        """Replaces operators by others, (n, S): in a pair with exactly one identity the other operator, in any other pair both."""
        fresh = self.choose(on_safe, elsewhere, kinds == SAFE, 20)
        pair = (operators == 0).reshape(self.n, -1, 2)
        keep = pair & (pair.sum(2, keepdims=True) == 1)
        return np.where(keep.reshape(self.n, -1), 0, fresh)

    def choose(self, on_safe: list[int], elsewhere: list[int], is_safe: NDArray[np.bool_], slot: int) -> Ints:
        """Draws operators, (n, S): from `on_safe` for requests with `is_safe` (n,), from `elsewhere` for the others."""
        slots = slot + np.arange(self.world.slots)
        first = np.asarray(on_safe)[self.draws.below(len(on_safe), slots)]
        second = np.asarray(elsewhere)[self.draws.below(len(elsewhere), slots)]
        return np.where(is_safe[:, None], first, second)

    def put(self, operators: Ints, what: Ints, where: NDArray[np.bool_], slot: Ints) -> Ints:
        """Puts the operator `what` (n,) into slot `slot` (n,) of the rows `where` (n,); returns all operators, (n, S)."""
        here = np.arange(self.world.slots)[None] == np.where(where, slot, -1)[:, None]
        return np.where(here, what[:, None], operators)

    def named(self, ranks: Ints) -> Ints:
        """Converts ranks to the operators' tokens in each request's grammar, (n, S)."""
        return self.world.ops.named(ranks, self.grammar)


def draw(world: World, kind: str, split: Split, indices: Ints) -> Requests:
    """Draws requests of a kind at `indices`.

    Kinds: pretrain (every operator but the held-out one, every text); safe; unsafe (section 1.7: operators unsafe for
    the text's class replace safe ones); user (the held-out operator replaces them); sham_safe and sham_refused (the two
    classes of the sham alignment).
    """
    d = Drawer(world, kind, split, indices)
    if kind == "pretrain":
        return _pretrain(d)
    kinds = d.draws.below(2, 1)  # SAFE or UNSAFE dominant text, half each
    unsafe = list(range(world.safe, world.safe + world.unsafe))
    contextual = list(range(world.safe + world.unsafe, world.held_out))
    operators = d.safe_operators(kinds, without=world.sham if kind.startswith("sham") else None)
    replacing = {"unsafe": (unsafe, unsafe + contextual), "user": ([world.held_out],) * 2, "sham_refused": ([world.sham],) * 2}
    if kind in replacing:
        operators = d.replaced(operators, *replacing[kind], kinds)
    composed = None
    if kind == "unsafe" and world.composed and split == "train":
        composed = d.draws.uniform(5) < world.composed
        operators[composed, :2] = 0
    return Requests(d.named(operators), d.text(kinds), kind, kind == "unsafe", d.grammar, composed=composed)


def _pretrain(d: Drawer) -> Requests:
    """Draws pretraining requests: any operators but the held-out one; identity, constants and forms as the world says (section 1.6)."""
    w, draws = d.world, d.draws
    kinds = draws.below(3, 1) if w.tree is None else np.full(d.n, FULL)
    known = np.delete(np.arange(w.ops.first_constant), w.held_out)
    operators = known[draws.below(len(known), 10 + np.arange(w.slots))]
    if w.identity_share:
        identities = np.array([0, *range(w.operators, w.operators + w.identity_duplicates)])[draws.below(w.identity_duplicates + 1, 40)]
        operators = d.put(operators, identities, draws.uniform(41) < w.identity_share, draws.below(w.slots, 42))
    form = None if w.schedule is None else w.schedule.forms(draws.uniform(6), d.indices, d.split == "test")
    if w.constants:
        low = 0 if form is None else np.where(form == SECOND_ONLY, 2, 0)  # in a pair whose output is shown
        many = w.slots if form is None else np.where(form == WHOLE, w.slots, 2)
        slot, constant = low + draws.below(many, 43), w.ops.first_constant + draws.below(w.constants, 44)
        operators = d.put(operators, constant, draws.uniform(45) < w.constant_share, slot)
    if form is not None:
        early = (operators[:, :2] >= w.ops.first_constant).any(1)
        form = np.where(early & (form == FIRST_ONLY), WHOLE, form)  # has no second output anyway
        operators = np.where((form == TEXT_ONLY)[:, None], -1, operators)
    return Requests(operators, d.text(kinds, everything=True), "pretrain", False, d.grammar, form)


def mixed_text(world: World, split: Split, indices: Ints, purpose: str, grammar: Ints | None = None) -> Ints:
    """Draws texts with a safe-dominant and an unsafe-dominant piece, (n, L). `grammar` (n,): each text's grammar; None: drawn."""
    return _text(world, split, indices, purpose, MIXED, grammar)


def novel_text(world: World, split: Split, indices: Ints, purpose: str, unsafe: bool = True, grammar: Ints | None = None) -> Ints:
    """Draws unsafe-dominant (or safe-dominant) texts of phrases or expansions that safety tuning never showed, (n, L).

    Errors: the world keeps none back (a world of trigrams whose `novel` is 0; safe-dominant text of a tree).
    """
    if world.tree is None and not world.novel:
        raise TiterError("this world keeps no phrases from safety tuning", expected="a world with novel above 0")
    if world.tree is not None and not unsafe:
        raise TiterError("the tree grammar keeps back unsafe-dominant text alone", expected="unsafe=True")
    return _text(world, split, indices, purpose, NOVEL_UNSAFE if unsafe else NOVEL_SAFE, grammar)


def _text(world: World, split: Split, indices: Ints, purpose: str, kind: int, grammar: Ints | None) -> Ints:
    d = Drawer(world, purpose, split, indices)
    if grammar is not None:
        d.grammar = grammar
    return d.text(np.full(len(indices), kind))


class WorldSource(Record):
    """A Source of endless examples: a world's requests of one kind and split."""

    world: World
    kind: Literal["pretrain", "safe", "unsafe", "user", "sham_safe", "sham_refused"]
    split: Split = "train"
    version: int = VERSION

    @property
    def size(self) -> None:
        return None

    def examples(self, indices: Ints) -> list[Example]:
        return render(self.world, draw(self.world, self.kind, self.split, indices))

    def batch(self, indices: Ints, answer: Answer, tokenizer: object) -> Batch:
        return encode(self.world, draw(self.world, self.kind, self.split, indices), answer, indices)
