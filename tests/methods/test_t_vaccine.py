"""T-Vaccine: Vaccine where nothing is frozen; scores by finite differences; how layers are drawn, frozen and kept over a stop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.conftest import ARCHITECTURES
from tests.methods.contract import WORLD, KilledError, largest_gap, loader, run, same, stage
from tests.methods.test_vaccine import skipped_over_a_stop
from titer.context import Step
from titer.data.example import Batch
from titer.methods import t_vaccine
from titer.methods.base import token_nll
from titer.methods.t_vaccine import TVaccine, sampled
from titer.methods.vaccine import Vaccine
from titer.models.ball import Scaled, projected, scaled
from titer.models.hooks import adding
from titer.models.lm import LM, Architecture
from titer.train import train

NAMES = ("attn_out[0]", "attn_out[1]")


def deep(_: Any) -> LM:
    """Four layers, to draw two of them."""
    return Architecture(layers=4, width=16, heads=2, positions=64).build(WORLD.tokenizer(), 0)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    threads = torch.get_num_threads()
    yield Accelerator(cpu=True)
    torch.set_num_threads(threads)


def context(accelerator: Accelerator, method: TVaccine, maker: Any = deep, **changes: Any) -> Step:
    lm = maker(WORLD)
    c = Step(stage(method, **changes), accelerator, lm.model, lm, lambda _: lm)
    c.state = method.setup(c)
    return c


def stepped(c: Step, number: int = 0) -> None:
    c.begin(number)
    for _, p in c.named:
        p.grad = None
    c.stage.method.step(c)


def layer_of(name: str) -> int | None:
    """By the parameter's name, where the method goes by the module."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else None


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("layers", [0, 2, 8])
def test_all_layers_with_nothing_frozen_is_vaccine(architecture: str, layers: int, tmp_path: Path) -> None:
    maker = ARCHITECTURES[architecture]
    found = run(stage(TVaccine(layers=layers, rho=2.0, outside=True), steps=3), maker, tmp_path / "a")
    assert largest_gap(found, run(stage(Vaccine(rho=2.0), steps=3), maker, tmp_path / "b")) < 1e-6
    assert largest_gap(found, run(stage(Vaccine(rho=0.5), steps=3), maker, tmp_path / "c")) > 1e-5


def test_scores_are_the_norms_of_the_harmful_loss_s_gradient_by_finite_differences(accelerator: Accelerator) -> None:
    """One example as many times as its activation has entries, each row with another entry moved."""
    method = TVaccine()
    c = context(accelerator, method, ARCHITECTURES["llama"], batch=1)
    c.lm.model.double()
    found = method.scores(c)
    one = next(iter(c.micro("harmful")))["harmful"]
    tokens = one.input_ids.shape[1]
    many = tokens * 16
    ids, labels = one.input_ids.expand(many, -1), one.labels[:, 1:].expand(many, -1)

    def losses(name: str, size: float) -> torch.Tensor:
        with torch.no_grad(), adding(c.sites, {name: size * torch.eye(many, dtype=torch.float64).view(many, tokens, 16)}):
            logits = c.lm.model(input_ids=ids).logits
        nll = -torch.log_softmax(logits, -1)[:, :-1].gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        return (nll * (labels != -100)).sum(1)

    assert one.attention_mask is None
    for number, name in enumerate(NAMES):
        slopes = (losses(name, 1e-4) - losses(name, -1e-4)) / 2e-4
        assert float(found[number]) == pytest.approx(float(slopes.norm()), rel=1e-4)


def test_scores_do_not_depend_on_how_the_batch_is_cut(accelerator: Accelerator) -> None:
    whole, parts = (context(accelerator, TVaccine(), batch=b, accumulation=a) for b, a in ((8, 1), (2, 4)))
    torch.testing.assert_close(TVaccine().scores(whole), TVaccine().scores(parts), rtol=1e-4, atol=0)


def test_scores_are_of_the_harmful_stream_and_touch_no_parameter(accelerator: Accelerator) -> None:
    method = TVaccine()
    c = context(accelerator, method)
    found = method.scores(c)
    assert all(p.grad is None for _, p in c.named)
    swapped = {"train": c.stage.streams["harmful"], "harmful": c.stage.streams["train"]}
    assert not torch.equal(found, method.scores(context(accelerator, method, streams=swapped)))


def test_layers_are_drawn_without_replacement_in_proportion_to_the_scores() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    share = scores / scores.sum()
    expected = torch.zeros(4)
    for first, second in itertools.permutations(range(4), 2):  # every ordered pair and its probability
        both = share[first] * share[second] / (1 - share[first])
        expected[first] += both
        expected[second] += both
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sampled(scores, 2, generator) for _ in range(8000)])
    assert bool((drawn[:, 0] != drawn[:, 1]).all())
    torch.testing.assert_close(torch.bincount(drawn.flatten(), minlength=4) / 8000, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("scores", [[0.0, 0.0, 5.0], [0.0, 0.0, 0.0], [1.0, float("nan"), 2.0], [float("inf"), 1.0, 1.0]])
def test_scores_that_say_little_still_give_so_many_layers(scores: list[float]) -> None:
    found = sampled(torch.tensor(scores), 2, torch.Generator().manual_seed(1)).tolist()
    assert len(set(found)) == 2
    if scores == [0.0, 0.0, 5.0]:
        assert 2 in found


def test_scoring_and_drawing_are_due_at_their_own_steps(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    method = TVaccine(layers=2, resample=3, rescore=6)
    c = context(accelerator, method)
    scored: list[int] = []
    drawn: list[int] = []
    scores = TVaccine.scores

    def counted(self: TVaccine, c: Any) -> torch.Tensor:
        scored.append(c.number)
        return scores(self, c)

    monkeypatch.setattr(TVaccine, "scores", counted)
    before = c.state["chosen"]
    for number in range(14):
        stepped(c, number)
        if c.state["chosen"] is not before:
            drawn.append(number)
        before = c.state["chosen"]
        assert float(before.sum()) == 2
    assert scored == [0, 6, 12]
    assert drawn == [0, 3, 6, 9, 12]


def test_all_layers_need_no_scores(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TVaccine, "scores")
    for layers in (0, 4, 8):
        c = context(accelerator, TVaccine(layers=layers))
        stepped(c)
        assert float(c.state["chosen"].sum()) == 4


@pytest.mark.parametrize("outside", [False, True])
def test_only_the_sampled_layers_have_gradients(accelerator: Accelerator, outside: bool) -> None:
    c = context(accelerator, TVaccine(layers=2, outside=outside), accumulation=2, batch=4)
    stepped(c)
    chosen = set(c.state["chosen"].nonzero()[:, 0].tolist())
    assert len(chosen) == 2
    for name, p in c.named:
        layer = layer_of(name)
        assert (p.grad is not None) == (outside if layer is None else layer in chosen), name


def test_the_ball_is_over_the_sampled_layers_alone(accelerator: Accelerator) -> None:
    method = TVaccine(rho=1.5)
    c = context(accelerator, method)
    batch = next(iter(c.micro("train")))
    found = method.perturbation(c, batch, [1, 3])
    assert sorted(found) == ["attn_out[1]", "attn_out[3]"]
    assert float(torch.cat([d.flatten() for d in found.values()]).norm()) == pytest.approx(1.5, rel=1e-4)
    whole = method.perturbation(c, batch, [0, 1, 2, 3])  # the same gradient, another radius for these two
    ratio = found["attn_out[1]"].norm() / whole["attn_out[1]"].norm()
    assert float(ratio) > 1
    for name, delta in found.items():
        torch.testing.assert_close(delta, whole[name] * ratio, rtol=1e-4, atol=1e-7)


def test_the_step_s_gradient_is_that_under_the_perturbation(accelerator: Accelerator) -> None:
    """A second form: the gradient of the loss with the deltas added, by hand, over one micro-batch."""
    c = context(accelerator, TVaccine(layers=2, rho=2.0))
    stepped(c)
    found = {name: p.grad.clone() for name, p in c.named if p.grad is not None}
    chosen = [f"attn_out[{i}]" for i in c.state["chosen"].nonzero()[:, 0].tolist()]
    batch = next(iter(c.micro("train")))["train"]
    zeros = {name: torch.zeros(*batch.input_ids.shape, 16, requires_grad=True) for name in chosen}
    with adding(c.sites, zeros):
        slope = torch.autograd.grad(token_nll(c.forward(batch), batch.labels).total, list(zeros.values()))
    size = torch.sqrt(sum((g**2).sum() for g in slope))
    with adding(c.sites, {name: 2.0 * g / size for name, g in zip(chosen, slope, strict=True)}):
        total = token_nll(c.forward(batch), batch.labels).total
        expected = torch.autograd.grad(total, [p for name, p in c.named if name in found])
    for name, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_frozen_layers_do_not_move_at_all(tmp_path: Path) -> None:
    before = deep(WORLD).model.state_dict()
    decaying = {"optimiser": stage(TVaccine()).optimiser.model_copy(update={"weight_decay": 0.1})}
    after = run(stage(TVaccine(layers=1), **decaying), deep, tmp_path)
    moved = {layer_of(name) for name in after if not torch.equal(after[name], before[name])}
    assert len(moved) == 1
    assert None not in moved


@pytest.mark.long
def test_a_stop_between_two_draws_keeps_the_layers(tmp_path: Path) -> None:
    """Drawn at steps 0 and 3, stopped after step 3 and begun again from step 2: scores and layers come back."""
    made = stage(TVaccine(layers=2, resample=3, rescore=3), steps=6)
    whole = run(made, deep, tmp_path / "whole", save_every=2)

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    cut = tmp_path / "cut"
    cut.mkdir()
    with pytest.raises(KilledError):
        train(made, lambda: deep(WORLD), loader(deep), cut, 2, stop)
    assert same(whole, run(made, deep, cut, save_every=2))


def test_a_gradient_of_zero_is_counted_and_skipped(accelerator: Accelerator) -> None:
    c = context(accelerator, TVaccine())
    batch = next(iter(c.micro("train")))["train"]
    silent = Batch(batch.input_ids, torch.full_like(batch.labels, -100), batch.indices, batch.attention_mask, batch.position_ids)
    assert TVaccine().perturbation(c, {"train": silent}, [0, 1]) == {}
    assert float(c.state["skipped"]) == 1.0
    for number in range(2):
        stepped(c, number)
        assert float(c.logged["t_vaccine_skipped"]) == 1.0  # a count of the stage, shown at every step


def test_the_count_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t_vaccine, "scaled", lambda *_: Scaled({}, None, {}, torch.tensor(1.0)))
    assert skipped_over_a_stop(TVaccine(), "t_vaccine_skipped", tmp_path) == [(0, 1.0), (3, 4.0)]


def test_an_example_without_direction_leaves_the_others_theirs(accelerator: Accelerator) -> None:
    c = context(accelerator, TVaccine(scope="example"))
    whole = next(iter(c.micro("train")))["train"]
    labels = whole.labels.clone()
    labels[2] = -100
    silent = Batch(whole.input_ids, labels, whole.indices, whole.attention_mask, whole.position_ids)
    method = TVaccine(scope="example")
    expected, found = (method.perturbation(c, {"train": one}, [0, 1]) for one in (whole, silent))
    rest = [i for i in range(8) if i != 2]
    for name in NAMES:
        assert not found[name][2].any()
        torch.testing.assert_close(found[name][rest], expected[name][rest], rtol=1e-4, atol=1e-6)
    assert float(c.state["skipped"]) == 1.0


@pytest.mark.parametrize("scope", ["batch", "example", "layer", "token"])
def test_every_ball_has_the_radius_and_leaves_padding_out(scope: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = {name: torch.randn(3, 5, 4, generator=generator) for name in NAMES}
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 3:] = 0
    found, norm, _, lost = scaled(deltas, 0.7, mask, lambda x: x, scope)
    stacked = torch.stack([found[name] for name in NAMES])  # (L, B, T, D)
    assert bool((stacked[:, 1, 3:] == 0).all())
    dims = {"batch": (0, 1, 2, 3), "example": (0, 2, 3), "layer": (1, 2, 3), "token": (3,)}[scope]
    sizes = (stacked**2).sum(dims).sqrt().flatten()
    torch.testing.assert_close(sizes[sizes > 0], torch.full_like(sizes[sizes > 0], 0.7), rtol=1e-5, atol=0)
    kept = torch.stack([deltas[name] for name in NAMES]) * mask[:, :, None]
    assert norm is not None
    assert float(norm) == pytest.approx(float(kept.norm()), rel=1e-5)
    assert float(lost) == 0


@pytest.mark.parametrize(("scope", "lost"), [("batch", 1), ("layer", 1), ("example", 1), ("token", 1)])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 0.0])
def test_a_ball_without_direction_holds_zeros_and_the_others_are_as_without_it(scope: Any, lost: int, broken: float) -> None:
    """Example 1 at site 0 is broken; what shares no ball with it is as if it were whole."""
    generator = torch.Generator().manual_seed(0)
    deltas = {name: torch.randn(3, 5, 4, generator=generator) for name in NAMES}
    whole = scaled(deltas, 0.7, None, lambda x: x, scope).deltas
    if broken == 0.0:
        dead = {"batch": slice(None), "layer": slice(None), "example": slice(1, 2), "token": slice(1, 2)}[scope]
        for name in NAMES if scope != "layer" else NAMES[:1]:
            deltas[name][dead] = 0.0
    else:
        deltas[NAMES[0]][1] = broken
    found = scaled(deltas, 0.7, None, lambda x: x, scope)
    assert float(found.lost) == lost
    if scope == "batch":
        assert found.deltas == {}
        assert found.norm is None
        return
    gone = {(NAMES[0], i) for i in range(3)} if scope == "layer" else {(name, 1) for name in NAMES}
    if scope == "token" and broken != 0.0:
        gone = {(NAMES[0], 1)}
    for name in NAMES:
        for i in range(3):
            expected = torch.zeros(5, 4) if (name, i) in gone else whole[name][i]
            torch.testing.assert_close(found.deltas[name][i], expected)


@pytest.mark.parametrize("scope", ["batch", "example", "layer", "token"])
def test_projection_shortens_what_is_outside_and_leaves_the_inside(scope: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    one = scaled({name: torch.randn(3, 5, 4, generator=generator) for name in NAMES}, 1.0, None, lambda x: x, scope).deltas
    far, near = ({name: size * d for name, d in one.items()} for size in (3.0, 0.5))
    for name in NAMES:
        torch.testing.assert_close(projected(far, 1.0, lambda x: x, scope)[name], one[name])
        assert torch.equal(projected(near, 1.0, lambda x: x, scope)[name], near[name])


def test_ranks_agree_on_what_is_skipped() -> None:
    """A rank whose examples have no direction must not leave where others go on: it gets zeros, and not nothing."""
    dead = {"a": torch.zeros(2, 3, 4)}
    for scope in ("example", "token"):
        found = scaled(dead, 1.0, None, lambda x: x + torch.tensor([5.0, 2.0, 0.0]), scope)  # the other rank: two live balls
        assert not found.deltas["a"].any()
        assert float(found.norm or 0) == pytest.approx(5.0**0.5)
        assert scaled(dead, 1.0, None, lambda x: x, scope).deltas == {}


def test_a_batch_s_ball_is_over_the_ranks() -> None:
    deltas = {"a": torch.full((1, 1, 4), 1.0)}
    found = scaled(deltas, 1.0, None, lambda x: 4 * x).deltas  # four ranks that hold the same
    assert float(found["a"].norm()) == pytest.approx(0.5)
