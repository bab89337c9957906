"""Batched activations equal a loop over single, unpadded prompts, so padding and batching do not matter."""

from __future__ import annotations

import pytest
import torch

from tests.models.families import ANSWERS, PROMPTS
from tests.models.tiny import tiny
from titer.core.errors import TiterError
from titer.data.encode import answer_ids, prompt_ids
from titer.data.world import World
from titer.models.activations import at_prompt_end, over_answer
from titer.models.hooks import adding, replacing
from titer.models.lm import LM

NAMES = ("embed", "attn_out[0]", "mlp_in[1]", "mlp_act[1]", "mlp_out[0]", "resid[1]")


@torch.no_grad()
def alone(lm: LM, ids: list[int], site: str) -> torch.Tensor:
    """The site's activation on one unpadded row, (T, D), with a hook of the test's own."""
    place = lm.sites.place(site)
    seen: list[torch.Tensor] = []

    def keep(_: object, args: tuple[torch.Tensor, ...], output: object = None) -> None:
        whole = args[0] if place.side == "input" else output[0] if isinstance(output, tuple) else output
        seen.append(whole.reshape(len(ids), -1))  # type: ignore[union-attr]

    handle = place.module.register_forward_hook(keep)
    lm.model(input_ids=torch.tensor([ids]))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_at_prompt_end_equals_a_loop_over_single_prompts(family: LM, batch: int) -> None:
    found = at_prompt_end(family, PROMPTS, NAMES, batch)
    for name in NAMES:
        rows = [alone(family, ids, name)[-1] for ids in prompt_ids(family.tokenizer, PROMPTS)]
        torch.testing.assert_close(found[name], torch.stack(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [1, 3, 10])
def test_over_answer_equals_a_naive_mean(family: LM, first: int) -> None:
    found = over_answer(family, PROMPTS, ANSWERS, NAMES, first, batch=3)
    heads, tails = prompt_ids(family.tokenizer, PROMPTS), answer_ids(family.tokenizer, ANSWERS)
    for name in NAMES:
        rows = []
        for head, tail in zip(heads, tails, strict=True):
            whole = alone(family, head + tail, name)
            predicting = range(len(head) - 1, len(head) + len(tail) - 1)
            rows.append(torch.stack([whole[t] for t in list(predicting)[:first]]).mean(0))
        torch.testing.assert_close(found[name], torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_results_are_in_the_order_of_the_prompts(lm: LM) -> None:
    forward = at_prompt_end(lm, PROMPTS, ["resid[1]"], 2)["resid[1]"]
    backward = at_prompt_end(lm, PROMPTS[::-1], ["resid[1]"], 2)["resid[1]"]
    torch.testing.assert_close(forward, backward.flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_as_it_was_without_hooks(lm: LM, training: bool) -> None:
    lm.model.train(training)
    found = at_prompt_end(lm, PROMPTS, NAMES)
    assert lm.model.training is training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert all(one.dtype == torch.float32 and not one.requires_grad for one in found.values())


def test_a_prompt_longer_than_the_window_is_refused(lm: LM) -> None:
    with pytest.raises(TiterError, match="longer than the model's window of 64"):
        at_prompt_end(lm, ["a b", " ".join("a" * 65)], ["embed"])
    with pytest.raises(TiterError, match="longer than the model's window of 64"):
        over_answer(lm, ["a b"], [" ".join("a" * 63)], ["embed"], 10)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_a_model_whose_blocks_have_the_tokens_first_is_refused_also_where_there_are_as_many_prompts() -> None:
    """XLNet's activations are (T, B, D): of two prompts of two tokens, only a trial tells."""
    tokenizer = World(seed=1).tokenizer()
    lm = LM(tiny("xlnet", len(tokenizer)).eval(), tokenizer, "xlnet")
    told = r"resid\[0\] is \(tokens, prompts, width\) in XLNetLMHeadModel"
    with pytest.raises(TiterError, match=told):
        at_prompt_end(lm, ["a b", "c d"], ["resid[0]"])
    with pytest.raises(TiterError, match="tokens, prompts, width"), adding(lm.sites, {"mlp_out[1]": torch.zeros(1)}):
        pass
    with pytest.raises(TiterError, match="tokens, prompts, width"), replacing(lm.sites, {"attn_out[0]": torch.neg}):
        pass
    assert (
        at_prompt_end(LM(tiny("llama", len(tokenizer)).eval(), tokenizer, "llama"), ["a b", "c d"], ["resid[0]"])["resid[0]"].shape[0] == 2
    )


def test_trying_the_order_of_prompts_and_tokens_leaves_no_trace(lm: LM) -> None:
    lm.model.train()
    before, state = {name: p.clone() for name, p in lm.model.state_dict().items()}, torch.get_rng_state()
    assert lm.sites.place("resid[0]")
    assert lm.model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    lm.model.eval()
