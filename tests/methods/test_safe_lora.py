"""SafeLoRA against a naive form with C built in full, known answers, the threshold's edge, adapters and stages of no step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

from tests.conftest import ARCHITECTURES, llama, neox
from tests.methods.contract import WORLD, loader, run, same, stage
from tests.models.families import gpt2
from titer.context import Step
from titer.core.errors import TiterError
from titer.methods.safe_lora import Layer, SafeLoRA, projected
from titer.methods.sft import SFT
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, Architecture, load
from titer.stage import Lora
from titer.train import train

Weights = dict[str, torch.Tensor]


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    threads = torch.get_num_threads()
    yield Accelerator(cpu=True)
    torch.set_num_threads(threads)


def moved(maker: Any, seed: int, size: float = 0.1) -> LM:
    """A model a little way off, in a few directions."""
    lm = maker(WORLD)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.ndim == 2:
                p.add_(torch.randn(len(p), 2, generator=generator) @ torch.randn(2, p.shape[1], generator=generator), alpha=size)
    return lm


def models(maker: Any, tuned: Any = None) -> dict[str, LM]:
    return {"unaligned": moved(maker, 1), "aligned": moved(maker, 2), "tuned": tuned or moved(maker, 3)}


def finished(accelerator: Accelerator, method: SafeLoRA, three: dict[str, LM]) -> dict[str, LM]:
    lm = three["tuned"]
    method.finish(Step(stage(method), accelerator, lm.model, lm, three.__getitem__))
    return three


def weights(lm: LM) -> Weights:
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def block_matrices(names: Any) -> list[str]:
    """The blocks' Linears by their names, where the method finds them by structure."""
    return [n for n in names if ".layers." in n and n.endswith(".weight") and "norm" not in n]


def naive_c(unaligned: torch.Tensor, aligned: torch.Tensor) -> torch.Tensor:
    """C (outputs, outputs), entry by entry of the published form, in float64."""
    v = (aligned - unaligned).double()
    return torch.einsum("ij,kj->ik", v, v) / float((v**2).sum()) ** 0.5


def naive(three: dict[str, Weights]) -> tuple[dict[str, float], Weights]:
    """The cosine of every Linear of the blocks, and what its weight becomes if it is projected."""
    cosines, projections = {}, {}
    for name in block_matrices(three["tuned"]):
        c = naive_c(three["unaligned"][name], three["aligned"][name])
        change = (three["tuned"][name] - three["aligned"][name]).double()
        after = c @ change
        cosines[name] = float((after * change).sum() / (after.norm() * change.norm()))
        projections[name] = (three["aligned"][name].double() + after).float()
    return cosines, projections


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_edit_is_the_naive_one_and_nothing_else_changes(accelerator: Accelerator, architecture: str, threshold: float) -> None:
    three = models(ARCHITECTURES[architecture])
    before = {name: weights(lm) for name, lm in three.items()}
    cosines, projections = naive(before)
    after = weights(finished(accelerator, SafeLoRA(threshold=threshold), three)["tuned"])
    chosen = {name for name, cosine in cosines.items() if cosine <= threshold}
    assert chosen if threshold >= 0.7 else chosen != set(cosines)
    assert len(cosines) == {"neox": 8, "llama": 14}[architecture]
    for name, tensor in after.items():
        if name in chosen:
            torch.testing.assert_close(tensor, projections[name], rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(tensor, before["tuned"][name]), name
    for name in ("unaligned", "aligned"):
        assert same(before[name], weights(three[name]))


@pytest.mark.parametrize("layers", [1, 3, 100])
def test_so_many_of_the_lowest_cosine(accelerator: Accelerator, layers: int) -> None:
    three = models(llama)
    before = {name: weights(lm) for name, lm in three.items()}
    cosines, _ = naive(before)
    after = weights(finished(accelerator, SafeLoRA(threshold=-1.0, layers=layers), three)["tuned"])
    assert {n for n in after if not torch.equal(after[n], before["tuned"][n])} == set(sorted(cosines, key=cosines.__getitem__)[:layers])


def test_known_answer() -> None:
    """V = diag(3, 4), ||V|| = 5, so C = diag(9, 16) / 5: published, and no projector, for C C is not C."""
    eye = torch.nn.Linear(2, 2, bias=False)
    unaligned, aligned, tuned = (copy.deepcopy(eye) for _ in range(3))
    with torch.no_grad():
        unaligned.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
        aligned.weight.copy_(torch.tensor([[4.0, 1.0], [1.0, 5.0]]))
        tuned.weight.copy_(torch.tensor([[5.0, 1.0], [1.0, 4.0]]))  # dW = diag(1, -1)
        layer = Layer(tuned, unaligned, aligned)
        assert layer.cosine() == pytest.approx((9 + 16) / (2**0.5 * (81 + 256) ** 0.5))
        layer.project()
    torch.testing.assert_close(tuned.weight.data, torch.tensor([[4 + 9 / 5, 1.0], [1.0, 5 - 16 / 5]]))


def test_what_alignment_never_touched_is_taken_out() -> None:
    """A change whose outputs are orthogonal to V's goes to nothing, and one within a V of rank 1 and norm 1 stays."""
    v = torch.outer(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(projected(v, torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])), torch.zeros(3, 2))
    torch.testing.assert_close(projected(v, torch.tensor([[5.0, 6.0], [0.0, 0.0], [0.0, 0.0]])), torch.tensor([[5.0, 6.0], [0, 0], [0, 0]]))


def test_the_threshold_is_met_by_a_cosine_that_equals_it(accelerator: Accelerator) -> None:
    three = models(neox)
    layer = Layer(*(three[name].sites.linear("mlp_up[0]") for name in ("tuned", "unaligned", "aligned")))
    with torch.no_grad():
        edge = layer.cosine()
    assert edge is not None
    for threshold, changed in ((edge, True), (edge - 1e-6, False)):
        other = copy.deepcopy(three)
        before = other["tuned"].sites.linear("mlp_up[0]").weight.clone()
        finished(accelerator, SafeLoRA(threshold=threshold), other)
        assert bool((other["tuned"].sites.linear("mlp_up[0]").weight != before).any()) == changed


def test_linears_that_alignment_or_training_left_alone_are_left_alone(accelerator: Accelerator) -> None:
    three = models(neox)
    with torch.no_grad():
        three["unaligned"].sites.linear("mlp_up[0]").weight.copy_(three["aligned"].sites.linear("mlp_up[0]").weight)  # V = 0
        three["tuned"].sites.linear("attn_o[1]").weight.copy_(three["aligned"].sites.linear("attn_o[1]").weight)  # dW = 0
    before = weights(three["tuned"])
    finished(accelerator, SafeLoRA(threshold=1.0), three)
    after = weights(three["tuned"])
    kept = [name for name in block_matrices(after) if torch.equal(after[name], before[name])]
    assert sorted(kept) == ["gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "gpt_neox.layers.1.attention.dense.weight"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())


def adapted(maker: Any) -> LM:
    """The aligned model with an adapter that has learned something."""
    lm = moved(maker, 2)
    swapped = maker is gpt2
    config = LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=swapped)
    lm.model = get_peft_model(lm.model, config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in lm.model.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return lm


def test_weights_stored_the_other_way_round_are_edited_alike(accelerator: Accelerator) -> None:
    """GPT-2 stores (inputs, outputs), with an adapter and without."""
    for wrapped in (False, True):
        lm = adapted(gpt2) if wrapped else moved(gpt2, 3)
        three = models(gpt2, lm)
        stored = {n: weights(one) for n, one in three.items() if one is not lm}
        stored["tuned"] = copy.deepcopy(lm.model).merge_and_unload().state_dict() if wrapped else weights(lm)
        finished(accelerator, SafeLoRA(threshold=1.0), three)
        after = lm.model.merge_and_unload().state_dict() if wrapped else lm.model.state_dict()
        names = [f"transformer.h.{i}.{part}.weight" for i in range(2) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
        assert {n for n in after if not torch.equal(after[n], stored["tuned"][n])} <= set(names)
        for name in names:
            low, high, tuned = (stored[n][name].T for n in ("unaligned", "aligned", "tuned"))
            expected = high + (naive_c(low, high) @ (tuned - high).double()).float()
            torch.testing.assert_close(after[name].T, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_with_an_adapter_b_becomes_c_b_where_the_merged_change_qualifies(accelerator: Accelerator, architecture: str) -> None:
    maker = ARCHITECTURES[architecture]
    lm = adapted(maker)
    three = models(maker, lm)
    merged = copy.deepcopy(lm.model).merge_and_unload().state_dict()
    cosines, projections = naive({"tuned": merged, **{n: weights(three[n]) for n in ("unaligned", "aligned")}})
    middle = sorted(cosines.values())[len(cosines) // 2]
    before = weights(lm)
    finished(accelerator, SafeLoRA(threshold=middle), three)
    touched = {n for n, tensor in weights(lm).items() if not torch.equal(tensor, before[n])}
    assert touched
    assert all(".lora_B." in name for name in touched)
    after = lm.model.merge_and_unload().state_dict()
    for name, cosine in cosines.items():
        if abs(cosine - middle) > 1e-5:
            expected = projections[name] if cosine <= middle else merged[name]
            torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-5)


def continued(maker: Any) -> LM:
    """A single-LoRA model as the loop makes it: the adapter holds all since the model before alignment, the weights under it none."""
    lm = adapted(maker)
    with torch.no_grad():
        for module in lm.model.modules():
            if hasattr(module, "get_delta_weight"):
                start = module.get_delta_weight("default").clone()
                module.lora_B["default"].weight.mul_(1.3).add_(0.1)  # what the user's stage added
                module.base_layer.weight.sub_(start)
    return lm


@pytest.mark.parametrize("maker", [llama, neox, gpt2])
def test_a_continued_adapter_s_change_is_counted_from_the_aligned_weights(accelerator: Accelerator, maker: Any) -> None:
    lm = continued(maker)
    three = models(maker, lm)
    merged = copy.deepcopy(lm.model).merge_and_unload().state_dict()
    stored = {"tuned": merged, **{n: weights(three[n]) for n in ("unaligned", "aligned")}}
    swapped = maker is gpt2
    names = [n for n in merged if ".h." in n and n.endswith(".weight") and ".ln" not in n] if swapped else block_matrices(merged)
    cosines, projections = {}, {}
    for name in names:
        low, high, tuned = (stored[n][name].T if swapped else stored[n][name] for n in ("unaligned", "aligned", "tuned"))
        change = (tuned - high).double()
        after = naive_c(low, high) @ change
        cosines[name] = float((after * change).sum() / (after.norm() * change.norm()))
        kept = high + after.float()
        projections[name] = kept.T if swapped else kept
    middle = sorted(cosines.values())[len(cosines) // 2]
    finished(accelerator, SafeLoRA(threshold=middle), three)
    after_all = lm.model.merge_and_unload().state_dict()
    for name, cosine in cosines.items():
        if abs(cosine - middle) > 1e-5:
            torch.testing.assert_close(after_all[name], projections[name] if cosine <= middle else merged[name], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(after_all[name], merged[name]) for name in merged if name not in names)


@pytest.mark.long
def test_a_continued_stage_counts_from_its_parent_as_double_lora_does(tmp_path: Path) -> None:
    """Through the loop: no step, so dW is nil from the parent, and the parent's alignment must stay whole."""
    work, after = tmp_path / "parent", tmp_path / "after"
    parent = run(stage(SFT(), adapter=Lora(rank=2)), llama, work)
    after.mkdir()

    def opened(name: str) -> LM:
        return llama(WORLD) if name == "unaligned" else load(open_checkpoint(work / "model"))

    made = stage(SafeLoRA(threshold=1.0), steps=0, adapter=Lora(rank=2, continued=True))
    train(made, lambda: opened("aligned"), opened, after, adapter=work / "adapter")
    found = dict(load(open_checkpoint(after / "model")).model.state_dict())
    assert max(float((found[name] - parent[name]).abs().max()) for name in parent) < 1e-5


def test_a_stage_of_no_step_repairs_as_the_last_act_of_training_does(tmp_path: Path) -> None:
    trained = run(stage(SFT(), streams=stage(SafeLoRA()).streams), neox, tmp_path / "sft")
    whole = run(stage(SafeLoRA()), neox, tmp_path / "whole")

    def tuned(_: Any) -> LM:
        lm = neox(WORLD)
        lm.model.load_state_dict(trained)
        return lm

    work = tmp_path / "repair"
    work.mkdir()
    train(stage(SafeLoRA(), steps=0, kind="repair"), lambda: tuned(WORLD), loader(neox), work)
    repaired = dict(load(open_checkpoint(work / "model")).model.state_dict())
    assert same(whole, repaired)
    assert not same(trained, repaired)


def test_neutral_with_an_adapter_is_sft_too(tmp_path: Path) -> None:
    plain = run(stage(SFT(), adapter=Lora(rank=2)), llama, tmp_path / "sft")
    assert same(plain, run(stage(SafeLoRA(threshold=-1.0), adapter=Lora(rank=2)), llama, tmp_path / "neutral"))
    assert not same(plain, run(stage(SafeLoRA(threshold=1.0), adapter=Lora(rank=2)), llama, tmp_path / "all"))


def test_models_of_another_shape_are_an_error(accelerator: Accelerator) -> None:
    wide = Architecture(layers=2, width=32, heads=2, positions=64).build(WORLD.tokenizer(), 0)
    deep = Architecture(layers=3, width=16, heads=2, positions=64).build(WORLD.tokenizer(), 0)
    for other, said in (
        (wide, r"\(48, 16\) in the tuned model, \(48, 16\) in the unaligned, \(96, 32\)"),
        (deep, "differ in their blocks"),
    ):
        with pytest.raises(TiterError, match=said):
            finished(accelerator, SafeLoRA(), {**models(neox), "aligned": other})
