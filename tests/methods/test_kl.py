"""KL: the divergence against sums over the vocabulary token by token, its reference, and what it does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ARCHITECTURES
from tests.methods.contract import WORLD
from tests.methods.single_step import answer_logits, autograd, close, gradient, move, naive_mean, shift, step_of, token_logs
from titer.data.encode import encode
from titer.data.example import IGNORE, Batch
from titer.methods.kl import KL, token_kl
from titer.models.lm import LM
from titer.stage import Lora

PROMPTS = ["<bos> f1 f0 <sot> a b c <eot>", "<bos> f2 f1 <sot> a b c d e f <eot>", "<bos> f0 f0 <sot> e <eot>"]
ANSWERS = ["a b", "<null>", "c d e f a b c"]


def divergences(reference: LM, lm: LM, batch: Batch) -> list[float]:
    """Each trained token's KL(reference || lm), as a sum over the vocabulary."""
    found = []
    for (before, _), (now, _) in zip(answer_logits(reference, batch), answer_logits(lm, batch), strict=True):
        for a, b in zip(before.tolist(), now.tolist(), strict=True):
            of_a, of_b = math.log(sum(map(math.exp, a))), math.log(sum(map(math.exp, b)))
            found.append(sum(math.exp(x - of_a) * ((x - of_a) - (y - of_b)) for x, y in zip(a, b, strict=True)))
    return found


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("maker", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_loss_is_the_formula_away_from_the_start(maker: Any, side: Any) -> None:
    strength = 0.7
    c = step_of(KL(strength=strength), maker)
    batch = encode(c.lm.tokenizer, PROMPTS, ANSWERS, np.arange(3), side=side)
    shift(c, 0.3)
    kl, logs = divergences(maker(WORLD), c.lm, batch), torch.cat(token_logs(c.lm, batch))
    found = c.stage.method.loss(c, {"train": batch})
    assert int(found.over) == len(kl) == len(logs)
    assert float(found.total.detach()) == pytest.approx(-float(logs.detach().sum()) + strength * sum(kl), rel=1e-4)
    assert float(c.logged["kl"]) == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert sum(kl) / len(kl) > 0.01


def test_a_known_divergence_and_its_direction() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln(4/3) / 2; the other way round it is another number."""
    labels = torch.tensor([[IGNORE, 1, IGNORE]])
    half, quarter = torch.log(torch.tensor([0.5, 0.5])), torch.log(torch.tensor([0.25, 0.75]))
    one, other = (torch.stack([row, torch.randn(2), torch.randn(2)])[None] for row in (half, quarter))
    assert float(token_kl(one, other, labels)) == pytest.approx(math.log(4 / 3) / 2, rel=1e-5)
    assert float(token_kl(other, one, labels)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-5)


def test_only_trained_tokens_count() -> None:
    generator = torch.Generator().manual_seed(0)
    before, now = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    labels = torch.tensor([[3, IGNORE, 2, 1, IGNORE], [IGNORE, IGNORE, IGNORE, IGNORE, 4]])
    counted = torch.tensor([[False, True, True, False, False], [False, False, False, True, False]])
    whole = token_kl(before, now, labels)
    torch.testing.assert_close(whole, token_kl(before, now + 5 * torch.randn(now.shape) * ~counted[:, :, None], labels))
    assert not torch.allclose(whole, token_kl(before, now + torch.randn(now.shape) * counted[:, :, None], labels))


def test_at_the_start_it_is_zero_and_the_gradient_is_cross_entropy_s() -> None:
    c = step_of(KL(strength=10.0))
    close(gradient(c), autograd(c, naive_mean(c)))
    assert abs(float(c.logged["kl"])) < 1e-6


def test_under_an_adapter_the_reference_is_the_model_without_it() -> None:
    c = step_of(KL(strength=1.0), adapter=Lora(rank=2))
    batch = dict(next(iter(c.micro())))
    shift(c, 0.3)
    kl = divergences(ARCHITECTURES["neox"](WORLD), c.lm, batch["train"])
    c.stage.method.loss(c, batch)
    assert float(c.logged["kl"]) == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert gradient(c).keys() == {name for name, _ in c.named}


@pytest.mark.long
def test_a_strong_one_keeps_the_predictions() -> None:
    found = []
    for strength in (0.0, 1.0, 30.0):
        c = step_of(KL(strength=strength))
        for number in range(12):
            move(c, gradient(c, number), -0.02)
        batch = next(iter(c.micro()))["train"]
        kl = divergences(ARCHITECTURES["neox"](WORLD), c.lm, batch)
        found.append(sum(kl) / len(kl))
    assert found[0] > found[1] > found[2] > 0
