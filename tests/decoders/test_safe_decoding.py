"""SafeDecoding against its code's loop over growing candidate sets, written out."""

from __future__ import annotations

import math

import pytest
import torch

from tests.conftest import neox
from tests.decoders.contract import GREEDY, answers, models
from tests.models.families import PROMPTS
from titer.decoders.base import Guided
from titer.decoders.safe_decoding import SafeDecoding, steered
from titer.models.lm import Decoding

RNG = torch.Generator().manual_seed(0)


def by_hand(own: list[float], expert: list[float], alpha: float, candidates: int) -> dict[int, float]:
    """Token -> probability, over the sample space."""
    orders = [sorted(range(len(p)), key=lambda i: -p[i]) for p in (own, expert)]
    k = candidates
    while len(common := set(orders[0][:k]) & set(orders[1][:k])) < candidates and k < len(own):
        k += 1
    raised = {i: max(own[i] + alpha * (expert[i] - own[i]), 1e-8) for i in common}
    return {i: value / sum(raised.values()) for i, value in raised.items()}


@pytest.mark.parametrize(("alpha", "candidates"), [(0.0, 5), (1.0, 3), (3.0, 5), (3.0, 1), (2.0, 40)])
def test_it_is_the_code_s_sample_space_and_its_probabilities(alpha: float, candidates: int) -> None:
    own, expert = torch.randn(2, 6, 20, generator=RNG)
    found = steered(own, expert, alpha, candidates).softmax(-1)
    for row in range(6):
        wanted = by_hand(own[row].softmax(-1).tolist(), expert[row].softmax(-1).tolist(), alpha, candidates)
        assert {i for i, p in enumerate(found[row].tolist()) if p} == set(wanted)
        assert all(math.isclose(float(found[row, i]), p, rel_tol=1e-3, abs_tol=1e-7) for i, p in wanted.items())


def test_only_the_first_tokens_are_steered() -> None:
    """Behind its first token an answer goes on as the model's own does."""
    lm, others = models(neox, SafeDecoding)
    found = answers(lm, Guided(SafeDecoding(first=1, alpha=50.0)), others)
    assert found != lm.generate(PROMPTS, GREEDY)
    for prompt, one in zip(PROMPTS, found, strict=True):
        if one.text:
            head, _, tail = one.text.partition(" ")
            (rest,) = lm.generate([prompt], Decoding(max_new_tokens=GREEDY.max_new_tokens - 1), prefixes=[head])
            assert rest.text == tail
