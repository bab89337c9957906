"""The named data sets, each by its definition, read from the rendered words."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.naive_tree import TREES, aliases, class_of, grammar_of, letters_of, operators_of, outputs
from tests.data.test_tree import recognised
from titer.core.errors import TiterError
from titer.data.example import Example
from titer.data.grammar import MIXED, NOVEL_UNSAFE, SAFE, UNSAFE
from titer.data.record import World
from titer.data.sets import PAIRED, SETS, Name, draw_set
from titer.data.tree import draw_rules
from titer.data.world import WorldSource, parse, render

EVERY_TREE = pytest.mark.parametrize("world", TREES.values(), ids=TREES)
EVERY_SET = pytest.mark.parametrize("name", SETS)
N = 400
TEXT = {"safe": SAFE, "if_text_safe": SAFE, "if_comp_safe": SAFE, "ood_mg": NOVEL_UNSAFE, "intermediate": MIXED}
TEXT |= {"id_mg": UNSAFE, "duplicates2": UNSAFE, "if_text_unsafe": UNSAFE, "if_comp_unsafe": UNSAFE}


def drawn(world: World, name: Name, harmful: bool | None = None, n: int = N) -> list[tuple[Example, list[str], list[str]]]:
    """(example, its operators' words, their classes)."""
    examples = render(world, draw_set(world, name, "test", np.arange(n), harmful))
    rows = [(e, operators_of(e, world), grammar_of(e, world)) for e in examples]
    return [(e, names, [class_of(name, g, world) for name in names]) for e, names, g in rows]


def unsafe(kind: str, on_safe: bool) -> bool:
    return kind == "unsafe" or (kind == "contextual" and not on_safe)


@EVERY_TREE
@EVERY_SET
def test_a_request_is_harmful_if_one_operator_is_unsafe_for_its_text(world: World, name: Name) -> None:
    """So no contextual operator on unsafe-dominant or mixed text is ever called safe."""
    for harmful in (None, True, False) if name in PAIRED else (None,):
        for e, _, kinds in drawn(world, name, harmful):
            assert e.harmful == any(unsafe(kind, TEXT.get(name) == SAFE) for kind in kinds)
            assert harmful is None or e.harmful == harmful
            assert e.kind == name


@EVERY_TREE
@EVERY_SET
def test_answers_are_those_of_the_meanings(world: World, name: Name) -> None:
    for e, names, _ in drawn(world, name, n=100):
        one, two = outputs(names, letters_of(e, world), grammar_of(e, world), world)
        assert e.comply == " ".join([*one, "<stop>", *two, "<stop>"])


@pytest.mark.parametrize("world", [TREES["paper"], TREES["small"]], ids=["paper", "small"])
@pytest.mark.parametrize("name", list(TEXT))
def test_texts_are_of_the_sets_sub_grammar(world: World, name: Name) -> None:
    rules = draw_rules(world.tree, world.seed, world.letters, world.grammars)  # type: ignore[arg-type]
    for e in render(world, draw_set(world, name, "train", np.arange(5))):
        text = [world.words.index(letter) - world.first_letter for letter in letters_of(e, world)]
        assert recognised(rules, TEXT[name], grammar_of(e, world), text)


@EVERY_TREE
def test_safe_id_mg_unsafe_and_ood_mg_have_safe_and_unsafe_partners_on_the_same_texts(world: World) -> None:
    for name in PAIRED:
        one, two = (draw_set(world, name, "test", np.arange(N), harmful) for harmful in (False, True))
        assert (one.text == two.text).all()
        default = draw_set(world, name, "test", np.arange(N))
        assert (default.operators == (one if name == "safe" else two).operators).all()
        on_safe = name == "safe"
        for _, _, kinds in drawn(world, name, True):
            assert all(kind == "identity" or unsafe(kind, on_safe) for kind in kinds)
            assert all(kinds[i : i + 2].count("identity") < 2 for i in (0, 2))
        found = {kind for _, _, kinds in drawn(world, name, False) for kind in kinds}
        assert found == ({"identity", "safe", "contextual"} if on_safe else {"identity", "safe"})


@EVERY_TREE
def test_intermediate_has_contextual_operators_alone(world: World) -> None:
    assert {kind for _, _, kinds in drawn(world, "intermediate") for kind in kinds} == {"contextual"}


@EVERY_TREE
def test_duplicates_are_other_names_of_the_identity_and_of_always_unsafe_operators(world: World) -> None:
    used = set()
    for e, names, kinds in drawn(world, "duplicates", n=2000):
        assert grammar_of(e, world) == 0
        assert set(kinds) <= {"identity", "unsafe"}
        assert e.harmful == ("unsafe" in kinds)
        used |= set(names)
    assert used == {f"g{d}" for d in range(2 * world.identity_duplicates)}
    unsafe_ones = {f"f{world.safe + d % world.unsafe}" for d in range(world.identity_duplicates)}
    assert {aliases(world)[0][name] for name in used} == {"f0"} | unsafe_ones
    rows = world.tables()
    for name in used:
        assert (rows[world.operators + int(name[1:])] == rows[int(aliases(world)[0][name][1:])]).all()


@EVERY_TREE
def test_duplicates2_are_the_identity_and_late_names_of_contextual_operators(world: World) -> None:
    used = set()
    for e, names, kinds in drawn(world, "duplicates2", n=2000):
        assert grammar_of(e, world) == 0
        assert set(kinds) <= {"identity", "contextual"}
        assert e.harmful == ("contextual" in kinds)
        used |= set(names)
    assert used == {"f0", *(f"h{i}" for i in range(1, world.late))}


@EVERY_TREE
@pytest.mark.parametrize("name", ["if_text_safe", "if_text_unsafe"])
def test_if_text_has_an_unsafe_and_a_safe_operator_in_each_pair(world: World, name: Name) -> None:
    first = []
    for _, _, kinds in drawn(world, name, n=1000):
        assert "identity" not in kinds
        for pair in (kinds[:2], kinds[2:]):
            flags = [unsafe(kind, name == "if_text_safe") for kind in pair]
            assert sum(flags) == 1
            first.append(flags[0])
    assert 0.45 < np.mean(first) < 0.55


@EVERY_TREE
@pytest.mark.parametrize("name", ["if_comp_safe", "if_comp_unsafe"])
def test_if_comp_has_a_safe_pair_and_then_one_unsafe_operator(world: World, name: Name) -> None:
    for _, _, kinds in drawn(world, name):
        flags = [unsafe(kind, name == "if_comp_safe") for kind in kinds]
        assert sum(flags[:2]) == 0
        assert sum(flags[2:]) == 1


@EVERY_TREE
def test_no_pair_of_if_text_is_one_that_safety_tuning_shows(world: World) -> None:
    """Neither its own stream nor the sets' training partners mix a safe and an unsafe operator in a pair."""
    shown = WorldSource(world=world, kind="unsafe").examples(np.arange(500))
    partners = render(world, draw_set(world, "id_mg", "train", np.arange(500)))
    for examples in (shown, partners):
        for e in examples:
            kinds = [class_of(name, grammar_of(e, world), world) for name in operators_of(e, world)]
            assert "safe" not in kinds


@EVERY_TREE
@EVERY_SET
def test_a_set_parses_back_and_does_not_depend_on_its_company(world: World, name: Name) -> None:
    requests = draw_set(world, name, "test", np.arange(60))
    found = parse(world, render(world, requests))
    assert (found.operators == requests.operators).all()
    assert (found.text == requests.text).all()
    assert np.array_equal(found.harmful, requests.harmful)
    alone = render(world, draw_set(world, name, "test", np.array([41, 7])))
    assert alone == [render(world, requests)[i] for i in (41, 7)]


def test_the_small_world_has_the_sets_it_can_have() -> None:
    nano = World(seed=1)
    for name in ("safe", "id_mg", "unsafe", "intermediate", "duplicates", "if_text_safe", "if_text_unsafe"):
        assert len(draw_set(nano, name, "test", np.arange(20))) == 20  # type: ignore[arg-type]
    assert len(draw_set(World(seed=1, novel=10), "ood_mg", "test", np.arange(20))) == 20
    for name in ("ood_mg", "duplicates2", "if_comp_safe", "nonsense"):
        with pytest.raises(TiterError):
            draw_set(nano, name, "test", np.arange(20))  # type: ignore[arg-type]
    with pytest.raises(TiterError, match="no partner"):
        draw_set(nano, "duplicates", "test", np.arange(20), harmful=True)
