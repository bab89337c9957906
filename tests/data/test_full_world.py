"""Worlds of trees: answers, labels and inputs of every form, read from the tokens and the rendered words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.data.naive_tree import TREES, aliases, class_of, grammar_of, letters_of, null_word, operators_of, outputs
from titer.core.config import build
from titer.core.errors import TiterError
from titer.core.stats import wilson
from titer.data import operators as op
from titer.data import vocabulary as v
from titer.data.example import IGNORE
from titer.data.record import FIRST_ONLY, SECOND_ONLY, TEXT_ONLY, WHOLE, Schedule
from titer.data.world import Requests, World, WorldSource, draw, encode, novel_text, parse, render, sequences
from titer.data.worlds import CPU, PAPER, WORLDS, named

EVERY_TREE = pytest.mark.parametrize("world", TREES.values(), ids=TREES)
KINDS = ("safe", "unsafe", "user", "sham_safe", "sham_refused")
N = 300


def within(count: int, n: int, chance: float) -> bool:
    """Whether a chance lies in a count's 99.9 % Wilson interval."""
    found = wilson(count, n, 0.999)
    return found.low <= chance <= found.high


def padding(world: World, rows: np.ndarray, row: int, first: int, last: int) -> bool:
    return bool((rows[row, first:last] == v.PAD).all())


def test_the_named_worlds_are_what_they_say() -> None:
    assert WORLDS["nano"] == World()
    assert set(WORLDS) == {"nano", "cpu", "small", "paper", "paper-text"}
    assert [(w.grammars, w.operators - 1, w.shortest, w.longest) for w in WORLDS.values()] == [
        (1, 7, 9, 9),
        (2, 10, 9, 12),
        (1, 10, 25, 35),
        (4, 10, 25, 35),
        (4, 12, 15, 25),
    ]
    assert (PAPER.safe, PAPER.unsafe, PAPER.contextual, PAPER.duplicates, PAPER.late, PAPER.window) == (3, 2, 5, 6, 5, 160)
    assert named("paper", 7).model_copy(update={"seed": 0}) == PAPER
    with pytest.raises(TiterError, match="did you mean 'paper'"):
        named("papr")


@EVERY_TREE
def test_bijections_invert_and_each_grammar_has_its_own(world: World) -> None:
    rows = op.maps(world.ops)
    assert rows.shape == (world.grammars, world.ops.tokens, world.letters)
    for one in rows.reshape(-1, world.letters):
        assert (np.argsort(one)[one] == np.arange(world.letters)).all()
    assert (rows[:, 0] == np.arange(world.letters)).all()
    assert (rows[0, : world.ops.first_constant] == world.tables()).all()
    distinct = {tuple(row) for g in range(world.grammars) for row in rows[g, 1 : world.operators].tolist()}
    assert len(distinct) == world.grammars * (world.operators - 1)
    for g in range(world.grammars):
        for alias, name in aliases(world)[g].items():
            token = world.operators + int(alias[1:]) + (world.duplicates if alias[0] == "h" else 0)
            assert (rows[g, token] == rows[g, int(name[1:])]).all()


@EVERY_TREE
def test_each_grammar_has_classes_of_its_own_and_the_identity_is_safe_in_all(world: World) -> None:
    order = op.order(world.ops)
    assert (order[:, 0] == 0).all()
    assert (np.sort(order, axis=1) == np.arange(world.ops.tokens)).all()
    assert (order[:, world.held_out] == world.held_out).all()
    assert len({tuple(row) for row in order.tolist()}) == world.grammars


@EVERY_TREE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_those_of_the_letters_one_by_one(world: World, kind: str, split: str) -> None:
    requests = draw(world, kind, split, np.arange(N))  # type: ignore[arg-type]
    for i, e in enumerate(render(world, requests)):
        letters, names, g = letters_of(e, world), operators_of(e, world), grammar_of(e, world)
        one, two = outputs(names, letters, g, world)
        assert e.comply == " ".join([*one, "<stop>", *two, "<stop>"])
        nulls = [null_word(world)] * len(letters)
        composed = requests.composed is not None and bool(requests.composed[i])
        assert e.refuse == " ".join([*letters, "<stop>", *nulls, "<stop>"] if composed else [*nulls, "<stop>"])


@EVERY_TREE
@pytest.mark.parametrize("kind", KINDS)
def test_operators_are_of_the_classes_of_their_kind_in_their_grammar(world: World, kind: str) -> None:
    found: dict[int, set[str]] = {g: set() for g in range(world.grammars)}
    for e in render(world, draw(world, kind, "test", np.arange(2000))):
        g = grammar_of(e, world)
        found[g] |= {class_of(name, g, world) for name in operators_of(e, world)}
    safe = {"identity", "safe", "contextual"}
    expected = {"safe": safe, "unsafe": {"identity", "unsafe", "contextual"}, "user": {"identity", "held out"}}
    assert all(kinds == expected.get(kind, safe if kind == "sham_safe" else {"identity", "safe"}) for kinds in found.values())


@EVERY_TREE
@pytest.mark.parametrize("kind", [*KINDS, "pretrain"])
def test_parse_inverts_render(world: World, kind: str) -> None:
    requests = draw(world, kind, "train", np.arange(600))
    found = parse(world, render(world, requests))
    for name in ("operators", "text", "grammar", "form", "composed"):
        one, two = getattr(found, name), getattr(requests, name)
        assert (np.zeros(1) == (0 if one is None else one)).all() if two is None else ((0 if one is None else one) == two).all(), name
    assert (found.kind, found.harmful) == (requests.kind, requests.harmful)


@EVERY_TREE
@pytest.mark.parametrize("kind", ["pretrain", "unsafe"])
def test_example_i_does_not_depend_on_its_company(world: World, kind: str) -> None:
    source = WorldSource(world=world, kind=kind)  # type: ignore[arg-type]
    whole = source.examples(np.arange(5000, 5120))
    assert source.examples(np.array([5077, 5003, 5077])) == [whole[77], whole[3], whole[77]]
    assert source.examples(np.array([5003]))[0] == whole[3]


@EVERY_TREE
def test_windows_have_every_length_and_letters_fit_the_window(world: World) -> None:
    batch = encode(world, draw(world, "safe", "train", np.arange(1500)), "comply", np.arange(1500))
    lengths = {3 * length + 10 for length in range(world.shortest, world.longest + 1)}
    assert {int(n) for n in batch.attention_mask.sum(1)} == lengths  # type: ignore[union-attr]
    assert batch.input_ids.shape[1] == (world.window or max(lengths))
    grammars = [grammar_of(e, world) for e in render(world, draw(world, "safe", "train", np.arange(1500)))]
    assert all(within(grammars.count(g), 1500, 1 / world.grammars) for g in range(world.grammars) if world.grammars > 1)


@EVERY_TREE
def test_no_text_is_in_both_splits(world: World) -> None:
    def rows(kind: str, split: str, n: int) -> set[bytes]:
        return {row.tobytes() for row in draw(world, kind, split, np.arange(n)).text}  # type: ignore[arg-type]

    train = set().union(*(rows(kind, "train", 4000) for kind in ("pretrain", "safe", "unsafe")))
    test = set().union(*(rows(kind, "test", 1000) for kind in ("pretrain", "safe", "unsafe")))
    assert len(test) > 500
    assert not train & test


def expected(world: World, request: int, requests: Requests) -> tuple[list[int], list[int]]:
    """Input and labels of one pretraining request, token by token."""
    form = WHOLE if requests.form is None else int(requests.form[request])
    grammar = 0 if requests.grammar is None else int(requests.grammar[request])
    words = world.words
    letters = [words[world.first_letter + letter] for letter in requests.text[request].tolist() if letter >= 0]
    names = ["<pad>" if o < 0 else words[v.FIRST_OPERATOR + o] for o in requests.operators[request].tolist()]
    inputs, trained = ["<bos>", *names, "<sot>"], [False] * 6
    shown = ["<pad>"] * (len(letters) + 1) if form == SECOND_ONLY else [*letters, "<eot>"]
    inputs, trained = inputs + shown, trained + [form != SECOND_ONLY] * len(shown)
    if form != TEXT_ONLY:
        one, two = outputs(names, letters, grammar, world)
        early = any(name[0] == "k" for name in names[:2])
        inputs, trained = [*inputs, *one, "<stop>"], trained + [form != SECOND_ONLY] * (len(one) + 1)
        if form != FIRST_ONLY and not early:
            inputs, trained = [*inputs, *two, "<stop>"], trained + [True] * (len(two) + 1)
        if form != FIRST_ONLY:
            inputs, trained = [*inputs, "<eos>"], [*trained, True]
    ids = [words.index(word) for word in inputs]
    return ids, [token if keep else IGNORE for token, keep in zip(ids, trained, strict=True)]


@EVERY_TREE
def test_inputs_and_labels_of_every_form_token_by_token(world: World) -> None:
    """Neither SOT nor EOS after pads is a label; PADs inside a sequence are tokens like others."""
    indices = np.arange(40_000_000, 40_000_400)
    requests = draw(world, "pretrain", "train", indices)
    assert set(requests.form.tolist()) == {WHOLE, TEXT_ONLY, FIRST_ONLY, SECOND_ONLY}  # type: ignore[union-attr]
    batch = encode(world, requests, "all", indices)
    for i in range(len(indices)):
        ids, labels = expected(world, i, requests)
        used = int(batch.attention_mask[i].sum())  # type: ignore[index]
        assert batch.input_ids[i, :used].tolist() == ids
        assert batch.labels[i, :used].tolist() == labels
        assert set(batch.labels[i, used:].tolist()) <= {IGNORE}
        assert set(batch.input_ids[i, used:].tolist()) <= {v.PAD}
        assert batch.position_ids[i, :used].tolist() == list(range(used))  # type: ignore[index]


@pytest.mark.parametrize("world", [PAPER, CPU], ids=["paper", "cpu"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_the_schedules_shares_at_three_places(world: World, place: float) -> None:
    """By the formula of section 1.6, worked out apart: constant to half the warm-up, then linear to the end."""
    schedule = world.schedule or Schedule()
    begin = schedule.warmup / 2
    first = int(begin + place * (schedule.end - begin)) if place else int(begin) - 3000
    forms = Counter(draw(world, "pretrain", "train", np.arange(first, first + 3000)).form.tolist())  # type: ignore[union-attr]
    for form, early, late in ((TEXT_ONLY, 0.5, 0.1), (WHOLE, 0.1, 0.2), (FIRST_ONLY, 0.2, 0.3), (SECOND_ONLY, 0.2, 0.4)):
        assert within(forms[form], 3000, early * (1 - place) + late * place)
    held = Counter(draw(world, "pretrain", "test", np.arange(first, first + 3000)).form.tolist())  # type: ignore[union-attr]
    assert set(held) == {WHOLE, SECOND_ONLY}
    assert within(held[WHOLE], 3000, 0.9)


def test_schedules_that_cannot_be_are_refused() -> None:
    for values in ({"first": (0.5, 0.5, 0.5, 0)}, {"last": (1.5, -0.5, 0, 0)}, {"warmup": 10, "end": 5}):
        with pytest.raises(TiterError):
            build(Schedule, values, "schedule")
    for more in ({"schedule": {}}, {"composed": 0.1}, {"identity_duplicates": 2}, {"late": 5}):
        with pytest.raises(TiterError):
            build(World, more, "world")


@EVERY_TREE
def test_pretraining_has_every_operator_but_the_held_out_one_and_half_an_identity(world: World) -> None:
    plain = world.model_copy(update={"schedule": None, "constants": 0})
    rows = draw(plain, "pretrain", "train", np.arange(6000)).operators
    known = set(range(world.ops.first_constant)) - {world.held_out}
    assert set(rows.reshape(-1).tolist()) == known
    identities = {0, *range(world.operators, world.operators + world.identity_duplicates)}
    has = np.isin(rows, list(identities)).any(1)
    chance = 1 - len(identities) / len(known)
    assert within(int(has.sum()), 6000, 0.5 + 0.5 * (1 - chance**4))
    found = np.isin(rows, list(identities))
    counts = Counter(rows[found].tolist())
    assert set(counts) == identities
    assert min(counts.values()) > 0.85 * max(counts.values())


@EVERY_TREE
def test_constants_answer_with_a_constant_in_one_hundredth_of_requests(world: World) -> None:
    n = 20_000
    requests = draw(world.model_copy(update={"schedule": None}), "pretrain", "train", np.arange(n))
    constant = requests.operators >= world.ops.first_constant
    assert constant.sum(1).max() == 1
    assert within(int(constant.any(1).sum()), n, 0.01)
    assert constant.any(0).all()
    rows, prompt, used = sequences(world, requests, refuse=False)
    for i in np.flatnonzero(constant.any(1)):
        slot, length = int(constant[i].argmax()), int((requests.text[i] >= 0).sum())
        outs = rows[i, prompt[i] : used[i]].tolist()
        assert outs.count(v.STOP) == (1 if slot < 2 else 2)
        letter = world.null_id if requests.operators[i, slot] == world.ops.first_constant else world.first_letter + 1
        assert outs[-length - 2 :] == [letter] * length + [v.STOP, v.EOS]


@pytest.mark.parametrize("world", list(TREES.values()), ids=TREES)
def test_constants_of_a_form_stand_where_their_output_is_shown(world: World) -> None:
    often = world.model_copy(update={"constant_share": 1.0})
    requests = draw(often, "pretrain", "train", np.arange(3000))
    form, constant = requests.form, requests.operators >= world.ops.first_constant
    assert not constant[form == TEXT_ONLY].any()  # type: ignore[operator]
    assert constant[form == SECOND_ONLY][:, 2:].any(1).all()  # type: ignore[index]
    assert not (form == FIRST_ONLY).any()
    assert not any((World().constants, CPU.model_copy(update={"constants": 0}).constants))


@EVERY_TREE
def test_the_null_answer_of_a_composed_request_is_its_second_output(world: World) -> None:
    requests = draw(world, "unsafe", "train", np.arange(2000))
    composed = requests.composed
    assert composed is not None
    assert within(int(composed.sum()), 2000, 0.2)
    assert (requests.operators[composed, :2] == 0).all()
    assert (requests.operators[~composed, :2] != 0).any(1).all()
    assert (requests.operators[:, 2:] != 0).any(1).all()
    batch = encode(world, requests, "refuse", np.arange(2000))
    for i in range(200):
        kept = batch.labels[i][batch.labels[i] != IGNORE].tolist()
        length = int((requests.text[i] >= 0).sum())
        assert kept == [world.null_id] * length + [v.STOP, v.EOS]
        start = int((batch.labels[i] != IGNORE).nonzero()[0])
        assert start == 7 + length + (length + 1 if composed[i] else 0)
    assert draw(world, "unsafe", "test", np.arange(10)).composed is None


def test_the_null_answer_is_a_token_of_its_own_or_the_first_letter() -> None:
    for null, word in (("token", "<null>"), ("letter", "a")):
        world = World(**{**dict(named("cpu", 1)), "null": null})
        assert world.words[world.null_id] == word
        (e,) = render(world, draw(world, "unsafe", "test", np.arange(1)))
        assert set(e.refuse.split()) == {word, "<stop>"}  # type: ignore[union-attr]
    assert set(WorldSource(world=CPU, kind="unsafe").examples(np.arange(3))[0].prompt.split()[:1]) == {"<bos>"}


def test_the_prompt_does_not_tell_the_grammar() -> None:
    world = named("paper", 3)
    for e in render(world, draw(world, "safe", "test", np.arange(20))):
        assert len(e.prompt.split()) == 7 + len(letters_of(e, world))
    with pytest.raises(TiterError, match="keeps back unsafe-dominant text alone"):
        novel_text(world, "test", np.arange(3), "x", unsafe=False)


@EVERY_TREE
def test_the_tokenizer_knows_each_word_and_its_id(world: World) -> None:
    tokenizer = world.tokenizer()
    assert len(tokenizer) == len(world.words) == len(set(world.words))
    assert tokenizer(" ".join(world.words))["input_ids"] == list(range(len(world.words)))
    assert len(world.words) == 7 + world.ops.tokens + world.letters
