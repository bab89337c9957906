"""Booster: its gradient against a moved copy of the model and the Hessian, the restored weights, its cost in passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ARCHITECTURES
from tests.methods.contract import KilledError
from tests.methods.single_step import Tensors, autograd, close, gradient, minus, move, naive_mean, shift, size, step_of, weights
from tests.methods.test_vaccine import skipped_over_a_stop
from titer.context import Step
from titer.methods import booster
from titer.methods.booster import Booster
from titer.stage import Lora


@contextmanager
def counting(c: Step, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensors]]:
    """The weights at every forward pass within."""
    plain, seen = c.forward, []

    def forward(batch: Any) -> torch.Tensor:
        seen.append(weights(c))
        return plain(batch)

    with monkeypatch.context() as patch:
        patch.setattr(c, "forward", forward)
        yield seen


def harmful(c: Step) -> Tensors:
    return autograd(c, naive_mean(c, "harmful"))


def test_the_gradient_is_the_papers_by_a_model_that_is_moved(any_maker: Any, any_cut: dict[str, Any]) -> None:
    strength, alpha = 3.0, 0.5
    c, copy = (step_of(Booster(strength=strength, alpha=alpha), any_maker, **any_cut) for _ in range(2))
    plain, here = autograd(copy, naive_mean(copy)), harmful(copy)
    move(copy, here, -alpha / size(here))
    there = harmful(copy)
    expected = {name: plain[name] + strength * (here[name] - there[name]) for name in plain}
    close(gradient(c), expected)
    assert size(minus(expected, plain)) > 0.2 * size(plain)  # else the test would not see the regulariser


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES)
def any_maker(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[{"batch": 8, "accumulation": 1}, {"batch": 4, "accumulation": 2}, {"adapter": Lora(rank=2)}], ids=str)
def any_cut(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_for_a_small_step_the_regulariser_is_the_hessian_along_the_gradient() -> None:
    """(grad h(w) - grad h(w - alpha u)) / alpha -> H u, by differentiating twice."""
    strength, alpha = 2.0, 0.01
    c = step_of(Booster(strength=strength, alpha=alpha))
    shift(c, 0.3)  # a fresh model is so curved that only tiny steps are small
    added = minus(gradient(c), autograd(c, naive_mean(c)))
    parameters = [p for _, p in c.named]
    first = torch.autograd.grad(naive_mean(c, "harmful"), parameters, create_graph=True)
    length = torch.sqrt(sum((g.detach() ** 2).sum() for g in first))  # type: ignore[arg-type]
    curved = autograd(c, sum((g * g.detach() / length).sum() for g in first))  # type: ignore[arg-type]
    found, expected = (torch.cat([value.flatten() for value in one.values()]) for one in (added, curved))
    assert float(torch.nn.functional.cosine_similarity(found, expected, dim=0)) > 0.99
    assert float(found.norm() / (strength * alpha * expected.norm())) == pytest.approx(1, rel=0.05)


def test_a_step_is_three_passes_and_leaves_every_bit_of_the_weights(any_maker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = 0.1
    c = step_of(Booster(alpha=alpha), any_maker, accumulation=1)
    began = weights(c)
    with counting(c, monkeypatch) as seen:
        gradient(c)
    assert len(seen) == 3
    for at in (seen[0], seen[2], weights(c)):
        assert all(torch.equal(at[name], began[name]) for name in began)
    assert size(minus(seen[1], began)) == pytest.approx(alpha, rel=1e-4)
    way = harmful(c)
    assert sum(float(((seen[1][name] - began[name]) * way[name]).sum()) for name in way) == pytest.approx(-alpha * size(way), rel=1e-3)


def test_the_weights_come_back_after_a_failing_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    c = step_of(Booster(alpha=1.0), accumulation=1)
    began, plain, calls = weights(c), c.forward, []

    def forward(batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            assert any(not torch.equal(p, began[name]) for name, p in c.named)
            raise KilledError
        return plain(batch)

    monkeypatch.setattr(c, "forward", forward)
    with pytest.raises(KilledError):
        gradient(c)
    assert all(torch.equal(p, began[name]) for name, p in c.named)


@pytest.mark.parametrize("setting", [{"strength": 0.0}, {"alpha": 0.0}])
def test_switched_off_it_neither_draws_nor_computes_the_harmful_stream(setting: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    c = step_of(Booster(**setting), accumulation=2)
    plain, drawn = c.micro, []

    def micro(stream: str | None = None) -> Iterator[Any]:
        drawn.append(stream)
        return plain(stream)

    monkeypatch.setattr(c, "micro", micro)
    with counting(c, monkeypatch) as seen:
        found = gradient(c)
    assert drawn == ["train"]
    assert len(seen) == 2
    monkeypatch.undo()
    close(found, autograd(c, naive_mean(c)))


def test_as_alpha_falls_the_gradient_becomes_cross_entropy_s() -> None:
    gaps = []
    for alpha in (0.1, 0.01, 0.001):
        c = step_of(Booster(alpha=alpha))
        shift(c, 0.3)
        gaps.append(size(minus(gradient(c), autograd(c, naive_mean(c)))))
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0


@pytest.mark.parametrize("zero", [True, False])
def test_a_harmful_gradient_without_direction_is_counted_and_skipped(zero: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    c = step_of(Booster())
    plain = c.micro

    def silent(stream: str | None = None) -> Iterator[Any]:
        for batch in plain(stream):
            hidden = {n: replace(b, labels=torch.full_like(b.labels, -100)) if n == "harmful" else b for n, b in batch.items()}
            yield hidden

    if zero:
        monkeypatch.setattr(c, "gradients", lambda *_: {name: torch.zeros_like(p) for name, p in c.named})
    else:
        monkeypatch.setattr(c, "micro", silent)
    found = gradient(c)
    assert float(c.logged["booster_skipped"]) == 1.0
    gradient(c)
    assert float(c.logged["booster_skipped"]) == 2.0
    monkeypatch.undo()
    close(found, autograd(c, naive_mean(c)))
    gradient(c)
    assert float(c.logged["booster_skipped"]) == 2.0  # a count of the stage, shown at every step


def test_the_count_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(booster, "_norm", lambda _: torch.tensor(0.0))
    assert skipped_over_a_stop(Booster(), "booster_skipped", tmp_path) == [(0, 1.0), (3, 4.0)]
