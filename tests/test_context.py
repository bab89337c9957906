"""What a method can ask of the loop: gradients, shifts, bundles, references, against plain autograd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator

from tests.conftest import neox
from tests.methods.contract import WORLD, stage
from titer.context import Step
from titer.core.errors import TiterError
from titer.methods.base import Loss, token_nll
from titer.methods.sft import SFT
from titer.models.lm import LM
from titer.stage import Lora
from titer.train import _prepare_for_training


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    threads = torch.get_num_threads()
    yield Accelerator(cpu=True)
    torch.set_num_threads(threads)


def step(accelerator: Accelerator, accumulation: int = 2, lm: LM | None = None, **changes: object) -> Step:
    lm = lm or neox(WORLD)
    made = stage(SFT(), accumulation=accumulation, batch=4, **changes)
    return Step(made, accelerator, lm.model, lm, lambda _: neox(WORLD))


def loss_of(c: Step):  # type: ignore[no-untyped-def]
    def loss(batch) -> Loss:  # type: ignore[no-untyped-def]
        return token_nll(c.forward(batch["train"]), batch["train"].labels)

    return loss


def by_hand(c: Step) -> dict[str, torch.Tensor]:
    """Mean gradient over all micro-batches in one plain pass."""
    losses = [loss_of(c)(batch) for batch in c.micro()]
    mean = sum(one.total for one in losses) / sum(one.over for one in losses)
    grads = torch.autograd.grad(mean, [p for _, p in c.named])
    return {name: g for (name, _), g in zip(c.named, grads, strict=True)}


def test_backward_and_settle_give_the_mean_gradient(accelerator: Accelerator) -> None:
    c = step(accelerator)
    expected = by_hand(c)
    SFT().step(c)
    c.settle()
    for name, p in c.named:
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-7)


def test_gradients_touches_no_parameter_gradient(accelerator: Accelerator) -> None:
    c = step(accelerator)
    bundle = c.gradients(loss_of(c))
    assert all(p.grad is None for _, p in c.named)
    for name, g in by_hand(c).items():
        torch.testing.assert_close(bundle[name], g, rtol=1e-4, atol=1e-7)


def test_add_comes_after_the_division(accelerator: Accelerator) -> None:
    c = step(accelerator)
    bundle = c.gradients(loss_of(c))
    SFT().step(c)
    c.add(bundle, -1.0)
    c.settle()
    assert max(float(p.grad.abs().max()) for _, p in c.named if p.grad is not None) < 1e-6


def test_shifted_moves_by_the_size_and_restores_every_bit(accelerator: Accelerator) -> None:
    c = step(accelerator)
    bundle = c.gradients(loss_of(c))
    before = {name: p.detach().clone() for name, p in c.named}
    with c.shifted(bundle, 0.5):
        moved = sum(float(((p.detach() - before[name]) ** 2).sum()) for name, p in c.named) ** 0.5
        assert moved == pytest.approx(0.5, rel=1e-4)
    assert all(torch.equal(p, before[name]) for name, p in c.named)
    with pytest.raises(RuntimeError, match="inside"), c.shifted(bundle, 0.5):
        raise RuntimeError("inside")
    assert all(torch.equal(p, before[name]) for name, p in c.named)


def test_a_shift_along_nothing_is_refused(accelerator: Accelerator) -> None:
    c = step(accelerator)
    with pytest.raises(ValueError, match="norm"), c.shifted({name: torch.zeros_like(p) for name, p in c.named}, 1.0):
        pass


def test_micro_gives_the_same_batches_again(accelerator: Accelerator) -> None:
    c = step(accelerator)
    first = [batch["train"].input_ids for batch in c.micro()]
    again = [batch["train"].input_ids for batch in c.micro("train")]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    c.begin(1)
    assert not torch.equal(first[0], next(iter(c.micro()))["train"].input_ids)


def test_reference_is_the_model_as_the_stage_began(accelerator: Accelerator) -> None:
    c = step(accelerator)
    batch = next(iter(c.micro()))["train"]
    before = c.forward(batch).detach()
    with torch.no_grad():
        for _, p in c.named:
            p.add_(0.1)
    with c.reference() as frozen:
        torch.testing.assert_close(frozen(batch), before)
    assert not torch.allclose(c.forward(batch), before)


def test_reference_with_an_adapter_is_the_adapter_off(accelerator: Accelerator) -> None:
    lm = neox(WORLD)
    made = stage(SFT(), adapter=Lora(rank=2))
    plain = neox(WORLD).model
    _prepare_for_training(lm, made)
    c = Step(made, accelerator, lm.model, lm, lambda _: neox(WORLD))
    batch = next(iter(c.micro()))["train"]
    with torch.no_grad():
        for _, p in c.named:
            p.add_(0.1)
    with c.reference() as frozen:
        torch.testing.assert_close(frozen(batch), plain(**batch.inputs()).logits)
    assert not torch.allclose(c.forward(batch), plain(**batch.inputs()).logits)


def test_grad_goes_to_the_asked_tensors_alone(accelerator: Accelerator) -> None:
    c = step(accelerator)
    x = torch.ones(3, requires_grad=True)
    (found,) = c.grad((x**2).sum(), [x])
    torch.testing.assert_close(found, torch.full((3,), 2.0))
    assert x.grad is None


def test_an_unread_model_is_an_error(accelerator: Accelerator) -> None:
    with pytest.raises(TiterError, match="unknown model"):
        step(accelerator).model("teacher")


def test_a_step_without_a_gradient_is_an_error(accelerator: Accelerator) -> None:
    with pytest.raises(TiterError, match="produced no gradient"):
        step(accelerator).settle()


def test_randomness_is_a_function_of_the_step(accelerator: Accelerator) -> None:
    c = step(accelerator)
    c.begin(5)
    first = torch.rand(3, generator=c.rng)
    c.begin(6)
    other = torch.rand(3, generator=c.rng)
    c.begin(5)
    assert torch.equal(first, torch.rand(3, generator=c.rng))
    assert not torch.equal(first, other)
