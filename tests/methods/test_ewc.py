"""EWC: the Fisher information against a loop over single examples, the pull against autograd."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ARCHITECTURES, neox
from tests.methods.contract import largest_gap, run, stage, streams
from tests.methods.single_step import Tensors, autograd, close, gradient, naive_mean, shift, size, step_of, token_logs, weights
from titer.context import Step
from titer.data.example import Batch
from titer.methods.ewc import EWC
from titer.stage import Lora


def fisher(c: Step) -> Tensors:
    return {name: c.state[f"fisher/{name}"] for name, _ in c.named}


def first(c: Step, count: int) -> Batch:
    return next(iter(c.first("alignment", count)))["alignment"]


def per_example(c: Step, count: int) -> Tensors:
    """The mean over examples of the squared gradient of each answer's log-likelihood."""
    total = {name: torch.zeros_like(p) for name, p in c.named}
    for i in range(count):
        one = autograd(c, token_logs(c.lm, first(c, count).rows(i, i + 1))[0].sum())
        total = {name: t + one[name] ** 2 / count for name, t in total.items()}
    return total


@pytest.mark.parametrize("maker", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_the_fisher_of_groups_of_one_is_the_loop_over_examples(maker: Any) -> None:
    c = step_of(EWC(examples=6, group=1, fisher="example"), maker)
    close(fisher(c), per_example(c, 6))


def test_over_all_signs_a_group_s_fisher_is_that_of_its_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is unbiased whatever the examples share: exact as a mean over the 2^3 signs."""
    found = []
    for bits in product((0, 1), repeat=3):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda *_, bits=bits, **__: torch.tensor(bits))
            found.append(fisher(step_of(EWC(examples=3, group=3, fisher="example"))))
    c = step_of(EWC(examples=3, group=3, fisher="example"))
    mean = {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}
    close(mean, per_example(c, 3))
    assert largest_gap(found[0], found[1]) > 0


def test_the_code_s_fisher_is_the_sum_of_squared_batch_means() -> None:
    c = step_of(EWC(examples=6, group=3, fisher="batch"))
    total = {name: torch.zeros_like(p) for name, p in c.named}
    for start in (0, 3):
        mean = autograd(c, torch.cat(token_logs(c.lm, first(c, 6).rows(start, start + 3))).mean())
        total = {name: t + mean[name] ** 2 for name, t in total.items()}
    close(fisher(c), total)


def test_a_smaller_pool_is_seen_once() -> None:
    pools = {name: stream.model_copy(update={"pool": 6}) for name, stream in streams(EWC).items()}
    small, large = (fisher(step_of(EWC(examples=n, group=1), streams=pools)) for n in (6, 50))
    close(large, small, rtol=1e-6)


@pytest.mark.parametrize("changes", [{"batch": 8, "accumulation": 1}, {"batch": 4, "accumulation": 2}])
def test_the_gradient_is_that_of_the_penalised_loss(changes: dict[str, int]) -> None:
    strength = 40.0
    c = step_of(EWC(strength=strength, examples=10), **changes)
    held, began = fisher(c), weights(c)
    shift(c)
    penalty = torch.stack([(held[name] * (p - began[name]) ** 2).sum() for name, p in c.named]).sum()
    close(gradient(c), autograd(c, naive_mean(c) + strength * penalty))
    assert float(c.logged["ewc_penalty"]) == pytest.approx(strength * float(penalty.detach()), rel=1e-4)
    pull = {name: 2 * strength * held[name] * (p.detach() - began[name]) for name, p in c.named}
    assert size(pull) > 0.1 * size(autograd(c, naive_mean(c)))  # else the test would not see it


def test_at_the_start_it_does_not_pull() -> None:
    c = step_of(EWC(examples=10))
    close(gradient(c), autograd(c, naive_mean(c)))


@pytest.mark.long
def test_what_the_fisher_holds_moves_less(tmp_path: Path) -> None:
    held = fisher(step_of(EWC(examples=64)))
    began = neox(stage(EWC()).streams["train"].parts[0].source.world).model.state_dict()
    moved = []
    for strength in (0.0, 1e4, 1e9):
        after = run(stage(EWC(strength=strength, examples=64), steps=12), neox, tmp_path / str(strength))
        moved.append(float(sum((held[name] * (after[name] - began[name]) ** 2).sum() for name in held)))
    assert moved[1] < moved[0]
    assert moved[2] < moved[0]


def test_setup_has_no_dropout_and_leaves_the_model_as_it_was() -> None:
    plain, dropped = (step_of(EWC(examples=10), adapter=Lora(rank=2, dropout=p)) for p in (0.0, 0.5))
    close(fisher(dropped), fisher(plain), rtol=1e-6)
    assert dropped.lm.model.training
    assert all(p.grad is None for _, p in dropped.named)


def test_of_a_fresh_adapter_only_b_is_held() -> None:
    held = fisher(step_of(EWC(examples=10), adapter=Lora(rank=2)))
    assert all(bool((value > 0).any()) == ("lora_B" in name) for name, value in held.items())


def test_without_strength_nothing_is_kept() -> None:
    assert step_of(EWC(strength=0.0)).state == {}
