"""Vaccine's perturbation over eight families: its norm in every kind of ball, its direction against finite differences and
against the official rule written anew, its cost in passes and operations, and the cheaper forms."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import ARCHITECTURES
from tests.methods.architectures import FAMILY
from tests.methods.contract import WORLD, KilledError, check_resume, largest_gap, run, same, stage
from titer.context import Step
from titer.core.config import build
from titer.core.errors import TiterError
from titer.data.example import Batch, join
from titer.methods import vaccine
from titer.methods.base import Method
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.ball import Deltas, Scaled, gradients_at
from titer.models.hooks import adding
from titer.models.lm import LM
from titer.train import train

NAMES = ("attn_out[0]", "attn_out[1]")


def context_of(lm: LM) -> Step:
    return Step(stage(Vaccine()), Accelerator(cpu=True), lm.model, lm, lambda _: lm)


@pytest.fixture(params=sorted(FAMILY))
def context(request: pytest.FixtureRequest) -> Iterator[Step]:
    threads = torch.get_num_threads()
    yield context_of(FAMILY[request.param](WORLD))
    torch.set_num_threads(threads)


@pytest.fixture
def llama() -> Iterator[Step]:
    threads = torch.get_num_threads()
    yield context_of(FAMILY["llama"](WORLD))
    torch.set_num_threads(threads)


def batch_of(c: Step) -> dict[str, Batch]:
    return dict(next(iter(c.micro())))


def padded_of(c: Step, places: int = 3) -> dict[str, Batch]:
    """The batch with the last places of its first row behind the mask, unlabelled."""
    batch = batch_of(c)["train"]
    mask = torch.ones_like(batch.input_ids)
    mask[0, -places:] = 0
    labels = batch.labels.masked_fill(mask == 0, -100)
    return {"train": Batch(batch.input_ids, labels, batch.indices, mask, (mask.cumsum(1) - 1).clamp(min=0))}


def loss_at(c: Step, batch: dict[str, Batch], deltas: Deltas) -> torch.Tensor:
    return losses_at(c, batch, deltas).sum()


@torch.no_grad()
def losses_at(c: Step, batch: dict[str, Batch], deltas: Deltas) -> torch.Tensor:
    """Each row's loss in float64, (B,)."""
    with adding(c.sites, deltas):
        logits = c.forward(batch["train"])[:, :-1].double()
    wanted = batch["train"].labels[:, 1:]
    found = logits.log_softmax(-1).gather(2, wanted.clamp(min=0)[:, :, None])[:, :, 0]
    return -(found * (wanted != -100)).sum(1)


def norm(deltas: Deltas) -> float:
    return float(torch.sqrt(sum((d.double() ** 2).sum() for d in deltas.values())))


def gradient_of(c: Step, batch: dict[str, Batch]) -> Deltas:
    return gradients_at(c.sites, NAMES, lambda: SFT().loss(c, batch).total, c.grad)


def stepped(c: Step, method: Method, batches: list[dict[str, Batch]], number: int = 0) -> dict[str, torch.Tensor]:
    """The gradients of one step on these micro-batches, settled; the parameters' own are cleared before."""
    c.lm.model.zero_grad()
    c.begin(number)
    c._last = True
    c.micro = lambda stream=None: iter(batches)  # type: ignore[method-assign,assignment]
    method.step(c)
    c.settle()
    return {name: p.grad.clone() for name, p in c.named if p.grad is not None}


def gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return largest_gap(a, b)


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


def test_the_direction_is_the_gradient_by_autograd_and_by_finite_differences(context: Step) -> None:
    batch = batch_of(context)
    found = Vaccine(rho=1.0).perturbation(context, batch)
    flat, slope = (torch.cat([one[name].flatten() for name in NAMES]) for one in (found, official_gradient(context, batch)))
    assert float(torch.nn.functional.cosine_similarity(flat, slope, dim=0)) > 0.9999
    context.lm.model.double()
    generator = torch.Generator().manual_seed(0)
    step = 1e-4
    slopes, expected = [], []
    for _ in range(6):
        way = {name: torch.randn(d.shape, generator=generator, dtype=torch.float64) for name, d in found.items()}
        size = norm(way)
        up, down = (loss_at(context, batch, {n: s * step * w / size for n, w in way.items()}) for s in (1, -1))
        slopes.append(float(up - down) / (2 * step))
        expected.append(float(sum((found[name] * way[name]).sum() for name in found)) / size * float(slope.norm()))
    assert slopes == pytest.approx(expected, rel=1e-2, abs=1e-3 * float(slope.norm()))


def test_a_small_ball_raises_the_loss_by_rho_times_the_gradient_and_more_than_a_hundred_random_directions(context: Step) -> None:
    batch = {"train": batch_of(context)["train"].rows(0, 4)}
    rho, clean = 0.05, loss_at(context, batch, {})
    gain = float(loss_at(context, batch, Vaccine(rho=rho).perturbation(context, batch)) - clean)
    assert gain == pytest.approx(rho * norm(gradient_of(context, batch)), rel=0.05)
    random = Vaccine(rho=rho, noise="norm")
    others = [(context.begin(number), random.perturbation(context, batch))[1] for number in range(100)]
    assert [norm(other) for other in others] == pytest.approx([rho] * 100, rel=1e-4)
    many = join([batch["train"]] * 100, pad_id=0)
    together = {name: torch.cat([other[name] for other in others]) for name in NAMES}
    gains = losses_at(context, {"train": many}, together).view(100, 4).sum(1) - clean
    assert float(gains.max()) < gain


def test_no_radius_is_sft_bit_for_bit_and_leaves_no_hook(context: Step) -> None:
    batch = padded_of(context)
    plain = stepped(context, SFT(), [batch])
    assert same(plain, stepped(context, Vaccine(rho=0.0), [batch]))
    assert not same(plain, stepped(context, Vaccine(), [batch]))
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in context.lm.model.modules())


def test_pass_1_leaves_every_parameter_gradient_alone(context: Step) -> None:
    batch = batch_of(context)
    context.backward(SFT().loss(context, batch))
    before = {name: p.grad.clone() for name, p in context.named if p.grad is not None}
    Vaccine().perturbation(context, batch)
    assert same(before, {name: p.grad for name, p in context.named if p.grad is not None})


def test_with_accumulation_the_gradient_is_that_of_all_perturbed_micro_batches(context: Step) -> None:
    whole = batch_of(context)["train"]
    parts = [{"train": whole.rows(0, 3)}, {"train": whole.rows(3, 8)}]
    found = stepped(context, Vaccine(), parts)
    total = {name: torch.zeros_like(p) for name, p in context.named if name in found}
    count = 0
    for batch in parts:
        deltas = Vaccine().perturbation(context, batch)
        with adding(context.sites, deltas):
            one = SFT().loss(context, batch)
            grads = torch.autograd.grad(one.total, [p for name, p in context.named if name in found])
        total = {name: t + g for (name, t), g in zip(total.items(), grads, strict=True)}
        count += int(one.over)
    assert gap(found, {name: t / count for name, t in total.items()}) < 1e-6


def attentions(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Every attention by its class's name, as the official code picks them by class; no site finder."""
    return [m for m in model.modules() if type(m).__name__.endswith("Attention")]


@contextlib.contextmanager
def at_attention(model: torch.nn.Module, act: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Call act(number, output) at each attention's output; the output goes on as it is (or as `act` left its data)."""

    def hook(number: int, output: Any) -> None:
        act(number, output[0] if isinstance(output, tuple) else output)

    handles = [m.register_forward_hook(lambda _, __, output, i=i: hook(i, output)) for i, m in enumerate(attentions(model))]
    yield
    for handle in handles:
        handle.remove()


def official_gradient(c: Step, batch: dict[str, Batch]) -> Deltas:
    """What the official backward hooks see: the whole backward pass's gradient at each attention's first output."""
    seen: dict[int, torch.Tensor] = {}

    def watch(i: int, output: torch.Tensor) -> None:
        output.register_hook(lambda g: seen.__setitem__(i, g.clone()))

    with at_attention(c.lm.model, watch):
        c.lm.model(**batch["train"].inputs(), labels=batch["train"].labels, use_cache=False).loss.backward()
    c.lm.model.zero_grad()
    return {name: seen[i] * int((batch["train"].labels[:, 1:] != -100).sum()) for i, name in enumerate(NAMES)}


def official_step(lm: LM, batch: Batch, rho: float) -> dict[str, torch.Tensor]:
    """The weights' gradients after the official step: values moved behind autograd's back, padding and all."""
    model = copy.deepcopy(lm.model)
    other = context_of(LM(model, lm.tokenizer, "copy"))
    gradient = official_gradient(other, {"train": batch})
    size = torch.stack([g.norm(2) for g in gradient.values()]).norm(2)
    eps = [rho * g / (size + 1e-7) for g in gradient.values()]

    def move(i: int, out: torch.Tensor) -> None:
        out.data = out.data + eps[i]

    with at_attention(model, move):
        model(**batch.inputs(), labels=batch.labels, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rho", [0.5, 2.0])
def test_one_step_equals_the_official_rule_written_anew(context: Step, rho: float) -> None:
    batch = padded_of(context)
    assert len(attentions(context.lm.model)) == context.sites.layers
    expected = official_step(context.lm, batch["train"], rho)
    found = stepped(context, Vaccine(rho=rho, padding=True), [batch])
    assert gap(found, expected) < 1e-6
    assert gap(stepped(context, SFT(), [batch]), expected) > 1e-4  # the perturbation is there to be seen


def test_no_hook_is_left_after_a_failing_pass(context: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr(context, "grad", fails)
    with pytest.raises(KilledError):
        Vaccine().perturbation(context, batch_of(context))
    monkeypatch.setattr(context, "backward", fails)
    with pytest.raises(KilledError):
        Vaccine(reuse=True).step(context)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in context.lm.model.modules())


def test_padding_is_left_alone_unless_asked_for(context: Step) -> None:
    padded = padded_of(context)
    found = Vaccine(noise="norm").perturbation(context, padded)
    assert all(bool((d[0, -3:] == 0).all()) for d in found.values())
    assert norm(found) == pytest.approx(2.0, rel=1e-4)


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def test_pass_1_computes_no_weight_gradient(context: Step) -> None:
    """A weight's gradient is a product of its own, so it would be counted: forward 1, to activations 1 at most, not 3."""
    batch = batch_of(context)
    forward = operations(lambda: context.forward(batch["train"]))
    assert operations(lambda: Vaccine().perturbation(context, batch)) < 2 * forward
    plain = operations(lambda: stepped(context, SFT(), [batch]))
    ratio = operations(lambda: stepped(context, Vaccine(), [batch])) / plain
    assert 1.45 < ratio < 5 / 3  # the exact algorithm's limit; less where much lies below the first site


def test_a_gradient_of_zero_is_counted_over_the_stage_and_skipped(llama: Step) -> None:
    batch = batch_of(llama)["train"]
    silent = Batch(batch.input_ids, torch.full_like(batch.labels, -100), batch.indices, batch.attention_mask, batch.position_ids)
    assert Vaccine().perturbation(llama, {"train": silent}) == {}
    stepped(llama, Vaccine(), [{"train": batch}, {"train": silent}], number=7)
    assert float(llama.logged["vaccine_skipped"]) == 2.0
    stepped(llama, Vaccine(every=2), [{"train": batch}], number=9)
    assert float(llama.logged["vaccine_skipped"]) == 2.0  # shown at steps without a perturbation too


def skipped_over_a_stop(method: Method, number: str, work: Path) -> list[tuple[int, float]]:
    """(step, the count) in the metrics of four steps, killed after the third and gone on with from the second."""

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    maker = ARCHITECTURES["neox"]
    with pytest.raises(KilledError):
        train(stage(method), lambda: maker(WORLD), lambda _: maker(WORLD), work, 2, stop)
    run(stage(method), maker, work)
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[number]) for line in lines]


def test_the_count_survives_a_resume_and_stands_in_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaccine, "scaled", lambda *_: Scaled({}, None, {}, torch.tensor(1.0)))
    assert skipped_over_a_stop(Vaccine(), "vaccine_skipped", tmp_path) == [(0, 1.0), (3, 4.0)]


def silenced(batch: Batch, rows: list[int]) -> Batch:
    """The batch with nothing to learn from these rows."""
    labels = batch.labels.clone()
    labels[rows] = -100
    return Batch(batch.input_ids, labels, batch.indices, batch.attention_mask, batch.position_ids)


@pytest.mark.parametrize("scope", ["example", "token"])
@pytest.mark.parametrize("inner", [1, 3])
def test_examples_without_direction_are_counted_and_leave_the_others_theirs(llama: Step, scope: Any, inner: int) -> None:
    whole = batch_of(llama)["train"]
    method = Vaccine(scope=scope, inner=inner)
    expected = method.perturbation(llama, {"train": whole})
    assert float(llama.state["skipped"]) == 0
    found = method.perturbation(llama, {"train": silenced(whole, [1, 4])})
    assert float(llama.state["skipped"]) == 2  # once, however many passes
    rest = [0, 2, 3, 5, 6, 7]
    for name in NAMES:
        assert not found[name][[1, 4]].any()
        torch.testing.assert_close(found[name][rest], expected[name][rest], rtol=1e-3, atol=1e-4)


def counted(c: Step, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step number of every forward pass from now on."""
    passes: list[int] = []
    forward = c.forward
    monkeypatch.setattr(c, "forward", lambda batch: passes.append(c.number) or forward(batch))
    return passes


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_accelerated_looks_for_the_perturbation_every_tau_steps(llama: Step, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = counted(llama, monkeypatch)
    for number in range(6):
        llama.begin(number)
        Vaccine(every=every).step(llama)
    assert len(passes) == 6 + math.ceil(6 / every)
    assert {n for n in range(6) if passes.count(n) == 2} == {n for n in range(6) if n % every == 0}


def test_tau_beyond_the_run_differs_from_sft_by_the_first_step_alone(tmp_path: Path) -> None:
    maker = ARCHITECTURES["neox"]
    once = run(stage(Vaccine(every=50), steps=1), maker, tmp_path / "a")
    assert same(once, run(stage(Vaccine(), steps=1), maker, tmp_path / "b"))
    assert largest_gap(once, run(stage(SFT(), steps=1), maker, tmp_path / "c")) > 0


BALLS: dict[str, Callable[[Deltas], torch.Tensor]] = {
    "batch": lambda d: torch.stack(list(d.values())).norm()[None],
    "example": lambda d: torch.linalg.vector_norm(torch.stack(list(d.values())), dim=(0, 2, 3)),
    "layer": lambda d: torch.linalg.vector_norm(torch.stack(list(d.values())), dim=(1, 2, 3)),
    "token": lambda d: torch.stack(list(d.values())).norm(dim=3).flatten(),
}


@pytest.mark.parametrize("inner", [2, 8])
@pytest.mark.parametrize("scope", sorted(BALLS))
def test_ascent_is_projected_to_every_ball_and_hurts_at_least_as_much(context: Step, scope: Any, inner: int) -> None:
    """Steps of 2.5 rho / K lead out of the ball, so many of them that it is full."""
    batch = padded_of(context)
    found, one = (Vaccine(rho=0.5, scope=scope, inner=k).perturbation(context, batch) for k in (inner, 1))
    sizes, filled = (BALLS[scope]({name: d.double() for name, d in way.items()}) for way in (found, one))
    assert float(sizes.max()) <= 0.5 * (1 + 1e-6)
    assert float(sizes[filled > 0].mean()) > 0.35  # steps of rho / K stay inside as soon as they turn
    assert all(bool((d[0, -3:] == 0).all()) for d in found.values())
    assert float(loss_at(context, batch, found)) >= float(loss_at(context, batch, one)) - 1e-3


def test_ascent_is_the_textbook_s(context: Step) -> None:
    """A second form, over one flat vector: move 2.5 rho / K along the unit gradient, then to the ball's edge if outside."""
    batch, rho, inner = batch_of(context), 1.5, 4
    flat = torch.zeros(2, *batch["train"].input_ids.shape, 32)
    outside = 0
    for _ in range(inner):
        flat.requires_grad_(True)
        with adding(context.sites, dict(zip(NAMES, flat.unbind(), strict=True))):
            (slope,) = torch.autograd.grad(SFT().loss(context, batch).total, [flat])
        flat = flat.detach() + 2.5 * rho / inner * slope / slope.norm()
        outside += bool(flat.norm() > rho)
        flat = flat * min(1.0, rho / float(flat.norm()))
    assert outside >= 2
    found = Vaccine(rho=rho, inner=inner).perturbation(context, batch)
    for name, expected in zip(NAMES, flat, strict=True):
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)


def test_one_ascent_step_is_equation_3_bit_for_bit(context: Step) -> None:
    batch = batch_of(context)
    gradient = gradient_of(context, batch)
    size = torch.stack([(g**2).sum(-1).sum() for g in gradient.values()]).sum().sqrt()
    assert same(Vaccine(rho=1.7).perturbation(context, batch), {name: 1.7 * g / size for name, g in gradient.items()})


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("inner", [1, 3])
def test_shared_dropout_is_the_same_masks_in_every_pass(shared: bool, inner: int) -> None:
    """Seen by the clean activation before the first site: it differs between passes by its masks alone."""
    lm = ARCHITECTURES["llama"](WORLD)
    c = context_of(lm)
    seen: list[torch.Tensor] = []
    embedding = lm.model.get_input_embeddings()
    dropped = [
        embedding.register_forward_hook(lambda _, __, output: torch.nn.functional.dropout(output, 0.5)),
        embedding.register_forward_hook(lambda _, __, output: seen.append(output.detach().clone())),
    ]
    batches = [batch_of(c), batch_of(c)]
    stepped(c, Vaccine(shared_dropout=shared, inner=inner), batches)
    for handle in dropped:
        handle.remove()
    assert len(seen) == 2 * (inner + 1)
    first, second = seen[: inner + 1], seen[inner + 1 :]
    assert all(torch.equal(one, first[0]) == shared for one in first[1:])
    assert all(torch.equal(one, second[0]) == shared for one in second[1:])
    assert not torch.equal(first[0], second[0])


def test_a_variance_leaves_padding_alone_unless_asked_for(context: Step) -> None:
    padded = padded_of(context)
    context.begin(0)
    found = Vaccine(noise="variance").perturbation(context, padded)
    assert all(bool((d[0, -3:] == 0).all()) and bool(d[0, :-3].all()) for d in found.values())
    context.begin(0)
    everywhere = Vaccine(noise="variance", padding=True).perturbation(context, padded)
    assert all(bool(d[0, -3:].all()) for d in everywhere.values())
    assert torch.equal(found["attn_out[0]"][1:], everywhere["attn_out[0]"][1:])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        *(({"noise": noise, "inner": 2}, "noise makes no ascent steps") for noise in ("variance", "norm")),
        *(({"noise": "variance", "scope": scope}, "leave scope at batch") for scope in ("example", "layer", "token")),
        *(({"shared_dropout": True, **other}, "shared_dropout needs a first pass") for other in ({"noise": "norm"}, {"reuse": True})),
        ({"shared_dropout": True, "part": 0.5}, "over the same rows"),
    ],
)
def test_a_setting_that_would_be_ignored_is_an_error(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TiterError, match=said):
        build(Vaccine, settings, "vaccine")


@pytest.mark.parametrize(("part", "rows"), [(0.5, 4), (0.25, 2), (0.01, 1)])
def test_a_part_of_the_rows_takes_the_whole_ball(context: Step, part: float, rows: int) -> None:
    batch = batch_of(context)
    found = Vaccine(part=part).perturbation(context, batch)
    alone = Vaccine().perturbation(context, {"train": batch["train"].rows(0, rows)})
    for name in NAMES:
        assert found[name].shape[0] == len(batch["train"])
        assert torch.equal(found[name][:rows], alone[name])
        assert not found[name][rows:].any()
    assert norm(found) == pytest.approx(2.0, rel=1e-4)


def test_of_all_perturbations_of_those_rows_in_the_ball_it_gains_most_to_first_order(llama: Step) -> None:
    batch = batch_of(llama)
    gradient = {name: g[:2] for name, g in gradient_of(llama, batch).items()}
    clean = loss_at(llama, batch, {})
    gain = float(loss_at(llama, batch, Vaccine(rho=0.05, part=0.25).perturbation(llama, batch)) - clean)
    assert gain == pytest.approx(0.05 * norm(gradient), rel=0.05)


def test_a_part_saves_that_share_of_pass_1(llama: Step) -> None:
    batch = batch_of(llama)
    whole, half = (operations(lambda p=p: Vaccine(part=p).perturbation(llama, batch)) for p in (1.0, 0.5))
    assert half / whole == pytest.approx(0.5, abs=0.02)


def test_reuse_moves_every_token_along_the_last_step_s_gradient(context: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of two micro-batches; the direction is the sum over tokens and micro-batches of what autograd gives."""
    batch, padded = batch_of(context), padded_of(context)
    passes = counted(context, monkeypatch)
    method = Vaccine(reuse=True)
    first = stepped(context, method, [batch, padded], number=0)
    assert same(first, stepped(context, SFT(), [batch, padded]))  # nothing came before the first step
    way = {n: sum(official_gradient(context, b)[n].sum((0, 1)) for b in (batch, padded)) for n in NAMES}
    for name, found in zip(NAMES, context.state["direction"], strict=True):
        torch.testing.assert_close(found, way[name], rtol=1e-3, atol=1e-5)
    eps = method.perturbation(context, padded)
    assert norm(eps) == pytest.approx(2.0, rel=1e-4)
    real = padded["train"].attention_mask[:, :, None]
    size = math.sqrt(float(sum((w.double() ** 2).sum() for w in way.values())) * int(real.sum()))
    for name in NAMES:
        torch.testing.assert_close(eps[name], 2.0 * way[name] / size * real, rtol=1e-3, atol=1e-5)
    with adding(context.sites, eps):
        expected = official_gradient(context, padded)
    passes.clear()
    assert not same(stepped(context, method, [padded], number=1), stepped(context, SFT(), [padded], number=1))
    assert passes == [1, 1]  # one pass each
    for name, found in zip(NAMES, context.state["direction"], strict=True):
        torch.testing.assert_close(found, expected[name].sum((0, 1)), rtol=1e-3, atol=1e-5)


def test_reuse_with_tau_learns_at_the_step_before_alone(llama: Step) -> None:
    batch = batch_of(llama)
    kept = []
    for number in range(6):
        stepped(llama, Vaccine(reuse=True, every=3), [batch], number)
        kept.append("vaccine_norm" in llama.logged)
    assert kept == [False, False, False, True, False, False]
    assert "direction" in llama.state


def replayed(c: Step, replay: int = 3) -> Step:
    """The context, in a stage whose batches are each trained on that many times in a row."""
    c.stage = c.stage.model_copy(update={"replay": replay})
    return c


def test_reuse_of_rows_is_the_exact_perturbation_one_pass_late(context: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights do not move here, so the second pass on a batch has the exact algorithm's perturbation, for one pass's price; the third
    has the gradient at the moved activations, and the next batch begins without any."""
    batch, c = padded_of(context), replayed(context)
    exact = stepped(c, Vaccine(), [batch])
    passes = counted(c, monkeypatch)
    method = Vaccine(reuse="rows")
    assert same(stepped(c, method, [batch], number=0), stepped(c, SFT(), [batch]))
    passes.clear()
    second = stepped(c, method, [batch], number=1)
    assert passes == [1]
    assert gap(second, exact) < 1e-5
    third = stepped(c, method, [batch], number=2)
    eps = Vaccine().perturbation(c, batch)
    with adding(c.sites, eps):
        moved = official_gradient(c, batch)
    real = batch["train"].attention_mask[:, :, None]
    size = math.sqrt(float(sum(((w * real).double() ** 2).sum() for w in moved.values())))
    with adding(c.sites, {name: 2.0 * way * real / size for name, way in moved.items()}):
        assert gap(third, stepped(c, SFT(), [batch])) < 1e-5
    assert not any(name.startswith("rows") for name in c.state)
    assert same(stepped(c, method, [batch], number=3), stepped(c, SFT(), [batch]))


def test_replayed_steps_train_on_one_batch_and_each_micro_batch_keeps_its_own_rows(llama: Step) -> None:
    c = replayed(llama, 2)
    c.stage = c.stage.model_copy(update={"accumulation": 2})
    seen = []
    for number in range(4):
        c.begin(number)
        seen.append([one["train"].indices.tolist() for one in c.micro()])
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert seen[0][0] != seen[0][1]
    c.begin(0)
    Vaccine(reuse="rows").step(c)
    assert {name for name in c.state if name.startswith("rows")} == {"rows 0", "rows 1"}


def test_a_stage_without_replay_has_the_key_that_it_had_and_a_replayed_one_resumes(llama: Step, tmp_path: Path) -> None:
    plain = llama.stage
    assert "replay" not in plain.key_inputs("p", {})["stage"]
    assert plain.model_copy(update={"replay": 2}).key("p", {}) != plain.key("p", {})
    with pytest.raises(TiterError, match=r"reuse=rows needs.*replay 2 or more"):
        Vaccine(reuse="rows").setup(llama)
    with pytest.raises(TiterError, match="leave every at 1"):
        build(Vaccine, {"reuse": "rows", "every": 2}, "vaccine")
    mine = stage(Vaccine(reuse="rows")).model_copy(update={"replay": 4})
    maker = ARCHITECTURES["llama"]

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    whole = run(mine, maker, tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    with contextlib.suppress(KilledError):
        train(mine, lambda: maker(WORLD), lambda _: maker(WORLD), tmp_path / "cut", 2, stop)
    assert (tmp_path / "cut" / "resume" / "latest.json").exists()
    assert same(whole, run(mine, maker, tmp_path / "cut", save_every=2))
    assert not same(whole, run(mine.model_copy(update={"method": SFT()}), maker, tmp_path / "sft"))


@pytest.mark.parametrize("settings", [{"reuse": True}, {"part": 0.5}, {"reuse": True, "every": 2}])
def test_the_cheaper_forms_resume_bit_identically(settings: dict[str, Any], tmp_path: Path) -> None:
    check_resume(partial(Vaccine, **settings), ARCHITECTURES["llama"], tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [{"noise": "norm"}, {"inner": 2}, {"part": 0.5}])
def test_reuse_with_what_would_be_ignored_is_an_error(other: dict[str, Any]) -> None:
    with pytest.raises(TiterError, match="reuse computes no gradient"):
        build(Vaccine, {"reuse": True, **other}, "vaccine")


@pytest.mark.parametrize("part", [0.0, 1.5])
def test_a_part_is_a_share(part: float) -> None:
    with pytest.raises(TiterError, match="part"):
        build(Vaccine, {"part": part}, "vaccine")
