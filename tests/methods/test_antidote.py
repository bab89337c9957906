"""Antidote against a naive form row by row, a known answer, padding, adapters, stages of no step, hooks."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers.pytorch_utils import Conv1D

from tests.conftest import ARCHITECTURES, llama, neox
from tests.methods.contract import WORLD, KilledError, loader, run, same, stage
from tests.models.families import gpt2, opt
from titer.context import Step
from titer.core.errors import TiterError
from titer.data.example import Part, Stream
from titer.data.world import World, WorldSource
from titer.methods.antidote import Antidote, _prune, input_norms
from titer.methods.sft import SFT
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, load
from titer.stage import Lora
from titer.train import train

LONG = World(seed=2, slots=4, shortest=9, longest=12)  # texts of several lengths: batches with padding
MAKERS = {**ARCHITECTURES, "opt": opt, "gpt2": gpt2}  # OPT's MLP sees (B T, D), GPT-2 stores (inputs, outputs)
BLOCKS = re.compile(r"\.(?:layers|h)\.(\d+)\.(.+)")


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    threads = torch.get_num_threads()
    yield Accelerator(cpu=True)
    torch.set_num_threads(threads)


def harmful(pool: int | None = None) -> Stream:
    unsafe, safe = WorldSource(world=LONG, kind="unsafe"), WorldSource(world=LONG, kind="safe")
    parts = (Part(source=unsafe, answer="comply", share=0.5), Part(source=safe, answer="refuse", share=0.5))
    return Stream(parts=parts, seed=4, pool=pool)


def context(accelerator: Accelerator, method: Antidote, maker: Any, pool: int | None = None) -> Step:
    lm = maker(LONG)
    made = stage(method)
    return Step(made.model_copy(update={"streams": {**made.streams, "harmful": harmful(pool)}}), accelerator, lm.model, lm, lambda _: lm)


def rows(c: Step, count: int) -> list[list[int]]:
    """The first harmful examples, each alone and without padding."""
    numbers = c.stage.streams["harmful"].numbers(0, count)
    batch = c.stage.streams["harmful"].chosen(numbers, c.lm.tokenizer)
    assert batch.attention_mask is not None
    return [batch.input_ids[i][batch.attention_mask[i] == 1].tolist() for i in range(count)]


def naive_norms(lm: LM, examples: list[list[int]]) -> dict[str, torch.Tensor]:
    """Each Linear's input norms by the module's name, from one unpadded row at a time, in float64."""
    found: dict[str, torch.Tensor] = {}
    wanted = {name: m for name, m in lm.model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and BLOCKS.search(name)}

    def keep(name: str) -> Any:
        def hook(_: Any, args: Any, __: Any) -> None:
            found[name] = found.get(name, 0) + (args[0].double().flatten(0, -2) ** 2).sum(0)

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in wanted.items()]
    with torch.no_grad():
        for row in examples:
            lm.model(input_ids=torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return {name: total.sqrt() for name, total in found.items()}


def naive_pruned(weight: torch.Tensor, norm: torch.Tensor, count: int) -> torch.Tensor:
    after = weight.clone()
    for i in range(len(weight)):
        score = [(abs(float(weight[i, j])) * float(norm[j]), j) for j in range(weight.shape[1])]
        for _, j in sorted(score, reverse=True)[:count]:
            after[i, j] = 0.0
    return after


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_input_norms_are_those_of_each_example_alone(accelerator: Accelerator, family: str) -> None:
    c = context(accelerator, Antidote(), MAKERS[family])
    found = input_norms(c, 150)  # more than one batch of `first`
    expected = naive_norms(c.lm, rows(c, 150))
    assert len(found) == len(expected)
    assert not any(m._forward_pre_hooks for m in c.lm.model.modules())
    for name, norm in expected.items():
        place = BLOCKS.search(name)
        assert place
        torch.testing.assert_close(found[f"block {place[1]}, {place[2]}"].double(), norm, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("family", ["gpt2", *sorted(ARCHITECTURES)])
def test_each_row_loses_its_highest_scores_and_nothing_else_changes(accelerator: Accelerator, family: str, ratio: float) -> None:
    method = Antidote(ratio=ratio, examples=20)
    c = context(accelerator, method, MAKERS[family])
    before = {name: tensor.clone() for name, tensor in c.lm.model.state_dict().items()}
    norms = naive_norms(c.lm, rows(c, 20))
    method.finish(c)
    after = c.lm.model.state_dict()
    for name, tensor in after.items():
        layer = name.removesuffix(".weight")
        if layer in norms:
            rows_after, rows_before = (t.T if family == "gpt2" else t for t in (tensor, before[name]))
            count = int(ratio * rows_after.shape[1] + 0.5)
            assert torch.equal(rows_after, naive_pruned(rows_before, norms[layer], count)), name
            assert bool(((rows_after == 0).sum(1) == count).all())
        else:
            assert torch.equal(tensor, before[name]), name


def test_known_answer() -> None:
    """|w| ||x||: (1 x 4, 3 x 1, 2 x 3, 5 x 1) = (4, 3, 6, 5), the two highest go, though 3 is a large weight."""
    layer = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -3.0, -2.0, 5.0]]))
        _prune(layer, torch.tensor([4.0, 1.0, 3.0, 1.0]), 0.5)
    assert layer.weight.tolist() == [[1.0, -3.0, 0.0, 0.0]]


def test_all_of_a_smaller_pool(accelerator: Accelerator) -> None:
    c = context(accelerator, Antidote(), neox, pool=12)
    some, all_of_it, more = (input_norms(c, count) for count in (5, 12, 2000))
    for name, norm in all_of_it.items():
        assert torch.equal(norm, more[name])
        assert bool((norm >= some[name]).all())
        assert not torch.equal(norm, some[name])


def test_a_failing_pass_leaves_no_hook_and_the_mode(accelerator: Accelerator) -> None:
    c = context(accelerator, Antidote(), llama)
    c.lm.model.train()

    def fails(*_: object) -> None:
        assert not c.lm.model.training  # no dropout while scoring
        raise KilledError

    handle = c.lm.sites.linear("mlp_down[1]").register_forward_hook(fails)
    with pytest.raises(KilledError):
        Antidote().finish(c)
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in c.lm.model.modules())
    assert c.lm.model.training


def test_training_draws_no_harmful_example(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    c = context(accelerator, Antidote(), neox)
    asked = []
    micro = Step.micro
    monkeypatch.setattr(Step, "micro", lambda self, stream=None: asked.append(stream) or micro(self, stream))
    Antidote().step(c)
    assert asked == ["train"]


def repaired(weights: dict[str, torch.Tensor], method: Antidote, maker: Any, work: Path) -> dict[str, torch.Tensor]:
    """A stage of no step on these weights."""

    def begin() -> LM:
        lm = maker(WORLD)
        lm.model.load_state_dict(weights)
        return lm

    work.mkdir()
    train(stage(method, steps=0, kind="repair"), begin, loader(maker), work)
    return dict(load(open_checkpoint(work / "model")).model.state_dict())


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("adapter", [None, Lora(rank=2)])
def test_the_end_of_training_prunes_as_a_stage_of_no_step_on_the_merged_weights(
    architecture: str, adapter: Lora | None, tmp_path: Path
) -> None:
    """With an adapter too: what is saved has exact zeros, in the places the merged weights' scores say."""
    maker, method = ARCHITECTURES[architecture], Antidote(examples=40, ratio=0.2)
    trained = run(stage(SFT(), adapter=adapter), maker, tmp_path / "sft")
    expected = repaired(trained, method, maker, tmp_path / "repair")
    found = run(stage(method, adapter=adapter), maker, tmp_path / "whole")
    assert not same(trained, found)
    matrix = next(name for name in found if "mlp" in name and name.endswith("weight"))
    assert int((found[matrix] == 0).sum()) == len(found[matrix]) * round(0.2 * found[matrix].shape[1])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_neutral_with_an_adapter_is_sft_too(tmp_path: Path) -> None:
    plain = run(stage(SFT(), adapter=Lora(rank=2)), neox, tmp_path / "sft")
    assert same(plain, run(stage(Antidote(ratio=0.0), adapter=Lora(rank=2)), neox, tmp_path / "neutral"))


def test_a_model_that_is_not_finite_is_an_error(accelerator: Accelerator) -> None:
    c = context(accelerator, Antidote(), neox)
    before = copy.deepcopy(c.lm.model.state_dict())
    with torch.no_grad():
        c.lm.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(TiterError, match="not finite"):
        Antidote(examples=3).finish(c)
    after = c.lm.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if ".layers." in name)
