"""Answers and activations of a batch are those of its rows alone, whatever a model makes of padding."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.models.tiny import tiny
from titer.data.example import Example
from titer.data.world import World
from titer.models.activations import at_prompt_end
from titer.models.hooks import reading
from titer.models.lm import LM, Decoding
from titer.probes.sensitivity import sensitivity

PROMPTS = ["a b", "c d e f g h", "b", "h g f e d c b a", "d e", "a c e g", "b c"]
MODELS = {  # what rows share a batch: of answers, of a pass padded on the left, on the right
    "llama": ("all", "all", "all"),
    "mamba": ("all", "all", "all"),
    "rwkv": ("none", "length", "all"),
    "recurrent_gemma": ("length", "length", "all"),
    "bart": ("length", "length", "all"),
}


def made(name: str, seed: int = 0) -> LM:
    torch.manual_seed(seed)
    tokenizer = World(seed=1).tokenizer()
    return LM(tiny(name, len(tokenizer)).eval(), tokenizer, name)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_answers_as_its_prompts_alone(name: str) -> None:
    for seed in range(3):
        lm = made(name, seed)
        together = lm.generate(PROMPTS, Decoding(max_new_tokens=8))
        assert together == [lm.generate([prompt], Decoding(max_new_tokens=8))[0] for prompt in PROMPTS]


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_makes_of_padding_is_found_out(name: str) -> None:
    lm, rows = made(name), [[17], [18, 19], [20], [21, 22]]
    groups = {"all": [[0, 1, 2, 3]], "length": [[0, 2], [1, 3]], "none": [[0], [1], [2], [3]]}
    for way, expected in zip(("generated", "left", "right"), MODELS[name], strict=True):
        assert lm.padding.batches(rows, range(4), 4, way) == groups[expected]  # type: ignore[arg-type]
    assert lm.padding.batches(rows, (3, 0, 1), 1, "generated") == [[3], [0], [1]]


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_activations_and_sensitivity_of_a_batch_are_those_of_its_prompts(name: str) -> None:
    lm = made(name)
    together = at_prompt_end(lm, PROMPTS, ["resid[0]"])["resid[0]"]
    alone = torch.cat([at_prompt_end(lm, [prompt], ["resid[0]"])["resid[0]"] for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    asked = [Example(prompt, False, "test", "test") for prompt in PROMPTS]
    found = sensitivity(lm, asked).g.tolist()
    assert found == pytest.approx([sensitivity(lm, [one]).g.item() for one in asked], rel=1e-3)


def test_finding_out_leaves_no_trace() -> None:
    """Hooks do not see it, generators and modes stay, and so does the model."""
    lm = made("rwkv")
    lm.model.train()
    before, state = copy.deepcopy(lm.model.state_dict()), torch.get_rng_state()
    with reading(lm.sites, ["resid[0]"]) as seen:
        lm.padding.batches([[17], [18, 19]], (0, 1), 2, "left")
        assert not seen
        lm.model(torch.tensor([[17]]))
        assert seen
    assert lm.model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
