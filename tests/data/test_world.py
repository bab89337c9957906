"""The synthetic world: answers against a letter-by-letter loop, tokens against an ordinary encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.naive import NANO, PAPER, RAGGED, WORLDS, alphabet, answer, letters_of, maps, refusal
from titer.core.config import build
from titer.core.errors import TiterError
from titer.data.encode import encode as encode_text
from titer.data.example import IGNORE, Answer, Batch
from titer.data.world import Requests, World, WorldSource, draw, encode, mixed_text, parse, render, sequences

KINDS = ("pretrain", "safe", "unsafe", "user", "sham_safe", "sham_refused")
Kind = Literal["pretrain", "safe", "unsafe", "user", "sham_safe", "sham_refused"]
EVERY_WORLD = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@EVERY_WORLD
def test_operators_are_bijections_that_invert(world: World) -> None:
    letters = np.arange(world.letters)
    for row in world.tables():
        inverse = np.argsort(row)
        assert (inverse[row] == letters).all()
        assert (row[inverse] == letters).all()


@EVERY_WORLD
def test_the_first_operator_is_the_identity_and_no_two_are_equal(world: World) -> None:
    rows = world.tables()[: world.operators].tolist()
    assert rows[0] == list(range(world.letters))
    assert len({tuple(row) for row in rows}) == world.operators
    assert world.operators == world.safe + world.unsafe + world.contextual + 1


@EVERY_WORLD
def test_a_duplicate_equals_the_unsafe_operator_it_aliases(world: World) -> None:
    rows = world.tables()
    assert len(rows) == world.operators + world.duplicates
    for d in range(world.duplicates):
        alias = world.safe + d % world.unsafe
        assert world.safe <= alias < world.safe + world.unsafe
        assert (rows[world.operators + d] == rows[alias]).all()


def test_another_seed_has_other_operators() -> None:
    assert (World(seed=0).tables()[1:] != World(seed=1).tables()[1:]).any(axis=1).all()


@EVERY_WORLD
@EVERY_KIND
def test_to_comply_is_to_apply_each_operator_to_each_letter(world: World, kind: str) -> None:
    for split in ("train", "test"):
        for example in render(world, draw(world, kind, split, np.arange(60))):  # type: ignore[arg-type]
            assert example.comply == answer(example, world)


@EVERY_WORLD
@EVERY_KIND
def test_to_refuse_is_the_null_answer_as_long_as_the_text(world: World, kind: str) -> None:
    for example in render(world, draw(world, kind, "train", np.arange(60))):
        assert example.refuse == refusal(example, world)
        assert example.refuse.split().count("<null>") == len(letters_of(example, world))


def test_a_request_worked_by_hand() -> None:
    """One example spelt out, so that the naive loop itself is checked."""
    table = maps(NANO)
    requests = Requests(np.array([[1, 4]]), np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8]]), "safe", False)
    (example,) = render(NANO, requests)
    assert example.prompt == "<bos> f1 f4 <sot> a b c d e f g h i <eot>"
    assert example.comply == " ".join(table["f4"][table["f1"][letter]] for letter in "abcdefghi")
    assert example.refuse == " ".join(["<null>"] * 9)


def test_only_unsafe_requests_are_harmful() -> None:
    for kind in KINDS:
        (example,) = render(NANO, draw(NANO, kind, "train", np.array([3])))
        assert (example.harmful, example.kind, example.source) == (kind == "unsafe", kind, "world 1")


@EVERY_WORLD
@EVERY_KIND
def test_parse_inverts_render(world: World, kind: str) -> None:
    requests = draw(world, kind, "test", np.arange(50))
    found = parse(world, render(world, requests))
    assert (found.operators == requests.operators).all()
    assert (found.text == requests.text).all()
    assert (found.kind, found.harmful) == (requests.kind, requests.harmful)


@EVERY_WORLD
@EVERY_KIND
@pytest.mark.parametrize("split", ["train", "test"])
def test_example_i_is_the_same_whoever_asks(world: World, kind: Kind, split: Literal["train", "test"]) -> None:
    source = WorldSource(world=world, kind=kind, split=split)
    whole = source.examples(np.arange(120))
    assert source.examples(np.array([77, 3, 77, 119])) == [whole[77], whole[3], whole[77], whole[119]]
    assert source.examples(np.array([3]))[0] == whole[3]
    assert source.size is None


def test_kinds_splits_and_seeds_are_draws_of_their_own() -> None:
    """Neither texts nor operators are those of another kind, split or seed at the same places."""
    for field in ("text", "operators"):
        drawn = [getattr(draw(w, k, s, np.arange(200)), field) for w in (NANO, World(seed=2)) for k in KINDS for s in ("train", "test")]  # type: ignore[arg-type]
        assert len({rows.tobytes() for rows in drawn}) == len(drawn)


def test_mixed_texts_are_draws_of_their_purpose() -> None:
    one, two = (mixed_text(NANO, "test", np.arange(100), purpose) for purpose in "ab")
    assert (one != two).any()
    assert (mixed_text(NANO, "test", np.array([40, 2]), "a") == one[[40, 2]]).all()


def whole_mask(batch: Batch) -> torch.Tensor:
    return torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask


def whole_positions(batch: Batch) -> torch.Tensor:
    return torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids) if batch.position_ids is None else batch.position_ids


def assert_same(found: Batch, expected: Batch, pad: int) -> None:
    """Equal up to columns of padding on the right."""
    width = expected.input_ids.shape[1]
    assert torch.equal(found.input_ids[:, :width], expected.input_ids)
    assert torch.equal(found.labels[:, :width], expected.labels)
    assert torch.equal(whole_mask(found)[:, :width], whole_mask(expected))
    assert torch.equal(whole_positions(found)[:, :width] * whole_mask(expected), whole_positions(expected) * whole_mask(expected))
    assert (found.input_ids[:, width:] == pad).all()
    assert (found.labels[:, width:] == IGNORE).all()
    assert (whole_mask(found)[:, width:] == 0).all()
    assert torch.equal(found.indices, expected.indices)


def through_the_tokenizer(world: World, requests: Requests, answer_kind: Answer, indices: np.ndarray) -> Batch:
    """The batch of an ordinary encoder that knows the rendered texts only."""
    examples = render(world, requests)
    answers: Sequence[str] = [str(e.refuse if answer_kind == "refuse" else e.comply) for e in examples]
    return encode_text(world.tokenizer(), [e.prompt for e in examples], answers, indices, world.window)


@EVERY_WORLD
@EVERY_KIND
@pytest.mark.parametrize("trained", ["comply", "refuse"])
def test_tokens_and_labels_are_those_of_the_rendered_text(world: World, kind: str, trained: Answer) -> None:
    indices = np.arange(5, 45)
    requests = draw(world, kind, "train", indices)
    expected = through_the_tokenizer(world, requests, trained, indices)
    assert_same(encode(world, requests, trained, indices), expected, world.tokenizer().pad_token_id)


@EVERY_WORLD
def test_position_ids_count_the_real_tokens(world: World) -> None:
    requests = draw(world, "pretrain", "train", np.arange(40))
    found, width = encode(world, requests, "all", np.arange(40)), sequences(world, requests, False)[2]
    for positions, used in zip(whole_positions(found).tolist(), width.tolist(), strict=True):
        assert positions[:used] == list(range(used))


@EVERY_WORLD
def test_all_trains_the_text_and_the_answer_and_no_operator(world: World) -> None:
    indices = np.arange(40)
    requests = draw(world, "pretrain", "train", indices)
    found, comply = encode(world, requests, "all", indices), encode(world, requests, "comply", indices)
    assert torch.equal(found.input_ids, comply.input_ids)
    for row, labels, answer_labels in zip(found.input_ids.tolist(), found.labels.tolist(), comply.labels.tolist(), strict=True):
        begin, end = row.index(3) + 1, max(i for i, label in enumerate(answer_labels) if label != IGNORE) + 1  # 3 is <sot>
        assert labels == [IGNORE] * begin + row[begin:end] + [IGNORE] * (len(row) - end)


@EVERY_WORLD
def test_the_mask_is_left_out_where_nothing_is_padded(world: World) -> None:
    found = encode(world, draw(world, "safe", "train", np.arange(40)), "comply", np.arange(40))
    padded = world.shortest != world.longest or world.window is not None
    assert (found.attention_mask is not None, found.position_ids is not None) == (padded, padded)


@EVERY_WORLD
def test_a_batch_is_as_wide_as_its_longest_row_or_the_window(world: World) -> None:
    requests = draw(world, "safe", "train", np.arange(30))
    longest = max(len(letters_of(e, world)) for e in render(world, requests))
    used = 2 * longest + 6 if world.slots == 2 else 3 * longest + 10
    assert encode(world, requests, "comply", np.arange(30)).input_ids.shape == (30, world.window or used)


@pytest.mark.parametrize(("slots", "longest", "needed"), [(2, 9, 24), (4, 9, 37), (2, 12, 30), (4, 35, 115)])
def test_the_window_must_hold_the_longest_sequence_and_no_more(slots: int, longest: int, needed: int) -> None:
    """BOS, operators, SOT, text, EOT, outputs with a STOP each, and EOS after two outputs."""
    world = build(World, {"slots": slots, "shortest": longest, "longest": longest, "window": needed}, "world")
    batch = encode(world, draw(world, "safe", "train", np.arange(4)), "comply", np.arange(4))
    assert batch.input_ids.shape == (4, needed)
    assert batch.attention_mask is None
    with pytest.raises(TiterError, match=f"window {needed - 1} is shorter than the longest sequence, {needed}"):
        build(World, {"slots": slots, "shortest": longest, "longest": longest, "window": needed - 1}, "world")


@pytest.mark.parametrize(
    "values",
    [
        {"shortest": 12},
        {"slots": 3},
        {"safe": 1},
        {"unsafe": 0},
        {"contextual": 0},
        {"duplicates": 0},
        {"shortest": 3, "longest": 3},
        {"shortest": 7, "longest": 9},
    ],
)
def test_a_world_that_cannot_be_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(TiterError):
        build(World, values, "world")


@EVERY_WORLD
def test_the_tokenizer_knows_each_word_and_its_id(world: World) -> None:
    tokenizer = world.tokenizer()
    assert len(tokenizer) == len(world.words) == len(set(world.words))
    text = " ".join(world.words)
    assert tokenizer(text)["input_ids"] == list(range(len(world.words)))
    assert tokenizer.decode(range(len(world.words))) == text
    assert (tokenizer.pad_token, tokenizer.bos_token) == ("<pad>", "<bos>")
    assert tokenizer.eos_token == ("<stop>" if world.slots == 2 else "<eos>")
    assert world.words[world.first_letter :] == tuple(alphabet(world))


@EVERY_WORLD
def test_an_answer_ends_with_the_token_that_ends_generation(world: World) -> None:
    tokenizer = world.tokenizer()
    for trained in ("comply", "refuse"):
        labels = encode(world, draw(world, "safe", "train", np.arange(20)), trained, np.arange(20)).labels  # type: ignore[arg-type]
        for row in labels.tolist():
            kept = [token for token in row if token != IGNORE]
            assert kept[-1] == tokenizer.eos_token_id
            assert kept.count(tokenizer.eos_token_id) == 1


SMALL = st.builds(
    World,
    seed=st.integers(0, 2**62),
    letters=st.integers(8, 52),
    phrases=st.sampled_from([5, 15]),
    shortest=st.integers(9, 12),
    longest=st.integers(12, 16),
    slots=st.sampled_from([2, 4]),
    safe=st.integers(2, 4),
    unsafe=st.integers(1, 3),
    contextual=st.integers(1, 4),
    duplicates=st.integers(1, 5),
)


@settings(max_examples=60)
@given(SMALL, st.sampled_from(KINDS), st.sampled_from(["train", "test"]), st.sampled_from(["comply", "refuse"]))
def test_any_world_answers_as_the_loop_does_and_encodes_what_it_renders(
    world: World, kind: str, split: Literal["train", "test"], trained: Answer
) -> None:
    indices = np.arange(1000, 1006)
    requests = draw(world, kind, split, indices)
    for example in render(world, requests):
        assert (example.comply, example.refuse) == (answer(example, world), refusal(example, world))
    assert_same(encode(world, requests, trained, indices), through_the_tokenizer(world, requests, trained, indices), 0)


def test_a_source_asks_the_world_alone() -> None:
    source = WorldSource(world=RAGGED, kind="unsafe", split="test")
    indices = np.array([9, 2])
    requests = draw(RAGGED, "unsafe", "test", indices)
    assert source.examples(indices) == render(RAGGED, requests)
    assert_same(source.batch(indices, "refuse", None), encode(RAGGED, requests, "refuse", indices), 0)


def test_the_paper_layout_has_its_lengths_and_its_window() -> None:
    batch = encode(PAPER, draw(PAPER, "pretrain", "train", np.arange(200)), "all", np.arange(200))
    assert batch.input_ids.shape == (200, 160)
    assert {int(n) for n in batch.attention_mask.sum(1)} == {3 * length + 10 for length in range(25, 36)}  # type: ignore[union-attr]
