"""The weights of a loaded model are those of its files whatever pass came before: RWKV of transformers divides some as it is evaluated."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RwkvConfig, RwkvForCausalLM

from tests.models.families import mixtral
from titer.data.world import World
from titer.integrations.views import trained, view
from titer.models.checkpoint import open_checkpoint
from titer.models.directions import Towards
from titer.models.lm import LM, Decoding, load
from titer.models.perturbed import movable

IDS = torch.tensor([[20, 21, 22]])


def rwkv(seed: int) -> Any:
    """Of 13 layers, so that some are divided by 2 and one by 4."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 13}
    model = RwkvForCausalLM(RwkvConfig(vocab_size=len(World(seed=1).tokenizer()), context_length=64, **sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_transformers_own_passes_move_the_weights() -> None:
    """What this file is about; when it no longer holds, `as_stored` may go."""
    model = rwkv(0)
    before = state(model)
    model(IDS)
    assert not same(before, state(model))


def test_an_evaluation_moves_no_weight_and_its_answer_is_that_of_transformers() -> None:
    model, theirs = rwkv(0), rwkv(0)
    lm = LM(model, World(seed=1).tokenizer(), "m")
    before = state(model)
    lm.generate(["a b", "c d"], Decoding(max_new_tokens=3))
    torch.testing.assert_close(lm.model(IDS).logits, theirs(IDS).logits, atol=2e-3, rtol=2e-3)
    assert same(before, state(model))
    model.train()
    torch.testing.assert_close(model(IDS).logits, theirs.train()(IDS).logits)
    assert same(before, state(model))


def test_a_model_that_was_evaluated_before_gets_its_weights_back() -> None:
    model = rwkv(0)
    before = state(model)
    model(IDS)
    LM(model, World(seed=1).tokenizer(), "m")
    assert same(before, state(model))
    assert not model.training


@pytest.mark.long
def test_what_is_saved_after_an_evaluation_is_what_was_loaded(tmp_path: Path) -> None:
    tokenizer = World(seed=1).tokenizer()
    LM(rwkv(0), tokenizer, "m").save(tmp_path / "m")
    lm = load(open_checkpoint(tmp_path / "m"))
    lm.model(IDS)
    lm.save(tmp_path / "again")
    first, again = (open_checkpoint(tmp_path / name) for name in ("m", "again"))
    assert all(torch.equal(first.weight(name), again.weight(name)) for name in first.files)


@pytest.mark.long
def test_half_way_to_another_model_is_half_way(tmp_path: Path) -> None:
    tokenizer = World(seed=1).tokenizer()
    for seed in (0, 1):
        LM(rwkv(seed), tokenizer, "m").save(tmp_path / str(seed))
    base, other = (open_checkpoint(tmp_path / str(seed)) for seed in (0, 1))
    lm, there = load(base, "cpu"), load(other, "cpu")
    expected = there.model(IDS).logits
    with movable(lm, base) as moved:
        lm.model(IDS)
        with moved.at([(1.0, Towards(other))]) as now:
            assert torch.equal(now.model(IDS).logits, expected)
        assert moved.untouched()


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_view_leaves_the_model_in_training_its_weights(evaluated: bool) -> None:
    """Watch measures through a view, whose passes must not divide the tensors that both share."""
    model = rwkv(0)
    before = state(model)
    if evaluated:
        model(IDS)
    assert same(before, {name: p.detach() for name, p in trained(model).items()} | model.state_dict())
    lm = LM(view(model), World(seed=1).tokenizer(), "the model in training")
    lm.model.eval()(IDS)
    assert same(before, state(model))
    model.train()(IDS)
    assert same(before, copy.deepcopy(model).state_dict())


def test_a_mixture_that_was_saved_with_its_routers_loss_answers(world: World, tmp_path: Path) -> None:
    """Trainers set output_router_logits and save it; transformers' own generation fails with it."""
    lm = mixtral(world)
    lm.save(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"output_router_logits": True}))
    found = load(open_checkpoint(tmp_path / "m"))
    assert found.generate(["a b", "c"], Decoding(max_new_tokens=3)) == lm.generate(["a b", "c"], Decoding(max_new_tokens=3))
    assert found.model.config.output_router_logits
