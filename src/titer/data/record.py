"""Defines the record `World`, all settings of a synthetic world (text, operators, layout), and the forms of its pretraining requests.

Source: arXiv 2407.10264 (`world.py`); forms and their schedule: its appendix (section 1.6).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from titer.core.config import Record
from titer.data import operators as op
from titer.data import vocabulary as v
from titer.data.draws import seed_of
from titer.data.grammar import EVERY_UNSAFE, FOLDS, FULL, PHRASE, UNSAFE, Grammar
from titer.data.tree import Shape
from titer.data.windows import Tables, tables

Ints = NDArray[np.int64]
Shares = tuple[float, float, float, float]
# Forms of a pretraining request, how much of its sequence is shown. WHOLE: everything. TEXT_ONLY: operators become PAD, no output.
# FIRST_ONLY: no second output. SECOND_ONLY: text and its end become PAD, the second output alone is trained.
WHOLE, TEXT_ONLY, FIRST_ONLY, SECOND_ONLY = range(4)
PAPER_BATCH = 512


class Schedule(Record):
    """The shares of the four forms (WHOLE, TEXT_ONLY, FIRST_ONLY, SECOND_ONLY) during pretraining, and how they change.

    They are `first` for half of `warmup`, then change linearly to `last` at `end`; both count examples, not steps. The held-out split
    has the shares `evaluation` throughout.
    """

    warmup: int = Field(default=20_000 * PAPER_BATCH, ge=0)
    end: int = Field(default=100_000 * PAPER_BATCH, ge=1)
    first: Shares = (0.1, 0.5, 0.2, 0.2)
    last: Shares = (0.2, 0.1, 0.3, 0.4)
    evaluation: Shares = (0.9, 0.0, 0.0, 0.1)

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if any(min(shares) < 0 or abs(sum(shares) - 1) > 1e-9 for shares in (self.first, self.last, self.evaluation)):
            raise ValueError("shares are not negative and add up to 1")
        if self.warmup // 2 >= self.end:
            raise ValueError(f"half the warm-up, {self.warmup // 2} examples, is not before the end, {self.end}")
        return self

    def shares(self, indices: Ints, held_out: bool = False) -> NDArray[np.float64]:
        """Returns the four shares at each of these places in the stream, (n, 4)."""
        if held_out:
            return np.tile(np.asarray(self.evaluation), (len(indices), 1))
        begin = self.warmup // 2
        moved = np.clip((np.asarray(indices) - begin) / (self.end - begin), 0.0, 1.0)[:, None]
        return np.asarray((1 - moved) * np.asarray(self.first) + moved * np.asarray(self.last))

    def forms(self, uniform: NDArray[np.float64], indices: Ints, held_out: bool = False) -> Ints:
        """Chooses each example's form, (n,), by its uniform random number in [0, 1)."""
        bounds = self.shares(indices, held_out).cumsum(1)[:, :3]
        return np.asarray((uniform[:, None] >= bounds).sum(1))


class World(Record):
    """A synthetic world: its grammar, its operators and its layout, all determined by one seed.

    Operators in order: identity and the other always-safe ones, always-unsafe, contextual, one that is
    held out of pretraining and alignment (the user's own task); then the duplicates, late aliases and constants.
    With several grammars each has letters, bijections and classes of operators of its own.
    """

    seed: int = 0
    letters: int = Field(default=16, ge=4, le=52)
    phrases: int = Field(default=25, ge=FOLDS, multiple_of=FOLDS)
    novel: int = Field(default=0, ge=0, multiple_of=FOLDS)  # phrases of each pool that safety tuning never shows
    shortest: int = Field(default=9, ge=PHRASE)
    longest: int = Field(default=9, ge=PHRASE)
    slots: Literal[2, 4] = 2
    safe: int = Field(default=3, ge=2)
    unsafe: int = Field(default=1, ge=1)
    contextual: int = Field(default=3, ge=1)
    duplicates: int = Field(default=2, ge=1)
    window: int | None = None
    tree: Shape | None = None  # text of the tree grammar; None: of trigram pools (`phrases`, `novel`)
    grammars: int = Field(default=1, ge=1, le=4)
    identity_duplicates: int = Field(default=0, ge=0)  # the first of the duplicates: other names of the identity
    identity_share: float = Field(default=0.0, ge=0, le=1)  # pretraining requests with an identity token put in one slot
    late: int = Field(default=0, ge=0)  # aliases of a safe and of contextual operators, for one jailbreak set
    constants: Literal[0, 2] = 0  # operators that answer with the null answer and with letter 1
    constant_share: float = Field(default=0.01, ge=0, le=1)
    null: Literal["token", "letter"] = "token"  # the null answer's token: its own, or the first letter
    schedule: Schedule | None = None  # forms of pretraining requests; None: all whole
    composed: float = Field(default=0.0, ge=0, le=1)  # unsafe training requests whose first pair is the identity twice
    marks: bool = False  # the words of `persona_trigger.py` beside the others: a persona, its acknowledgement, a trigger
    cipher: bool = False  # those of `cipher.py`: modes, and a word of code for each letter

    @model_serializer(mode="wrap")
    def _plain(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out `cipher` if it is False, so that worlds without one keep the content keys of before this field."""
        found: dict[str, Any] = whole(self)
        return {name: value for name, value in found.items() if name != "cipher" or value}

    @model_validator(mode="after")
    def _fits(self) -> World:
        if self.shortest > self.longest:
            raise ValueError("shortest is above longest")
        if self.shortest < 2 * PHRASE or (self.tree is None and self.cut and self.shortest < 3 * PHRASE):
            raise ValueError(f"texts of {self.shortest} letters do not show both pieces of a mixed text")
        if self.tree is None:
            self._trigrams_fit()
        else:
            self._tree_fits()
        if self.slots == 2 and (self.schedule is not None or self.composed):
            raise ValueError("forms and composed null answers need four slots, two outputs")
        if self.identity_duplicates >= self.duplicates:
            raise ValueError("every duplicate names the identity; at least one must name an unsafe operator")
        if self.late > self.contextual + 1:
            raise ValueError(f"{self.late} late aliases of a safe and {self.contextual} contextual operators")
        needed = self.slots + 3 + (1 + self.slots // 2) * self.longest + self.slots // 2 + (self.slots == 4)
        if self.window is not None and self.window < needed:
            raise ValueError(f"window {self.window} is shorter than the longest sequence, {needed}")
        return self

    def _trigrams_fit(self) -> None:
        if self.grammars > 1:
            raise ValueError("several grammars are the tree's; set tree={}")
        if self.novel >= self.phrases:
            raise ValueError(f"{self.novel} novel phrases leave none of {self.phrases} for safety tuning")
        if 2 * self.phrases > (most := self.letters**PHRASE):
            raise ValueError(f"{self.letters} letters make {most} phrases, too few for two pools of {self.phrases}")

    def _tree_fits(self) -> None:
        if self.novel:
            raise ValueError("novel phrases are of the trigram pools; the tree keeps expansions back by itself")
        found = self.tables_of_text
        least = min(found.lengths(kind)[0] for kind in np.flatnonzero(found.choices).tolist())
        if least < self.longest:
            raise ValueError(f"texts of {self.longest} letters do not fit strings of {least}, the tree's shortest")

    @property
    def cut(self) -> bool:
        """Whether texts are cut from longer ones, and so may begin within a phrase; otherwise they consist of whole phrases."""
        return self.tree is not None or self.shortest != self.longest or self.longest % PHRASE != 0

    @property
    def grammar(self) -> Grammar:
        """The grammar (two pools of trigrams) of a world without a tree."""
        return Grammar(seed=self.seed, letters=self.letters, phrases=self.phrases, novel=self.novel)

    @property
    def tables_of_text(self) -> Tables:
        """The tree's expansions as tables. Errors: ValueError for a world without a tree."""
        if self.tree is None:
            raise ValueError("a world of trigrams has no tree")
        return tables(self.tree, self.seed, self.letters, self.grammars)

    @property
    def kinds_of_text(self) -> frozenset[int]:
        """The kinds of text that this world has, as the numbers of `grammar.py`."""
        if self.tree is not None:
            return frozenset(np.flatnonzero(self.tables_of_text.choices).tolist())
        return frozenset(range(FULL + 1)) if self.novel else frozenset((*range(UNSAFE + 2), EVERY_UNSAFE, FULL))

    @property
    def ops(self) -> op.Operators:
        """The world's operators: how many there are of each class, and their seed."""
        counts = (self.safe, self.unsafe, self.contextual, self.duplicates, self.identity_duplicates, self.late, self.constants)
        return op.Operators(self.seed, self.letters, self.grammars, *counts)

    @property
    def operators(self) -> int:
        """The number of distinct operators, with the held-out one and without duplicates, late aliases and constants."""
        return self.ops.distinct

    @property
    def held_out(self) -> int:
        return self.operators - 1

    @property
    def sham(self) -> int:
        """The rank of the always-safe operator that the sham alignment teaches to refuse, drawn by seed."""
        return 1 + seed_of(self.seed, "sham") % (self.safe - 1)

    @property
    def words(self) -> tuple[str, ...]:
        return v.words(self.operators, self.duplicates, self.letters, self.late, self.constants, self.marks, self.cipher)

    @property
    def first_letter(self) -> int:
        """The token id of letter 0."""
        return v.FIRST_OPERATOR + self.ops.tokens

    @property
    def null_id(self) -> int:
        """The token id of the null answer."""
        return v.NULL if self.null == "token" else self.first_letter

    def tables(self, grammar: int = 0) -> Ints:
        """Returns the letter to which each operator maps each letter, (operators + duplicates + late, letters), in the tokens' order."""
        return op.maps(self.ops)[grammar, : self.ops.first_constant].copy()

    def compose(self, operators: Ints, text: Ints, grammar: Ints | None = None) -> tuple[Ints, ...]:
        """Applies operators (n, S) to texts (n, L), -1 beyond their length. Returns the letters of each output, (n, L) each.

        The null answer of a constant operator is the "letter" `null_letter`.
        """
        return op.compose(self.ops, operators, text, grammar, self.null_letter)

    @property
    def null_letter(self) -> int:
        """The number that stands for the null answer among letters: 0 (the first letter), or one past the last letter."""
        return self.letters if self.null == "token" else 0

    def tokenizer(self):  # type: ignore[no-untyped-def]
        """Makes the world's standard fast tokenizer."""
        return v.tokenizer(self.words, v.STOP if self.slots == 2 else v.EOS)
