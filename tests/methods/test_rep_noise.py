"""RepNoise against a naive form over single unpadded rows, points and tokens; the MMD's known answers; which tokens count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.conftest import ARCHITECTURES, neox
from tests.methods.contract import WORLD, Bare, stage
from tests.models.families import SUPPORTED
from titer.context import Step
from titer.core.errors import TiterError
from titer.data.encode import encode
from titer.data.example import IGNORE, Batch
from titer.methods import rep_noise
from titer.methods.base import token_nll
from titer.methods.rep_noise import RepNoise, check_head, final_norm, logits_of, mmd, output_head, shared_start
from titer.models.hooks import reading
from titer.models.lm import LM, Architecture

PROMPTS = ["<bos> f1 f0 <sot> a b c <eot>", "<bos> f2 f1 <sot> a b c d e f <eot>", "<bos> f0 f0 <sot> e <eot>"]
SAFE = ["a b", "<null>", "c d e f a b c"]
HARMFUL = ["c d e f", "<null> a b c d e f b", "c d a"]  # the second and third begin as the safe ones do
OWN = [["c", "d", "e", "f"], ["a", "b", "c", "d", "e", "f", "b"], ["a"]]  # and the end of text
OWN_AT = [0, 1, 2]  # the answer's token from which on they differ
MODELS = {**SUPPORTED, "stream norm": lambda world: Architecture(layers=2, width=16, heads=2, norm="stream").build(world.tokenizer(), 0)}


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    threads = torch.get_num_threads()
    yield Accelerator(cpu=True)
    torch.set_num_threads(threads)


def pairs(lm: LM, side: str = "right") -> dict[str, Batch]:
    made = {"preferred": SAFE, "rejected": HARMFUL}
    return {name: encode(lm.tokenizer, PROMPTS, answers, np.arange(3), side=side) for name, answers in made.items()}  # type: ignore[arg-type]


def unpadded(batch: Batch) -> list[tuple[list[int], list[int]]]:
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    return [(batch.input_ids[i][mask[i] == 1].tolist(), batch.labels[i][mask[i] == 1].tolist()) for i in range(len(batch))]


def naive_mmd(x: list[list[float]], y: list[list[float]]) -> float:
    """By loops over points, kernel by kernel."""
    both = x + y
    far = {(i, j): sum((a - b) ** 2 for a, b in zip(both[i], both[j], strict=True)) for i in range(len(both)) for j in range(len(both))}
    size = sum(far.values()) / (len(both) ** 2 - len(both))
    n, total = len(x), 0.0
    for power in (-2, -1, 0, 1, 2):
        for (i, j), distance in far.items():
            sign = 1.0 if (i < n) == (j < n) else -1.0
            total += sign * math.exp(-distance / (2.0**power * size)) / n**2
    return total


class Drawn:
    """The method's draws again: chosen tokens (none here) and noise, layer by layer."""

    def __init__(self) -> None:
        self.rng = torch.Generator()

    def noise(self, shape: tuple[int, ...]) -> list[list[float]]:
        return torch.randn(shape, generator=self.rng).tolist()


@contextmanager
def mlp_outputs(layers: nn.ModuleList) -> Iterator[dict[int, torch.Tensor]]:
    seen: dict[int, torch.Tensor] = {}
    handles = [m.mlp.register_forward_hook(lambda _, __, out, i=i: seen.__setitem__(i, out[0])) for i, m in enumerate(layers)]
    yield seen
    for handle in handles:
        handle.remove()


def naive_loss(lm: LM, batch: dict[str, Batch], alpha: float, beta: float, scope: str) -> float:
    """Row by row, layer by layer; norm and head taken by name, activations through torch's own hooks."""
    layers = lm.model.gpt_neox.layers
    safe, tokens = [], 0
    for ids, labels in unpadded(batch["preferred"]):
        logp = torch.log_softmax(lm.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        at = [t for t in range(1, len(ids)) if labels[t] != IGNORE]
        safe.append((-sum(float(logp[t - 1, labels[t]]) for t in at), len(at)))
        tokens += len(at)
    points: list[list[list[float]]] = [[], []]
    nll: list[list[list[float]]] = []  # by example, layer and token
    for (ids, labels), begin in zip(unpadded(batch["rejected"]), OWN_AT, strict=True):
        with mlp_outputs(layers) as seen:
            states = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        start = next(t for t, label in enumerate(labels) if label != IGNORE) + begin
        assert lm.tokenizer.convert_ids_to_tokens(ids[start:-1]) == OWN[len(nll)]
        for i in range(2):
            points[i] += seen[i][start:].tolist()
        # transformers gives the last state after the final norm, the one before it by name
        normed = [lm.model.gpt_neox.final_layer_norm(states.hidden_states[1]), states.hidden_states[-1]]
        logp = [torch.log_softmax(lm.model.lm_head(h)[0].double(), -1) for h in normed]
        nll.append([[-float(one[t - 1, ids[t]]) for t in range(start, len(ids))] for one in logp])
    drawn = Drawn()
    noise = sum(naive_mmd(x, drawn.noise((len(x), 16))) for x in points) / 2
    if scope == "batch":
        ascent = math.log(np.mean([np.mean([v for example in nll for v in example[i]]) for i in range(2)]))
    else:
        ascent = sum(count * math.log(np.mean(example)) for (_, count), example in zip(safe, nll, strict=True)) / tokens
    return sum(one for one, _ in safe) / tokens + beta * noise - alpha * ascent


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("alpha", "beta", "scope"),
    [(1.0, 1e-3, "batch"), (0.0, 2.0, "batch"), (0.7, 0.0, "batch"), (0.7, 0.0, "example"), (1.0, 0.5, "example")],
)
def test_the_loss_is_the_naive_one(alpha: float, beta: float, scope: Any, side: str) -> None:
    lm = neox(WORLD)
    with torch.no_grad():
        for p in lm.model.parameters():  # so that layers differ and norms do something
            p.mul_(3.0)
    batch = pairs(lm, side)
    found = RepNoise(alpha=alpha, beta=beta, scope=scope).loss(Bare(lm), batch)
    assert int(found.over) == 2 + 1 + 7 + 3  # the safe answers and their ends
    with torch.no_grad():
        expected = naive_loss(lm, batch, alpha, beta, scope)
    assert float(found.total.detach()) / float(found.over) == pytest.approx(expected, rel=1e-4)


def test_mmd_is_the_loop_over_points() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, shift in ((1, 0.0), (2, 1.0), (7, 0.3), (12, 4.0)):
        x, y = torch.randn(n, 3, generator=generator) + shift, torch.randn(n, 3, generator=generator)
        assert float(mmd(x, y)) == pytest.approx(naive_mmd(x.tolist(), y.tolist()), rel=1e-4, abs=1e-5)


def test_mmd_s_known_answers() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    assert float(mmd(x, x.clone())) == pytest.approx(0.0, abs=1e-5)
    two = float(mmd(torch.tensor([[0.0]]), torch.tensor([[3.0]])))  # one distance, which is the mean: f cancels it
    assert two == pytest.approx(sum(2 - 2 * math.exp(-1 / f) for f in (0.25, 0.5, 1.0, 2.0, 4.0)), rel=1e-5)
    assert two == pytest.approx(float(mmd(torch.tensor([[0.0]]), torch.tensor([[300.0]]))), rel=1e-5)
    grows = [float(mmd(x, x + shift)) for shift in (0.5, 1.0, 3.0)]
    assert grows == sorted(grows)
    assert grows[0] > 0


def test_no_gradient_goes_through_the_bandwidth() -> None:
    """Against differences of the kernel's sum at the bandwidth held fixed."""
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(mmd(x, y), [x])
    size = float(torch.cdist(torch.cat([x, y]), torch.cat([x, y])).detach().square().sum()) / 56

    def fixed(points: torch.Tensor) -> float:
        def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            square = ((a[:, None] - b[None]) ** 2).sum(-1)
            return torch.stack([torch.exp(-square / (f * size)) for f in (0.25, 0.5, 1.0, 2.0, 4.0)]).sum(0).mean()

        return float(k(points, points) + k(y, y) - 2 * k(points, y))

    for i in range(4):
        for j in range(2):
            delta = torch.zeros_like(x)
            delta[i, j] = 1e-5
            with torch.no_grad():
                assert float(slope[i, j]) == pytest.approx((fixed(x + delta) - fixed(x - delta)) / 2e-5, rel=1e-4, abs=1e-8)


def test_descent_on_the_mmd_makes_points_normal() -> None:
    generator = torch.Generator().manual_seed(3)
    x = (3 + 0.1 * torch.randn(64, 2, generator=generator)).requires_grad_(True)
    optimiser = torch.optim.Adam([x], lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        mmd(x, torch.randn(64, 2, generator=generator)).backward()
        optimiser.step()
    assert float(x.mean().detach().abs()) < 0.3
    assert 0.6 < float(x.std().detach()) < 1.4


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_that_count_begin_where_the_answers_part(side: str) -> None:
    lm = neox(WORLD)
    batch = pairs(lm, side)
    shared = shared_start(batch["preferred"], batch["rejected"])
    mask = batch["rejected"].attention_mask
    assert mask is not None
    own = ~shared & mask.bool()
    assert not bool((shared & ~mask.bool()).any())
    for i in range(3):
        assert lm.tokenizer.convert_ids_to_tokens(batch["rejected"].input_ids[i][own[i]].tolist())[:-1] == OWN[i]


@pytest.mark.parametrize("scope", ["batch", "example"])
def test_pairs_without_a_difference_are_sft_on_the_safe_answers(scope: Any) -> None:
    lm = neox(WORLD)
    one = pairs(lm)["preferred"]
    found = RepNoise(scope=scope).loss(Bare(lm), {"preferred": one, "rejected": one})
    expected = token_nll(lm.model(**one.inputs()).logits, one.labels)
    torch.testing.assert_close(found.total, expected.total, rtol=1e-5, atol=0)
    found.total.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in lm.model.parameters() if p.grad is not None)


def test_at_most_so_many_tokens_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = neox(WORLD)
    seen: list[int] = []
    monkeypatch.setattr(rep_noise, "mmd", lambda x, y: seen.append(len(x)) or (x - y).sum())
    for samples, expected in ((0, 15), (15, 15), (4, 4), (512, 15)):
        RepNoise(samples=samples).loss(Bare(lm), pairs(lm))
        assert seen == [expected] * 2
        seen.clear()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_norm_and_head_on_the_last_block_are_the_model_s_logits(name: str, accelerator: Accelerator) -> None:
    lm = MODELS[name](WORLD)
    with torch.no_grad():
        for p in lm.model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch = pairs(lm)["preferred"]
    with torch.no_grad(), reading(lm.sites, ["resid[1]"]) as seen:
        logits = lm.model(**batch.inputs(), use_cache=False).logits
        found = logits_of(final_norm(lm.sites), output_head(lm.sites), seen["resid[1]"])
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    check_head(Step(stage(RepNoise()), accelerator, lm.model, lm, lambda _: lm))


def test_a_model_whose_logits_are_made_otherwise_is_an_error(accelerator: Accelerator) -> None:
    def context(lm: LM) -> Step:
        return Step(stage(RepNoise()), accelerator, lm.model, lm, lambda _: lm)

    scaled = neox(WORLD)
    handle = scaled.model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].roll(1, -1),))
    scaled.model.gpt_neox.final_layer_norm.register_forward_hook(lambda _, __, out: out.roll(3, -1))
    check_head(context(scaled))  # both hooks are met on either way
    handle.remove()
    plain = neox(WORLD)
    plain.model.gpt_neox.final_layer_norm = nn.Identity()
    with pytest.raises(TiterError, match="no norm between"):
        check_head(context(plain))
    other = neox(WORLD)
    other.model.gpt_neox.register_forward_hook(lambda _, __, out: setattr(out, "last_hidden_state", -out.last_hidden_state))
    with pytest.raises(TiterError, match="do not give the model's logits"):
        RepNoise().setup(context(other))
    RepNoise(alpha=0.0).setup(context(other))


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_step_along_the_gradient_does_what_each_term_is_for(architecture: str) -> None:
    """Descent on the ascent term alone raises the harmful answers' loss; on the noise term alone lowers the MMD."""
    for alpha, beta, name, sign in ((1.0, 0.0, "rep_noise_nll", 1), (0.0, 1.0, "rep_noise_mmd", -1)):
        lm = ARCHITECTURES[architecture](WORLD)
        batch, logged = pairs(lm), []
        parameters = list(lm.model.parameters())
        for _ in range(2):
            c = Bare(lm)
            values: dict[str, float] = {}
            c.log = lambda key, value, kept=values: kept.__setitem__(key, float(value))  # type: ignore[method-assign]
            with_it = RepNoise(alpha=alpha, beta=beta).loss(c, batch).total
            without = RepNoise(alpha=0.0, beta=0.0).loss(Bare(lm), batch).total
            logged.append(values[name])
            slopes = torch.autograd.grad(with_it - without, parameters, allow_unused=True)
            with torch.no_grad():
                for p, slope in zip(parameters, slopes, strict=True):
                    if slope is not None:
                        p.sub_(slope, alpha=1e-3)
        assert (logged[1] - logged[0]) * sign > 0
