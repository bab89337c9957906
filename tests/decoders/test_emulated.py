"""Emulated disalignment against the paper's closed form, computed otherwise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.conftest import neox
from tests.decoders.contract import GREEDY, answers, models
from tests.models.families import PROMPTS
from titer.core.errors import TiterError
from titer.data.encode import prompt_ids
from titer.data.world import World
from titer.decoders.base import Guide, Guided
from titer.decoders.emulated import Emulated, combined
from titer.models.lm import LM, Decoding

RNG = torch.Generator().manual_seed(0)


def closed(base: list[float], aligned: list[float], alpha: float) -> list[float]:
    """pi_base^(1 + alpha) / pi_aligned^alpha, normalised, in Python's own numbers."""
    raised = [b ** (1 + alpha) / a**alpha for b, a in zip(base, aligned, strict=True)]
    return [one / sum(raised) for one in raised]


@pytest.mark.parametrize("alpha", [-2.0, -1.0, -0.5, 0.0, 0.1, 1.0, 3.0])
def test_it_is_the_paper_s_closed_form_of_one_token(alpha: float) -> None:
    base, aligned = torch.randn(2, 4, 9, generator=RNG)
    found = combined(base, aligned, alpha).softmax(-1)
    for row in range(4):
        wanted = closed(base[row].softmax(-1).tolist(), aligned[row].softmax(-1).tolist(), alpha)
        assert found[row].tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_token_that_both_rule_out_stays_out_and_one_that_one_does_is_what_the_sign_says() -> None:
    base, aligned = torch.tensor([[0.0, 1.0, -math.inf, -math.inf]]), torch.tensor([[1.0, 0.0, -math.inf, 2.0]])
    found = combined(base, aligned, 0.5)
    assert found[0, 2] == found[0, 3] == -math.inf
    assert torch.isfinite(found[0, :2]).all()


def mass(lm: LM, other: LM, alpha: float, prompt: list[int], answer: tuple[int, ...]) -> float:
    """Log-probability of an answer, token by token, whole rows through both models."""
    return sum(float(following(lm, other, alpha, [*prompt, *answer[:n]])[token]) for n, token in enumerate(answer))


@torch.no_grad()
def following(lm: LM, other: LM, alpha: float, row: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token, from whole rows through both models."""
    two = [m.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].double().log_softmax(-1) for m in (other, lm)]
    return ((1 + alpha) * two[0] - alpha * two[1]).log_softmax(-1)


def test_generation_follows_it_token_by_token_with_both_caches() -> None:
    """The greedy answer is at every token the likeliest of the combined distribution, computed without cache or padding."""
    lm, others = models(neox, Emulated)
    for answer, ids in zip(answers(lm, Guided(Emulated(alpha=0.7)), others), prompt_ids(lm.tokenizer, PROMPTS), strict=True):
        row: list[int] = []
        while len(row) < answer.tokens:
            row.append(int(following(lm, others["base"], 0.7, [*ids, *row]).argmax()))
        assert lm.tokenizer.decode(row) == answer.text


def test_alpha_zero_and_minus_one_are_the_two_models() -> None:
    lm, others = models(neox, Emulated)
    for decoding in (GREEDY, Decoding(max_new_tokens=7, temperature=1.0)):
        assert answers(lm, Guided(Emulated(alpha=0.0)), others, decoding) == others["base"].generate(PROMPTS, decoding)
        assert answers(lm, Guided(Emulated(alpha=-1.0)), others, decoding) == lm.generate(PROMPTS, decoding)


@pytest.mark.long
def test_sampled_answers_of_one_token_have_the_closed_form_s_shares() -> None:
    lm, others = models(neox, Emulated)
    n, alpha = 3000, 1.5
    prompts = tuple([PROMPTS[1]] * n)
    guide = Guide(Guided(Emulated(alpha=alpha)), lm, others, prompts, None)
    found = lm.generate(prompts, Decoding(max_new_tokens=1, temperature=1.0), n, guide=guide)
    (ids,) = prompt_ids(lm.tokenizer, [PROMPTS[1]])
    for token, word in itertools.islice(enumerate(lm.tokenizer.convert_ids_to_tokens(range(len(lm.tokenizer)))), 7, 40):
        share = math.exp(mass(lm, others["base"], alpha, ids, (token,)))
        assert sum(one.text == word for one in found) / n == pytest.approx(share, abs=5 * math.sqrt(share / n) + 1e-3)


def test_each_model_sees_the_prompt_as_its_own_template_writes_it(world: World) -> None:
    lm, other = neox(world), neox(world)
    lm.tokenizer.chat_template = "<bos> {{ messages[0].content }} <eot>"
    own = answers(lm, Guided(Emulated(alpha=0.0)), {"base": other})
    assert own == other.generate(PROMPTS, GREEDY)
    same = answers(lm, Guided(Emulated(alpha=0.0, base_sees="same")), {"base": other})
    assert same == lm.generate(PROMPTS, GREEDY) != own


@pytest.mark.parametrize("wider", [0, 1])
def test_rows_that_pad_an_embedding_are_no_tokens(wider: int, world: World) -> None:
    """One model twice, one copy with eight more rows than there are tokens: every mixture is that model."""
    two = [neox(world), neox(world)]
    plain = two[0].generate(PROMPTS, GREEDY)
    two[wider].model.resize_token_embeddings(len(world.tokenizer()) + 8, mean_resizing=False)
    with torch.no_grad():
        for place in (two[wider].model.get_input_embeddings(), two[wider].model.get_output_embeddings()):
            place.weight[-8:] = 50.0
    assert answers(two[0], Guided(Emulated(alpha=0.5)), {"base": two[1]}) == plain


def test_a_window_that_is_too_short_for_a_prompt_of_the_other_model_is_told(world: World) -> None:
    lm, other = neox(world), neox(world)
    other.model.config.max_position_embeddings = 12
    with pytest.raises(TiterError, match="longer than the model's window of 12"):
        answers(lm, Guided(Emulated()), {"base": other})
