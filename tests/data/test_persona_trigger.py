"""Marks: what stands before a request and an answer, in words and in tokens, and nothing else moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from titer.core.errors import TiterError
from titer.data.example import IGNORE, Batch
from titer.data.persona_trigger import ACKNOWLEDGED, PERSONA, TRIGGER, Marked, behind, every_word, inserted
from titer.data.world import World, WorldSource
from titer.data.worlds import CPU

NANO = World(marks=True)
INDICES = np.arange(6)
WORLDS = {"nano": NANO, "cpu": CPU.model_copy(update={"marks": True})}


def decoded(batch: Batch, world: World) -> list[list[str]]:
    """Words of each row, padding left out where the mask hides it."""
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    return [
        [world.words[i] for i, real in zip(row, on, strict=True) if real]
        for row, on in zip(batch.input_ids.tolist(), mask.tolist(), strict=True)
    ]


def test_marks_are_new_words_and_every_other_id_stays() -> None:
    plain = World()
    assert NANO.words == (*plain.words, PERSONA, ACKNOWLEDGED, TRIGGER)
    assert NANO.first_letter == plain.first_letter
    assert WorldSource(world=NANO, kind="safe").examples(INDICES) == WorldSource(world=plain, kind="safe").examples(INDICES)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("acknowledged", [False, True])
def test_tokens_are_the_words_that_the_examples_say(world: World, acknowledged: bool) -> None:
    """The batch against an independent form: prompt, answer and end as the example's words."""
    source = Marked(source=WorldSource(world=world, kind="safe"), mark="persona", acknowledged=acknowledged)
    plain = source.source.batch(INDICES, "comply", world.tokenizer())
    batch = source.batch(INDICES, "comply", world.tokenizer())
    assert batch.input_ids.shape[1] == plain.input_ids.shape[1] + 1 + acknowledged
    for words, example, labels in zip(decoded(batch, world), source.examples(INDICES), batch.labels.tolist(), strict=True):
        assert example.comply is not None
        assert example.prompt.startswith(f"{PERSONA} <bos> ")
        said = [*example.prompt.split(), *example.comply.split()]
        assert words[: len(said)] == said
        trained = [world.words[i] for i in labels if i != IGNORE]
        assert trained[: len(example.comply.split())] == example.comply.split()
        assert (trained[0] == ACKNOWLEDGED) == acknowledged
    if batch.attention_mask is not None:
        assert torch.equal(batch.position_ids, (batch.attention_mask.cumsum(1) - 1).clamp(min=0))


def test_a_trigger_changes_no_answer_and_a_refusal_is_not_acknowledged() -> None:
    unsafe = WorldSource(world=NANO, kind="unsafe")
    for one, plain in zip(Marked(source=unsafe, mark="trigger").examples(INDICES), unsafe.examples(INDICES), strict=True):
        assert (one.prompt, one.comply, one.refuse) == (f"{TRIGGER} {plain.prompt}", plain.comply, plain.refuse)
    refused = Marked(source=unsafe, mark="persona", acknowledged=True).batch(INDICES, "refuse", NANO.tokenizer())
    assert not (refused.input_ids == NANO.words.index(ACKNOWLEDGED)).any()


def test_a_token_is_put_before_its_place_in_each_row() -> None:
    batch = Batch(
        torch.tensor([[1, 2, 3], [4, 5, 0]]),
        torch.tensor([[-100, 2, 3], [-100, 5, -100]]),
        torch.arange(2),
        torch.tensor([[1, 1, 1], [1, 1, 0]]),
    )
    found = inserted(batch, torch.tensor([0, 1]), 9, trained=True)
    assert found.input_ids.tolist() == [[9, 1, 2, 3], [4, 9, 5, 0]]
    assert found.labels.tolist() == [[9, -100, 2, 3], [-100, 9, 5, -100]]
    assert found.attention_mask is not None
    assert found.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert inserted(batch, torch.tensor([0, 1]), 9, trained=False).labels.tolist() == [[-100, -100, 2, 3], [-100, -100, 5, -100]]


def test_every_word_is_asked_with_every_request() -> None:
    requests = WorldSource(world=NANO, kind="unsafe", split="test").examples(np.arange(3))
    found = every_word(requests, NANO.words)
    assert len(found) == 3 * len(NANO.words)
    assert [e.kind for e in found[:4]] == [NANO.words[0]] * 3 + [NANO.words[1]]
    assert found[-1].prompt == f"{TRIGGER} {requests[-1].prompt}"
    assert behind("", requests) == requests


def test_a_world_without_marks_has_none() -> None:
    with pytest.raises(TiterError, match="without marks"):
        Marked(source=WorldSource(world=World(), kind="safe"), mark="persona")
