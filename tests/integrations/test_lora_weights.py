"""What a watched training counts of the weights, against peft's own merge of a copy: every kind of adapter, or a clear refusal."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from tests.conftest import llama
from tests.integrations.trainers import LONG
from tests.models.tiny import tiny
from titer.core.errors import TiterError
from titer.integrations.measured import VECTORS, changed, summed
from titer.integrations.views import started, uncounted, view, weights
from titer.integrations.watch import _check_start
from titer.models.lm import LM
from titer.models.sites import Sites

LORA = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
KINDS: dict[str, Any] = {
    "lora": LoraConfig(**LORA),
    "lora of every layer, rank-stabilised": LoraConfig(**LORA | {"target_modules": "all-linear"}, use_rslora=True),
    "lora of the embedding and the head": LoraConfig(**LORA | {"target_modules": ["embed_tokens", "lm_head"]}),
    "dora": LoraConfig(**LORA, use_dora=True),
    "tokens": LoraConfig(**LORA, trainable_token_indices=[1, 2, 3]),
    "modules_to_save": LoraConfig(**LORA, modules_to_save=["lm_head", "embed_tokens", "down_proj", "norm"]),
    "lora with a bias": LoraConfig(**LORA | {"target_modules": ["fc1", "q_proj"]}, lora_bias=True),
    "biases": LoraConfig(**LORA | {"target_modules": ["fc1", "q_proj"]}, bias="all"),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], r=2),
    "experts": LoraConfig(**LORA, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
}
BASES = {"lora with a bias": "opt", "biases": "opt", "experts": "qwen3_moe"}


def base_of(kind: str) -> Any:
    torch.manual_seed(0)
    return tiny(BASES[kind], len(LONG.tokenizer())) if kind in BASES else llama(LONG).model


def moved(model: Any, size: float = 0.1) -> Any:
    """The model with every tensor in training moved."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn(p.shape, generator=g))
    return model


def told(began: Any, model: Any) -> dict[str, Any]:
    table = changed(*(LM(one, LONG.tokenizer(), "model") for one in (began, view(model))))
    return summed(table)


@torch.no_grad()
def true(before: dict[str, torch.Tensor], model: Any) -> dict[str, float]:
    """||dW|| / ||W|| by part, of peft's merge of a copy."""
    merged = copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model
    sites, sums = Sites(merged), {}
    for name, p in merged.named_parameters():
        part = sites.part(name) if p.ndim > 1 else VECTORS
        change, weight = sums.get(part, (0.0, 0.0))
        sums[part] = (change + float(((p - before[name]) ** 2).sum()), weight + float((before[name] ** 2).sum()))
    return {part: (change / weight) ** 0.5 for part, (change, weight) in sums.items()}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_the_change_is_that_of_peft_s_own_merge(kind: str) -> None:
    base = base_of(kind)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    model = get_peft_model(base, KINDS[kind])
    began = started(model)
    assert told(began, model)["most"] == 0
    moved(model)
    now = {name: p.detach().clone() for name, p in model.named_parameters()}
    found, expected = told(began, model), true(before, model)
    assert {part: found[part] for part in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found["most"] == pytest.approx(max(expected.values()), rel=1e-3)
    assert found["most"] > 0.01
    assert uncounted(model) == []
    assert all(torch.equal(p, now[name]) for name, p in model.named_parameters())  # measuring touches nothing


@pytest.mark.long
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one block", "all"])
def test_each_trained_tensor_moves_what_is_told(every: bool) -> None:
    """Moved alone, whichever it is: none slips through. LoRA's A has to meet a B that is not zero."""
    for kind, config in KINDS.items():
        model = moved(get_peft_model(base_of(kind), config))
        trained = {name if every else re.sub(r"\d+", "", name): (name, p) for name, p in model.named_parameters() if p.requires_grad}
        for name, p in trained.values():
            began = started(model)
            with torch.no_grad():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
            assert told(began, model)["most"] > 0, (kind, name)
        if kind == "lora":
            assert len(weights(model)) == len(list(base_of(kind).parameters()))


def test_two_adapters_at_once() -> None:
    base = base_of("lora")
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    model = get_peft_model(base, KINDS["lora"])
    model.add_adapter("second", LoraConfig(**LORA | {"target_modules": ["k_proj", "q_proj"]}))
    model.base_model.set_adapter(["default", "second"])
    began = started(model)
    moved(model)
    found, expected = told(began, model), true(before, model)
    assert found["attention"] == pytest.approx(expected["attention"], rel=1e-3)


def test_a_head_adapted_over_a_tied_embedding_is_counted() -> None:
    base = base_of("lora")
    base.lm_head.weight = base.model.embed_tokens.weight
    base.config.tie_word_embeddings = True
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model = get_peft_model(base, LoraConfig(**LORA | {"target_modules": ["lm_head"]}))
    began = started(model)
    assert told(began, moved(model))["other"] > 0.01


@pytest.mark.parametrize("name", ["olmoe", "opt"])
def test_all_weights_trained(name: str) -> None:
    torch.manual_seed(0)
    model = tiny(name, len(LONG.tokenizer()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    began = started(model)
    found, expected = told(began, moved(model)), true(before, model)
    assert {part: found[part] for part in expected} == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_counted_is_refused() -> None:
    prompts = get_peft_model(base_of("lora"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(TiterError, match=r"prompt_encoder.* is trained and is no weight of the model"):
        _check_start(prompts, None, ("weight_change",))
    _check_start(prompts, None, ("drift",))
    model = base_of("lora")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(TiterError, match="quantised"):
        _check_start(model, None, ("weight_change",))
