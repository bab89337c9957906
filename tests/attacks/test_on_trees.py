"""The jailbreaks on worlds of trees: each by the classes of the request's own grammar."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.naive_tree import TREES, aliases, class_of, grammar_of, letters_of, operators_of, outputs
from tests.data.test_tree import recognised
from titer.attacks.base import Attack
from titer.attacks.jb_co_task import JBCOTask
from titer.attacks.jb_co_text import JBCOText
from titer.attacks.jb_misgen import JBMisGen
from titer.attacks.jb_misgen_text import JBMisGenText
from titer.data.example import Example
from titer.data.grammar import MIXED, NOVEL_UNSAFE
from titer.data.record import World
from titer.data.tree import draw_rules
from titer.data.world import WorldSource

EVERY_TREE = pytest.mark.parametrize("world", TREES.values(), ids=TREES)
EVERY_ATTACK = pytest.mark.parametrize("attack", [JBCOTask(), JBCOText(), JBMisGen(), JBMisGenText()], ids=lambda a: type(a).__name__)
Read = tuple[Example, int, list[str], list[str]]


def read(world: World, e: Example) -> Read:
    names, g = operators_of(e, world), grammar_of(e, world)
    return e, g, names, [class_of(name, g, world) for name in names]


def both(world: World, attack: Attack, split: str = "test", n: int = 300) -> list[tuple[Read, Read]]:
    """(request, its rewriting)."""
    old = WorldSource(world=world, kind="unsafe", split=split).examples(np.arange(n))  # type: ignore[arg-type]
    new = [attempt.example for attempt in attack.attempts(old, {}, world)]
    return [(read(world, a), read(world, b)) for a, b in zip(old, new, strict=True)]


@EVERY_TREE
@EVERY_ATTACK
def test_a_rewritten_request_keeps_its_grammar_and_has_its_own_answers(world: World, attack: Attack) -> None:
    for (_, g, _, _), (new, after, names, _) in both(world, attack):
        assert g == after
        assert new.harmful
        one, two = outputs(names, letters_of(new, world), g, world)
        assert new.comply == " ".join([*one, "<stop>", *two, "<stop>"])


@EVERY_TREE
@pytest.mark.parametrize("split", ["test", "train"])
def test_co_task_has_an_unsafe_and_an_always_safe_operator_in_each_pair(world: World, split: str) -> None:
    """Of a composed request's too, whose first pair has no unsafe one to keep."""
    for (old, _, before, _), (new, _, names, kinds) in both(world, JBCOTask(), split):
        assert letters_of(old, world) == letters_of(new, world)
        for i in (0, 2):
            assert kinds[i : i + 2].count("safe") == 1
            kept = next(n for n, k in zip(names[i : i + 2], kinds[i : i + 2], strict=True) if k != "safe")
            assert kept in before
        assert set(kinds) <= {"safe", "unsafe", "contextual"}


@EVERY_TREE
@EVERY_ATTACK
def test_other_attacks_replace_each_operator_but_the_identity_by_their_class(world: World, attack: Attack) -> None:
    for (_, _, before, _), (_, g, names, kinds) in both(world, attack):
        for old, name, kind in zip(before, names, kinds, strict=True):
            if isinstance(attack, JBMisGen):
                assert kind == ("identity" if old == "f0" else "unsafe")
                assert name == "f0" if old == "f0" else name in aliases(world)[g]
            elif not isinstance(attack, JBCOTask):
                assert kind == ("identity" if old == "f0" else "contextual")


@pytest.mark.parametrize("world", [TREES["paper"], TREES["small"]], ids=["paper", "small"])
@pytest.mark.parametrize(("attack", "kind"), [(JBCOText(), MIXED), (JBMisGenText(), NOVEL_UNSAFE)], ids=["text", "misgen_text"])
def test_new_texts_are_of_the_attacks_sub_grammar(world: World, attack: Attack, kind: int) -> None:
    rules = draw_rules(world.tree, world.seed, world.letters, world.grammars)  # type: ignore[arg-type]
    for _, (e, g, _, _) in both(world, attack, n=6):
        text = [world.words.index(letter) - world.first_letter for letter in letters_of(e, world)]
        assert recognised(rules, kind, g, text)
