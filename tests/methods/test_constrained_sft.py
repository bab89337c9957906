"""Constrained SFT: the loss token by token, its token weights against autograd, its limit, its places."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ARCHITECTURES
from tests.methods.contract import WORLD
from tests.methods.single_step import autograd, close, gradient, minus, naive_mean, shift, size, step_of, token_logs
from titer.data.encode import encode
from titer.data.example import IGNORE, Batch
from titer.methods.constrained_sft import ConstrainedSFT
from titer.stage import Lora

PROMPTS = ["<bos> f1 f0 <sot> a b c <eot>", "<bos> f2 f1 <sot> a b c d e f <eot>", "<bos> f0 f0 <sot> e <eot>"]
ANSWERS = ["a b", "<null>", "c d e f a b c"]


def by_hand(logs: list[torch.Tensor], before: list[torch.Tensor]) -> float:
    """The paper's sum at its betas: 0.5, then 2.0 up to the fifth token, then 0.1."""
    total = 0.0
    for now_row, before_row in zip(logs, before, strict=True):
        for t, (now, ref) in enumerate(zip(now_row.tolist(), before_row.tolist(), strict=True), start=1):
            beta = 0.5 if t == 1 else 2.0 if t <= 5 else 0.1
            total += 2 / beta * math.log(1 + math.exp(beta * (ref - now)))
    return total


class Given:
    """A context whose model and reference are given logits."""

    def __init__(self, logits: torch.Tensor, before: torch.Tensor) -> None:
        self.logits, self.before, self.logged = logits, before, {}

    def forward(self, _: Any) -> torch.Tensor:
        return self.logits

    @contextlib.contextmanager
    def reference(self) -> Iterator[Callable[[Any], torch.Tensor]]:
        yield lambda _: self.before

    def log(self, name: str, value: Any) -> None:
        self.logged[name] = value


def given(scale: float = 2.0) -> tuple[Given, Batch]:
    """Two rows of random logits over seven words: eight answer tokens from place 1 on, and three from place 4 on."""
    generator = torch.Generator().manual_seed(0)
    logits, before = (scale * torch.randn(2, 10, 7, generator=generator) for _ in range(2))
    labels = torch.randint(0, 7, (2, 10), generator=generator)
    labels[0, [0, 9]] = IGNORE
    labels[1, :4] = labels[1, 7:] = IGNORE
    return Given(logits.requires_grad_(), before), Batch(labels.clamp(min=0), labels, torch.arange(2))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("maker", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_loss_is_the_formula_away_from_the_start(maker: Any, side: Any) -> None:
    c = step_of(ConstrainedSFT(), maker)
    batch = encode(c.lm.tokenizer, PROMPTS, ANSWERS, np.arange(3), side=side)
    shift(c, 0.3)
    logs, before = token_logs(c.lm, batch), token_logs(maker(WORLD), batch)
    assert max(len(row) for row in logs) > 6
    found = c.stage.method.loss(c, {"train": batch})
    assert int(found.over) == sum(len(row) for row in logs)
    assert float(found.total.detach()) == pytest.approx(by_hand(logs, before), rel=1e-4)


def test_beta_goes_by_the_answer_s_own_tokens() -> None:
    i = IGNORE
    labels = torch.tensor([[i, i, 5, 5, 5, 5, 5, 5, 5, i], [i, i, i, i, i, i, i, 5, 5, 5], [5, i, 5, i, 5, i, i, i, i, i]])
    trained = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=i) != i
    found = [row[used].tolist() for row, used in zip(ConstrainedSFT().betas(labels), trained, strict=True)]
    assert found == [pytest.approx(row) for row in ([0.5, 2, 2, 2, 2, 0.1, 0.1], [0.5, 2, 2], [0.5, 2])]
    two = ConstrainedSFT(first=1.0, early=3.0, beta=0.2, early_tokens=2).betas(labels)[0][trained[0]]
    assert two.tolist() == pytest.approx([1, 3, 0.2, 0.2, 0.2, 0.2, 0.2])
    none = ConstrainedSFT(early_tokens=0).betas(labels)[0][trained[0]]
    assert none.tolist() == pytest.approx([0.1] * 7)


def test_each_token_s_gradient_is_cross_entropy_s_times_its_weight() -> None:
    c, batch = given()
    (found,) = torch.autograd.grad(ConstrainedSFT().loss(c, {"train": batch}).total, c.logits)
    seen = []
    for b in range(2):
        place = 0
        for t in range(9):
            label = int(batch.labels[b, t + 1])
            if label == IGNORE:
                assert bool((found[b, t] == 0).all())
                continue
            place += 1
            beta = 0.5 if place == 1 else 2.0 if place <= 5 else 0.1
            now, before = (torch.log_softmax(one[b, t].detach().double(), 0) for one in (c.logits, c.before))
            weight = 2 * (1 - 1 / (1 + math.exp(-beta * float(now[label] - before[label]))))
            plain = now.exp() - torch.nn.functional.one_hot(torch.tensor(label), 7)
            torch.testing.assert_close(found[b, t].double(), weight * plain, rtol=1e-4, atol=1e-6)
            seen.append(weight)
    assert len(seen) == 11
    assert 0 < min(seen) < 0.9
    assert 1.1 < max(seen) < 2
    assert float(c.logged["token_weight"]) == pytest.approx(sum(seen) / 11, rel=1e-4)


def test_weights_are_between_0_and_2_and_1_at_the_start() -> None:
    drift = torch.linspace(-6, 6, 49)
    for beta in (0.1, 0.5, 2.0):
        found = ConstrainedSFT.weights(drift, torch.tensor(beta))
        assert bool(((found > 0) & (found < 2)).all())
        assert bool((found.diff() > 0).all())
        assert float(found[24]) == 1.0


def test_at_the_start_it_is_a_known_number_with_cross_entropy_s_gradient() -> None:
    c = step_of(ConstrainedSFT(beta=0.4, first=0.4, early=0.4))
    batch = dict(next(iter(c.micro())))
    loss = c.stage.method.loss(c, batch)
    assert float(loss.total.detach()) / int(loss.over) == pytest.approx(2 / 0.4 * math.log(2), rel=1e-5)
    close(gradient(c), autograd(c, naive_mean(c)))


def test_as_beta_falls_the_gradient_becomes_cross_entropy_s() -> None:
    gaps = []
    for beta in (1.0, 0.1, 0.01, 0.0):
        c = step_of(ConstrainedSFT(beta=beta, first=beta, early=beta))
        shift(c, 0.3)
        plain = autograd(c, naive_mean(c))
        gaps.append(size(minus(gradient(c), plain)) / size(plain))
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2] > 0
    assert gaps[3] < 1e-5


def test_a_token_that_drifted_far_gives_no_infinity() -> None:
    c, batch = given(scale=1e4)
    loss = ConstrainedSFT(early=50.0).loss(c, {"train": batch}).total
    (found,) = torch.autograd.grad(loss, c.logits)
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(found).all())


def test_under_an_adapter_the_reference_is_the_model_without_it() -> None:
    c = step_of(ConstrainedSFT(), adapter=Lora(rank=2))
    batch = dict(next(iter(c.micro())))
    shift(c, 0.3)
    logs, before = token_logs(c.lm, batch["train"]), token_logs(ARCHITECTURES["neox"](WORLD), batch["train"])
    found = c.stage.method.loss(c, batch)
    assert float(found.total.detach()) == pytest.approx(by_hand(logs, before), rel=1e-4)
    assert gradient(c).keys() == {name for name, _ in c.named}
