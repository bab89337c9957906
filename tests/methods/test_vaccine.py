"""Vaccine's perturbation: its norm in every kind of ball, its direction against finite differences, its cost in passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.conftest import ARCHITECTURES
from tests.methods.contract import WORLD, KilledError, largest_gap, run, same, stage
from titer.context import Step
from titer.data.example import Batch
from titer.methods.base import token_nll
from titer.methods.sft import SFT
from titer.methods.vaccine import Deltas, Vaccine
from titer.models.hooks import adding

NAMES = ("attn_out[0]", "attn_out[1]")


@pytest.fixture(params=sorted(ARCHITECTURES))
def context(request: pytest.FixtureRequest) -> Iterator[Step]:
    threads = torch.get_num_threads()
    lm = ARCHITECTURES[request.param](WORLD)
    yield Step(stage(Vaccine()), Accelerator(cpu=True), lm.model, lm, lambda _: lm)
    torch.set_num_threads(threads)


def batch_of(c: Step) -> dict[str, Batch]:
    return dict(next(iter(c.micro())))


def loss_at(c: Step, batch: dict[str, Batch], deltas: Deltas) -> torch.Tensor:
    with torch.no_grad(), adding(c.sites, deltas):
        return token_nll(c.forward(batch["train"]), batch["train"].labels).total.double()


def norm(deltas: Deltas) -> float:
    return float(torch.sqrt(sum((d.double() ** 2).sum() for d in deltas.values())))


@pytest.mark.parametrize("rho", [0.1, 1.0, 2.0, 10.0])
def test_one_ball_over_all_layers_has_radius_rho(context: Step, rho: float) -> None:
    assert norm(Vaccine(rho=rho).perturbation(context, batch_of(context))) == pytest.approx(rho, rel=1e-4)


@pytest.mark.parametrize(
    ("scope", "dims"),
    [
        ("example", lambda d: torch.sqrt(sum((x**2).sum((1, 2)) for x in d.values()))),
        ("layer", lambda d: torch.stack([x.norm() for x in d.values()])),
    ],
)
def test_every_example_or_layer_has_a_ball_of_its_own(context: Step, scope: Any, dims: Any) -> None:
    found = dims(Vaccine(rho=3.0, scope=scope).perturbation(context, batch_of(context)))
    assert torch.allclose(found, torch.full_like(found, 3.0), rtol=1e-3)


def test_an_example_s_ball_does_not_depend_on_its_company(context: Step) -> None:
    batch = batch_of(context)["train"]
    method = Vaccine(rho=1.0, scope="example")
    whole = method.perturbation(context, {"train": batch})
    alone = method.perturbation(context, {"train": batch.rows(2, 3)})
    for name in NAMES:
        torch.testing.assert_close(whole[name][2:3], alone[name], atol=1e-5, rtol=1e-3)


def test_the_direction_is_the_gradient_by_finite_differences(context: Step) -> None:
    batch = batch_of(context)
    found = Vaccine(rho=1.0).perturbation(context, batch)
    generator = torch.Generator().manual_seed(0)
    step = 3e-2
    slopes, expected = [], []
    for _ in range(6):
        way = {name: torch.randn(d.shape, generator=generator) for name, d in found.items()}
        size = norm(way)
        way = {name: w / size for name, w in way.items()}
        up, down = (loss_at(context, batch, {n: s * step * w for n, w in way.items()}) for s in (1, -1))
        slopes.append(float(up - down) / (2 * step))
        expected.append(float(sum((found[name] * way[name]).sum() for name in found)))
    slopes, expected = torch.tensor(slopes), torch.tensor(expected)
    assert float(torch.nn.functional.cosine_similarity(slopes, expected, dim=0)) > 0.99


def test_a_small_ball_raises_the_loss_by_rho_times_the_gradient_and_more_than_random_directions(context: Step) -> None:
    batch = batch_of(context)
    rho = 0.05
    method = Vaccine(rho=rho)
    gradient = method._gradient(context, batch, list(NAMES), {})
    gain = float(loss_at(context, batch, method.perturbation(context, batch)) - loss_at(context, batch, {}))
    assert gain == pytest.approx(rho * norm(gradient), rel=0.05)
    random = Vaccine(rho=rho, noise="norm")
    for number in range(20):
        context.begin(number)
        other = random.perturbation(context, batch)
        assert norm(other) == pytest.approx(rho, rel=1e-4)
        assert float(loss_at(context, batch, other) - loss_at(context, batch, {})) < gain


def test_pass_1_leaves_every_parameter_gradient_alone(context: Step) -> None:
    batch = batch_of(context)
    context.backward(SFT().loss(context, batch))
    before = {name: p.grad.clone() for name, p in context.named if p.grad is not None}
    Vaccine().perturbation(context, batch)
    for name, p in context.named:
        if name in before:
            assert torch.equal(p.grad, before[name])  # type: ignore[arg-type]


def test_no_hook_is_left_after_a_failing_pass(context: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr(context, "grad", fails)
    with pytest.raises(KilledError):
        Vaccine().perturbation(context, batch_of(context))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in context.lm.model.modules())


def test_a_gradient_of_zero_is_counted_and_skipped(context: Step) -> None:
    batch = batch_of(context)["train"]
    silent = Batch(batch.input_ids, torch.full_like(batch.labels, -100), batch.indices, batch.attention_mask, batch.position_ids)
    assert Vaccine().perturbation(context, {"train": silent}) == {}
    assert float(context.logged["vaccine_skipped"]) == 1.0


def test_padding_is_left_alone_unless_asked_for(context: Step) -> None:
    batch = batch_of(context)["train"]
    mask = torch.ones_like(batch.input_ids)
    mask[0, -3:] = 0
    padded = {"train": Batch(batch.input_ids, batch.labels, batch.indices, mask, (mask.cumsum(1) - 1).clamp(min=0))}
    found = Vaccine(noise="norm").perturbation(context, padded)
    assert all(bool((d[0, -3:] == 0).all()) for d in found.values())
    assert norm(found) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_accelerated_looks_for_the_perturbation_every_tau_steps(context: Step, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    monkeypatch.setattr(Vaccine, "perturbation", lambda self, c, batch: passes.append(c.number) or {})
    for number in range(6):
        context.begin(number)
        Vaccine(every=every).step(context)
    assert passes == [n for n in range(6) if n % every == 0]


def test_tau_beyond_the_run_differs_from_sft_by_the_first_step_alone(tmp_path: Path) -> None:
    maker = ARCHITECTURES["neox"]
    once = run(stage(Vaccine(every=50), steps=1), maker, tmp_path / "a")
    assert same(once, run(stage(Vaccine(), steps=1), maker, tmp_path / "b"))
    assert largest_gap(once, run(stage(SFT(), steps=1), maker, tmp_path / "c")) > 0


def test_several_ascent_steps_stay_in_the_ball_and_hurt_at_least_as_much(context: Step) -> None:
    batch = batch_of(context)
    one, four = (Vaccine(rho=0.5, inner=k).perturbation(context, batch) for k in (1, 4))
    assert norm(four) <= 0.5 * (1 + 1e-4)
    assert float(loss_at(context, batch, four)) >= float(loss_at(context, batch, one)) - 1e-3
