"""Streams and batches: example i is a function of (seed, i), however the examples are asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.naive import NANO, PAPER, RAGGED, WORLDS
from titer.core.config import build
from titer.core.errors import TiterError
from titer.data.example import IGNORE, Batch, Part, Stream, join, positions
from titer.data.mix import mix
from titer.data.world import World, WorldSource

NULL = 6  # the id of <null>


def two_parts(world: World, pool: int | None = None, seed: int = 0) -> Stream:
    """Four safe requests answered for each unsafe one refused."""
    safe = Part(source=WorldSource(world=world, kind="safe"), answer="comply", share=4.0)
    unsafe = Part(source=WorldSource(world=world, kind="unsafe"), answer="refuse", share=1.0)
    return Stream(parts=(safe, unsafe), seed=seed, pool=pool)


def row(batch: Batch, i: int) -> tuple[list[int], list[int], list[int], int]:
    """One example of a batch without its padding: tokens, labels, positions, index."""
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    place = torch.arange(batch.input_ids.shape[1]).expand_as(mask) if batch.position_ids is None else batch.position_ids
    real = mask[i].bool()
    return batch.input_ids[i][real].tolist(), batch.labels[i][real].tolist(), place[i][real].tolist(), int(batch.indices[i])


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("pool", [None, 50])
def test_an_example_is_the_same_in_any_batch(world: World, pool: int | None) -> None:
    stream, tokenizer = two_parts(world, pool), world.tokenizer()
    whole = stream.batch(0, 120, tokenizer)
    for first, count in ((0, 1), (40, 30), (119, 1), (7, 5)):
        piece = stream.batch(first, count, tokenizer)
        assert [row(piece, i) for i in range(count)] == [row(whole, first + i) for i in range(count)]


@given(st.integers(0, 300), st.lists(st.integers(1, 60), min_size=1, max_size=6), st.sampled_from([None, 1, 7, 50]))
def test_places_do_not_depend_on_how_they_are_cut_into_batches(first: int, counts: list[int], pool: int | None) -> None:
    stream = two_parts(NANO, pool)
    parts, indices = stream.places(stream.numbers(first, sum(counts)))
    starts = np.cumsum([first, *counts[:-1]])
    pieces = [stream.places(stream.numbers(int(start), count)) for start, count in zip(starts, counts, strict=True)]
    assert np.concatenate([p for p, _ in pieces]).tolist() == parts.tolist()
    assert np.concatenate([i for _, i in pieces]).tolist() == indices.tolist()


def test_each_part_gives_its_own_source_and_answer() -> None:
    stream = two_parts(NANO)
    parts, indices = stream.places(stream.numbers(0, 300))
    batch = stream.batch(0, 300, NANO.tokenizer())
    for i, (part, index) in enumerate(zip(parts, indices, strict=True)):
        one = stream.parts[part]
        alone = one.source.batch(np.array([index]), one.answer, NANO.tokenizer())
        assert row(batch, i)[:3] == row(alone, 0)[:3]
        assert (NULL in row(batch, i)[1]) == (part == 1)
    assert batch.indices.tolist() == list(range(300))


@pytest.mark.parametrize("shares", [(4.0, 1.0), (0.8, 0.2), (1.0, 1.0, 2.0), (1.0,)])
def test_parts_come_by_their_shares(shares: tuple[float, ...]) -> None:
    source = WorldSource(world=NANO, kind="safe")
    stream = Stream(parts=tuple(Part(source=source, answer="comply", share=s) for s in shares), seed=3)
    n = 20_000
    counts = np.bincount(stream.places(np.arange(n))[0], minlength=len(shares))
    expected = np.asarray(shares) / sum(shares)
    assert (np.abs(counts - n * expected) <= 4 * np.sqrt(n * expected * (1 - expected)) + 1e-9).all()


def test_another_seed_draws_other_parts() -> None:
    one, two = (two_parts(NANO, seed=s).places(np.arange(200))[0].tolist() for s in (0, 1))
    assert one != two


@pytest.mark.parametrize("pool", [1, 7, 50])
def test_an_epoch_shows_every_example_once_in_a_new_order(pool: int) -> None:
    stream = two_parts(NANO, pool)
    epochs = [stream.places(stream.numbers(e * pool, pool))[1].tolist() for e in range(6)]
    assert all(sorted(epoch) == list(range(pool)) for epoch in epochs)
    if pool > 1:
        assert len({tuple(epoch) for epoch in epochs}) == 6


def test_an_example_of_a_pool_keeps_its_part_in_every_epoch() -> None:
    stream = two_parts(NANO, 40)
    parts, indices = stream.places(stream.numbers(0, 160))
    assert len({(p, i) for p, i in zip(parts.tolist(), indices.tolist(), strict=True)}) == 40


def test_an_epoch_of_a_mix_shows_each_picked_example_once() -> None:
    source = WorldSource(world=NANO, kind="safe")
    stream = mix([(source, "comply", 9), (WorldSource(world=NANO, kind="unsafe"), "comply", 4)], seed=0)
    picked = Counter((part, place) for part, one in enumerate(stream.parts) for place in one.picked or ())
    for epoch in range(3):
        parts, places = stream.places(stream.numbers(13 * epoch, 13))
        assert Counter(zip(parts.tolist(), places.tolist(), strict=True)) == picked


@pytest.mark.parametrize("values", [{"parts": ()}, {"pool": 0}, {"pool": -1}, {"sead": 1}])
def test_a_stream_that_can_give_nothing_is_refused(values: dict[str, object]) -> None:
    part = Part(source=WorldSource(world=NANO, kind="safe"), answer="comply")
    with pytest.raises(TiterError):
        build(Stream, {"parts": (part,), **values}, "stream")


@pytest.mark.parametrize("share", [0, -1, float("nan"), float("inf")])
def test_a_share_is_above_zero(share: float) -> None:
    with pytest.raises(TiterError):
        build(Part, {"source": None, "answer": "comply", "share": share}, "part")


def batch_of(rows: list[list[int]], indices: list[int], pad: int = 0) -> Batch:
    """Rows as a right-padded batch; the last token of each row is trained."""
    width = max(len(r) for r in rows)
    whole = all(len(r) == width for r in rows)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    return Batch(
        input_ids=torch.tensor([r + [pad] * (width - len(r)) for r in rows]),
        labels=torch.tensor([[IGNORE] * (len(r) - 1) + r[-1:] + [IGNORE] * (width - len(r)) for r in rows]),
        indices=torch.tensor(indices),
        attention_mask=None if whole else mask,
        position_ids=None if whole else positions(mask),
    )


ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=4)


@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(10, 12))
def test_joined_batches_are_the_batch_of_all_rows(groups: list[list[list[int]]], pad: int) -> None:
    starts = np.cumsum([0] + [len(g) for g in groups[:-1]])
    pieces = [batch_of(g, list(range(s, s + len(g))), pad) for g, s in zip(groups, starts.tolist(), strict=True)]
    every = [r for g in groups for r in g]
    expected, found = batch_of(every, list(range(len(every))), pad), join(pieces, pad)
    assert set(found.tensors()) == set(expected.tensors())
    assert all(torch.equal(value, expected.tensors()[name]) for name, value in found.tensors().items())


def test_a_stream_of_ragged_texts_is_padded_to_its_longest_row() -> None:
    batch = two_parts(RAGGED).batch(0, 40, RAGGED.tokenizer())
    assert batch.attention_mask is not None
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape
    assert int(batch.attention_mask.sum(1).max()) == batch.input_ids.shape[1]
    assert (batch.labels[batch.attention_mask == 0] == IGNORE).all()


def test_a_stream_of_a_windowed_world_fills_the_window() -> None:
    assert two_parts(PAPER).batch(0, 8, PAPER.tokenizer()).input_ids.shape == (8, 160)


@given(st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=1, max_size=4))
def test_positions_count_the_real_tokens(mask: list[list[int]]) -> None:
    found = positions(torch.tensor(mask)).tolist()
    for real, places in zip(mask, found, strict=True):
        assert [p for p, m in zip(places, real, strict=True) if m] == list(range(sum(real)))
        assert min(places) >= 0


def test_rows_and_inputs_are_parts_of_a_batch() -> None:
    batch = two_parts(RAGGED).batch(3, 10, RAGGED.tokenizer())
    piece = batch.rows(2, 5)
    assert len(piece) == 3
    assert [row(piece, i) for i in range(3)] == [row(batch, i) for i in (2, 3, 4)]
    assert set(batch.inputs()) == {"input_ids", "attention_mask", "position_ids"}
    assert set(two_parts(NANO).batch(0, 2, NANO.tokenizer()).inputs()) == {"input_ids"}
    moved = batch.to("cpu")
    assert all(torch.equal(value, batch.tensors()[name]) for name, value in moved.tensors().items())
