"""The sensitivity g against finite differences of the largest logit, and what it must not depend on."""

from __future__ import annotations

import pytest
import torch

from tests.models.families import PROMPTS, SUPPORTED
from tests.probes.made import lively
from titer.core.errors import TiterError
from titer.data.encode import prompt_ids
from titer.data.example import Example
from titer.data.world import World
from titer.models.lm import LM
from titer.probes.sensitivity import gradient_norms, sensitivity

STEP = 5e-4
EXAMPLES = [Example(prompt, False, "safe", "test") for prompt in PROMPTS]


@torch.no_grad()
def slopes(lm: LM, ids: list[int]) -> torch.Tensor:
    """Central differences of the largest logit at the end of one unpadded prompt, (T, D)."""
    here = lm.model.get_input_embeddings()(torch.tensor([ids]))
    moves = torch.eye(here.numel(), dtype=here.dtype).reshape(-1, *here.shape[1:]) * STEP
    high, low = (lm.model(inputs_embeds=here + sign * moves, use_cache=False).logits[:, -1].amax(1) for sign in (1, -1))
    return ((high - low) / (2 * STEP)).reshape(here.shape[1:])


@pytest.mark.parametrize("name", [*sorted(SUPPORTED), "gpt2"])
def test_g_equals_finite_differences_and_leaves_the_last_token_and_padding_out(name: str, world: World) -> None:
    lm = lively(world, name)
    rows = prompt_ids(lm.tokenizer, PROMPTS)
    found = gradient_norms(lm, rows)
    lm.model.double()  # for the differences
    for g, ids in zip(found.tolist(), rows, strict=True):
        naive = slopes(lm, ids)
        assert g == pytest.approx(float(naive[:-1].norm()), rel=1e-2, abs=1e-4)
        assert float(naive.norm()) > 1.05 * g  # the last token's own gradient is large: it would be seen


def test_the_table_is_in_the_order_of_the_inputs_whatever_the_batch(lm: LM) -> None:
    alone = [float(gradient_norms(lm, [row])) for row in prompt_ids(lm.tokenizer, PROMPTS)]
    assert len({round(g, 6) for g in alone}) > 2
    lm.model.eval()
    for batch in (1, 2, 3, 64):
        table = sensitivity(lm, EXAMPLES, batch)
        assert table.input.tolist() == list(range(len(PROMPTS)))
        assert table.g.to_numpy() == pytest.approx(alone, rel=1e-4, abs=1e-7)


def test_a_prompt_of_one_token_has_nothing_before_it(lm: LM) -> None:
    assert sensitivity(lm, [Example("b", False, "safe", "test")]).g.tolist() == [0.0]


def test_g_grows_with_the_logits(world: World) -> None:
    lm = lively(world)
    before = sensitivity(lm, EXAMPLES).g.to_numpy()
    with torch.no_grad():
        lm.model.lm_head.weight.mul_(3)
    assert sensitivity(lm, EXAMPLES).g.to_numpy() == pytest.approx(3 * before, rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_as_it_was(lm: LM, training: bool) -> None:
    lm.model.train(training)
    frozen = next(lm.model.parameters())
    frozen.requires_grad_(False)
    wanted = [p.requires_grad for p in lm.model.parameters()]
    sensitivity(lm, EXAMPLES)
    assert lm.model.training is training
    assert [p.requires_grad for p in lm.model.parameters()] == wanted
    assert all(p.grad is None for p in lm.model.parameters())


def test_a_prompt_longer_than_the_window_is_refused(lm: LM) -> None:
    with pytest.raises(TiterError, match="longer than the model's window"):
        sensitivity(lm, [Example(" ".join("a" * 65), False, "safe", "test")])
