"""Fixed pools: their numbers, each example once, and a reference computed once against one computed on the fly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tests.conftest import neox
from tests.methods.contract import WORLD, KilledError, largest_gap, same, stage
from titer.context import POOL_BATCH, Ahead, Step
from titer.data.example import Batch, Part, Stream
from titer.data.mix import mix
from titer.data.world import World, WorldSource
from titer.methods.base import Context, Method
from titer.methods.dpo import DPO
from titer.methods.sft import SFT
from titer.methods.unlearn import Unlearn
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, load
from titer.stage import Lora
from titer.train import _prepare_for_training, train

POOL = 12
RAGGED = World(seed=2, slots=4, shortest=9, longest=12)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    threads = torch.get_num_threads()
    yield Accelerator(cpu=True)
    torch.set_num_threads(threads)


def streams(pool: int | None = POOL, world: World = WORLD) -> dict[str, Stream]:
    safe, unsafe = WorldSource(world=world, kind="safe"), WorldSource(world=world, kind="unsafe")
    wanted = (Part(source=safe, answer="comply", share=0.5), Part(source=unsafe, answer="refuse", share=0.5))
    flipped = (Part(source=safe, answer="refuse", share=0.5), Part(source=unsafe, answer="comply", share=0.5))
    return {"preferred": Stream(parts=wanted, seed=5, pool=pool), "rejected": Stream(parts=flipped, seed=5, pool=pool)}


def step_of(accelerator: Accelerator, made: dict[str, Stream], world: World = WORLD, lm: LM | None = None, **changes: Any) -> Step:
    lm = lm or neox(world)
    values = {"streams": made, "batch": 4, "accumulation": 2, **changes}
    c = Step(stage(DPO(b_s=2.0, b_u=1.0, window=4), **values), accelerator, lm.model, lm, lambda _: neox(world))
    if c.stage.adapter is not None:
        _prepare_for_training(lm, c.stage)
        c._model = lm.model
    return c


def set_up(c: Step) -> None:
    """As the loop does before its first step."""
    c.at_start = True
    c.state = c.stage.method.setup(c)
    c.at_start = False


def descend(c: Step, steps: int) -> None:
    """Some steps of plain gradient descent."""
    for number in range(steps):
        c.begin(number)
        for _, p in c.named:
            p.grad = None
        c.stage.method.step(c)
        c.settle()
        with torch.no_grad():
            for _, p in c.named:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-0.05)


def words(batch: Batch, i: int) -> list[int]:
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    return batch.input_ids[i][mask[i] == 1].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["drawn", "mix"])
def test_indices_are_numbers_in_the_pool(kind: str) -> None:
    """In every epoch, whatever the order, a row's index gives that row again."""
    made = streams(world=RAGGED)["preferred"]
    if kind == "mix":
        made = mix([(part.source, part.answer, 6) for part in made.parts], seed=4)
    tokenizer = RAGGED.tokenizer()
    orders = []
    for first in range(0, 3 * POOL, POOL):
        batch = made.batch(first, POOL, tokenizer)
        assert sorted(batch.indices.tolist()) == list(range(POOL))
        orders.append(batch.indices.tolist())
        for i, number in enumerate(batch.indices.tolist()):
            assert words(made.chosen(np.array([number]), tokenizer), 0) == words(batch, i)
    assert len({tuple(order) for order in orders}) == 3
    across = made.batch(POOL - 3, 6, tokenizer)  # over the end of an epoch
    assert across.indices.tolist() == orders[0][-3:] + orders[1][:3]


def test_an_endless_streams_indices_are_places() -> None:
    made = streams(None)["preferred"]
    assert made.numbers(40, 5).tolist() == [40, 41, 42, 43, 44]
    assert made.batch(40, 5, WORLD.tokenizer()).indices.tolist() == [40, 41, 42, 43, 44]


def test_chosen_examples_may_repeat_and_come_in_any_order() -> None:
    made, tokenizer = streams(world=RAGGED)["rejected"], RAGGED.tokenizer()
    numbers = np.array([7, 2, 7, 0])
    batch = made.chosen(numbers, tokenizer)
    assert batch.indices.tolist() == numbers.tolist()
    for i, number in enumerate(numbers):
        assert words(batch, i) == words(made.chosen(np.array([number]), tokenizer), 0)


@pytest.mark.parametrize("pool", [1, POOL, POOL_BATCH, POOL_BATCH + 1, 300])
def test_pool_yields_each_example_once_in_order(accelerator: Accelerator, pool: int) -> None:
    made = streams(pool)
    c = step_of(accelerator, made)
    seen = list(c.pool())
    assert max(len(batch["preferred"]) for batch in seen) <= POOL_BATCH
    for name in ("preferred", "rejected"):
        assert torch.cat([batch[name].indices for batch in seen]).tolist() == list(range(pool))
        rows = [words(batch[name], i) for batch in seen for i in range(len(batch[name]))]
        whole = made[name].batch(0, pool, WORLD.tokenizer())
        assert [rows[i] for i in whole.indices.tolist()] == [words(whole, i) for i in range(pool)]


def test_pool_of_an_endless_stream_is_nothing(accelerator: Accelerator) -> None:
    assert list(step_of(accelerator, streams(None)).pool()) == []
    half = {**streams(POOL), "rejected": streams(None)["rejected"]}
    assert list(step_of(accelerator, half).pool()) == []
    unequal = {**streams(POOL), "rejected": streams(POOL + 1)["rejected"]}
    assert list(step_of(accelerator, unequal).pool()) == []
    c = step_of(accelerator, streams(None))
    set_up(c)
    assert c.state == {}


@pytest.mark.parametrize("adapter", [None, Lora(rank=2)])
@pytest.mark.parametrize("world", [WORLD, RAGGED])
def test_a_cached_reference_is_the_one_computed_on_the_fly(accelerator: Accelerator, world: World, adapter: Lora | None) -> None:
    """After some steps: the pool's examples through the cache, and the same examples as an endless stream's."""
    cached = step_of(accelerator, streams(POOL, world), world, adapter=adapter)
    set_up(cached)
    assert cached.state["reference"].shape == (POOL, 2)
    descend(cached, 5)
    fly = step_of(accelerator, streams(None, world), world, adapter=adapter)
    set_up(fly)
    with torch.no_grad():
        for (name, p), (other, q) in zip(fly.named, cached.named, strict=True):
            assert name == other
            p.copy_(q)
    numbers = np.array([5, 11, 0, 3, 5])
    method = cached.stage.method
    batches = [{name: s.chosen(numbers, c.lm.tokenizer) for name, s in c.stage.streams.items()} for c in (cached, fly)]
    for name in ("preferred", "rejected"):
        assert torch.equal(batches[0][name].input_ids, batches[1][name].input_ids)
    found = [float(method.loss(c, batch).total.detach()) for c, batch in zip((cached, fly), batches, strict=True)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert abs(float(cached.logged["margin"])) > 1e-3
    assert "reference" not in fly.state


class Uncached(Method):
    """DPO that computes its reference at every step."""

    STREAMS = DPO.STREAMS
    SOURCE, VERSION, NEUTRAL = "a test", 1, "none"

    def loss(self, c: Context, batch: Any) -> Any:
        return DPO(b_s=2.0, b_u=1.0, window=4).loss(c, batch)


def run(method: Method, work: Path, stop_after: int = 0) -> dict[str, torch.Tensor]:
    """Eight steps of eight pairs, five epochs of the pool; stopped after some step, and then gone on with."""
    made = stage(method, streams=streams(), steps=8)

    def stop(done: int, _: int) -> None:
        if done == stop_after:
            raise KilledError

    work.mkdir()
    if stop_after:
        with contextlib.suppress(KilledError):  # the failure that was asked for
            train(made, lambda: neox(WORLD), lambda _: neox(WORLD), work, 3, stop)
        assert (work / "resume" / "latest.json").exists()
    train(made, lambda: neox(WORLD), lambda _: neox(WORLD), work, 3)
    return dict(load(open_checkpoint(work / "model")).model.state_dict())


@pytest.mark.long
def test_training_with_the_cache_is_training_without_it_and_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = DPO(b_s=2.0, b_u=1.0, window=4)
    calls: list[int] = []
    plain_setup = DPO.setup

    def counted(self: DPO, c: Context) -> dict[str, torch.Tensor]:
        calls.append(c.number)
        return plain_setup(self, c)

    monkeypatch.setattr(DPO, "setup", counted)
    whole = run(method, tmp_path / "whole")
    assert len(calls) == 1
    assert same(whole, run(method, tmp_path / "cut", stop_after=7))
    assert len(calls) == 2, "the resumed run made its reference again, from weights already trained"
    assert largest_gap(whole, run(Uncached(), tmp_path / "fly")) < 1e-4
    other = run(Unlearn(w_u=0.5), tmp_path / "other")
    assert largest_gap(whole, other) > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_the_reference_at_the_start_leaves_the_models_mode(accelerator: Accelerator, training: bool) -> None:
    c = step_of(accelerator, streams())
    c.at_start = True
    c.lm.model.train(training)
    batch = next(iter(c.micro()))["preferred"]
    with c.reference() as forward:
        assert not c.lm.model.training
        assert not forward(batch).requires_grad
    assert c.lm.model.training is training
    with pytest.raises(RuntimeError, match="inside"), c.reference():
        raise RuntimeError("inside")
    assert c.lm.model.training is training
    assert c.forward(batch).requires_grad


def dropping(adapter: Lora | None, accelerator: Accelerator) -> Step:
    """A context whose model has dropout, in training."""
    lm = neox(WORLD)
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    c = step_of(accelerator, streams(), lm=lm, adapter=adapter)
    c.lm.model.train()
    return c


@pytest.mark.parametrize(("at_start", "adapter"), [(True, None), (False, None), (True, Lora(rank=2)), (False, Lora(rank=2))])
def test_the_reference_has_no_dropout(accelerator: Accelerator, at_start: bool, adapter: Lora | None) -> None:
    """Section 4: the reference is in evaluation mode, whatever the model in training is in."""
    c = dropping(adapter, accelerator)
    c.at_start = at_start
    batch = next(iter(c.micro()))["preferred"]
    assert not torch.equal(c.forward(batch), c.forward(batch)), "the model has no dropout: the test shows nothing"
    plain = neox(WORLD).model.eval()(**batch.inputs()).logits
    with c.reference() as forward:
        torch.testing.assert_close(forward(batch), plain)
    assert c.lm.model.training


def test_batches_drawn_ahead_are_the_batches_of_their_places() -> None:
    """Whatever order they are asked in: in turn, the same again (a second pass over the step), or after a jump (resume)."""
    lm = neox(WORLD)
    made = stage(SFT(), streams={"train": streams()["preferred"]})
    ahead = Ahead(made, lm)
    for place, following in ((0, 8), (8, 16), (8, 16), (40, 48), (48, 56)):
        found = ahead.batch("train", place, following)
        expected = made.streams["train"].batch(place, made.batch, lm.tokenizer)
        assert torch.equal(found.input_ids, expected.input_ids)
        assert torch.equal(found.indices, expected.indices)
