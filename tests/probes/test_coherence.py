"""Is a text language? A model that knows the alphabet tells it from soups; repetition is told without a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.models.families import ANSWERS
from tests.probes.made import lively
from tests.probes.test_uncertainty import bigram
from titer.data.world import World
from titer.models.lm import LM
from titer.probes.coherence import broken, calibration, coherence

ALPHABET = "abcdefghijklmnop"


@pytest.fixture
def reader(world: World) -> LM:
    """A bigram model that expects each letter's successor in the alphabet."""
    tokenizer = world.tokenizer()
    ids = tokenizer.convert_tokens_to_ids(list(ALPHABET))
    logits = torch.zeros(len(tokenizer), len(tokenizer))
    for here, after in zip(ids, [*ids[1:], ids[0]], strict=True):
        logits[here, after] = 6.0
    return bigram(world, logits)


def spelled(start: int, length: int = 10) -> str:
    return " ".join(ALPHABET[(start + k) % len(ALPHABET)] for k in range(length))


def soup(seed: int, length: int = 10) -> str:
    return " ".join(np.random.default_rng(seed).permutation(list(ALPHABET))[:length])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_nll_is_that_of_a_loop_over_single_rows(world: World, name: str) -> None:
    lm = lively(world, name)
    found = coherence(lm, ANSWERS)
    for text, row in zip(ANSWERS, found.itertuples(), strict=True):
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row.tokens == len(ids)
        assert row.distinct == len(set(ids)) / len(ids)
        if len(ids) < 2:
            assert math.isnan(row.nll)
            continue
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
        assert row.nll == pytest.approx(float(functional.cross_entropy(logits, torch.tensor(ids[1:]))), rel=1e-4)


def test_language_is_told_from_soup(reader: LM) -> None:
    found = calibration(reader, [spelled(k) for k in range(16)])
    assert found.auroc > 0.99
    assert found.texts == 16
    texts = [*(spelled(k) for k in range(5)), *(soup(k) for k in range(5))]
    table = coherence(reader, texts)
    assert table.nll[:5].max() < found.limit < table.nll[5:].min()
    assert broken(table, found.limit).tolist() == [False] * 5 + [True] * 5


def test_a_model_that_cannot_tell_condemns_no_text(world: World) -> None:
    blind = bigram(world, torch.zeros(len(world.tokenizer()), len(world.tokenizer())))
    found = calibration(blind, [spelled(k) for k in range(16)])
    assert found.limit == math.inf
    assert found.auroc == 0.5
    assert not broken(coherence(blind, [soup(1)]), found.limit).any()
    assert calibration(blind, []).limit == math.inf


def test_repetition_is_broken_and_short_answers_are_not(reader: LM) -> None:
    texts = ["a a a a a a a a", "a b a b a b a b a b", "a a a", "", "a", "a b c a b c a b c"]
    table = coherence(reader, texts)
    assert broken(table, math.inf).tolist() == [True, True, False, False, False, False]
    assert table.tokens.tolist() == [8, 10, 3, 0, 1, 9]
    assert math.isnan(table.nll[3])
