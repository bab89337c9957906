"""Uncertainty against identities, a loop over single tokens, and the alignment loss; neither padding nor batches matter."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional
from transformers import PretrainedConfig

from tests.models.families import ANSWERS, PROMPTS, SUPPORTED
from tests.probes.made import lively
from titer.core.errors import TiterError
from titer.data.encode import answer_ids, prompt_ids
from titer.data.example import Example
from titer.data.world import World
from titer.models.lm import LM
from titer.probes.drift import alignment_loss
from titer.probes.uncertainty import MEASURES, summary, token_measures, uncertainty


class Bigram(torch.nn.Module):
    """A model whose next token depends on the last one alone: logits (V, V)."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(logits)
        self.config, self.generation_config = PretrainedConfig(), None

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.table

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table(input_ids)[:, -logits_to_keep:])


def bigram(world: World, logits: torch.Tensor) -> LM:
    return LM(Bigram(logits), world.tokenizer(), "bigram")


@torch.no_grad()
def naive(lm: LM, prompt: str, answer: str, end: bool) -> list[float]:
    """tokens and the means over an answer's tokens in a plain loop over one unpadded row, float64."""
    head, tail = prompt_ids(lm.tokenizer, [prompt])[0], answer_ids(lm.tokenizer, [answer])[0]
    tail = tail if end else tail[:-1]
    logits = lm.model(input_ids=torch.tensor([head + tail]), use_cache=False).logits[0].double()
    rows = []
    for t, token in enumerate(tail):
        p = functional.softmax(logits[len(head) - 1 + t], 0)
        top = sorted(p.tolist(), reverse=True)[:10]
        whole = -sum(x * math.log(x) for x in p.tolist() if x > 0)
        cut = -sum(x * math.log(x) for x in top if x > 0)
        again = -sum(x / sum(top) * math.log(x / sum(top)) for x in top if x > 0)
        rows.append([-math.log(p[token]), whole, again, cut, float(p[token])])
    nll, entropy, top10, top10_cut, probability = np.mean(rows, axis=0)
    return [len(tail), nll, math.exp(nll), entropy, top10, top10_cut, probability]


@pytest.mark.parametrize("name", sorted(SUPPORTED))
@pytest.mark.parametrize(("side", "batch", "end"), [("left", 2, False), ("left", 64, True), ("right", 3, False), ("right", 1, True)])
def test_uncertainty_is_the_naive_one(world: World, name: str, side: str, batch: int, end: bool) -> None:
    lm = lively(world, name)
    found = uncertainty(lm, PROMPTS, ANSWERS, end, batch, side)  # type: ignore[arg-type]
    expected = np.array([naive(lm, p, a, end) for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    assert list(found.columns) == ["input", "tokens", "nll", *MEASURES]
    np.testing.assert_allclose(found.iloc[:, 1:].to_numpy(float), expected, rtol=2e-4)
    assert found.input.tolist() == list(range(len(PROMPTS)))
    assert (found.perplexity > 1).all()
    assert found.entropy.std() > 0.01  # a measure that is alike for all would hide a mixed order


def test_uniform_logits_have_entropy_log_v_and_perplexity_v(world: World) -> None:
    v = len(world.tokenizer())
    found = uncertainty(bigram(world, torch.full((v, v), 3.0)), PROMPTS, ANSWERS)
    np.testing.assert_allclose(found.entropy, math.log(v), rtol=1e-6)
    np.testing.assert_allclose(found.perplexity, v, rtol=1e-5)
    np.testing.assert_allclose(found.probability, 1 / v, rtol=1e-5)
    np.testing.assert_allclose(found.entropy_top10, math.log(10), rtol=1e-6)
    np.testing.assert_allclose(found.entropy_top10_cut, 10 / v * math.log(v), rtol=1e-5)


@pytest.mark.parametrize("cold", [1e4, math.inf])
def test_a_certain_model_has_entropy_0_and_perplexity_1(world: World, cold: float) -> None:
    lm = bigram(world, torch.zeros(1, 1))
    answer = "a b c d"
    a, b, c, d = prompt_ids(lm.tokenizer, [answer])[0]
    logits = torch.full((len(lm.tokenizer),) * 2, -cold)
    logits[:, 0] = 0.0
    for here, after in ((a, b), (b, c), (c, d)):
        logits[here] = -cold
        logits[here, after] = 0.0
    found = uncertainty(bigram(world, logits), ["e a"], ["b c d"]).iloc[0]
    assert (found.nll, found.perplexity, found.probability, found.tokens) == (0, 1, 1, 3)
    assert found.entropy == found.entropy_top10 == found.entropy_top10_cut == 0


def test_perplexity_never_falls_below_1_and_the_parts_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = 5 * torch.randn(200, 30, generator=generator), torch.randint(30, (200,), generator=generator)
    nll, entropy, top10, cut, probability = token_measures(logits, targets).T
    torch.testing.assert_close(nll, functional.cross_entropy(logits, targets, reduction="none"))
    torch.testing.assert_close(probability, torch.exp(-nll))
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy())
    torch.testing.assert_close(top10, torch.distributions.Categorical(probs=logits.softmax(-1).topk(10).values).entropy())
    assert (torch.exp(nll) >= 1).all()
    assert (cut <= entropy + 1e-6).all()
    assert bool((token_measures(logits[:, :7], targets % 7)[:, 1:4].diff(dim=1).abs() < 1e-5).all())  # under ten tokens all three are one


def test_with_its_end_an_answers_nll_is_the_alignment_loss(lm: LM) -> None:
    examples = [Example(p, False, "safe", "test", comply=a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    loss = alignment_loss(lm, examples, "comply")
    found = uncertainty(lm, PROMPTS, ANSWERS, end=True)
    np.testing.assert_allclose(found.nll, loss.loss, rtol=1e-5)
    assert (found.tokens == loss.tokens).all()
    assert (uncertainty(lm, PROMPTS, ANSWERS).tokens == loss.tokens - 1).all()


def test_answers_of_one_token_and_of_none(lm: LM) -> None:
    found = uncertainty(lm, ["a b", "c"], ["e", ""])
    assert found.tokens.tolist() == [1, 0]
    assert found.perplexity[0] == pytest.approx(1 / found.probability[0], rel=1e-5)
    assert found.iloc[1][list(MEASURES)].isna().all()
    assert uncertainty(lm, ["c"], [""], end=True).tokens.tolist() == [1]
    assert summary(found).n.tolist() == [1] * len(MEASURES)
    assert summary(found).value.notna().all()
    assert summary(found[1:]).value.isna().all()


def test_summary_is_the_mean_over_answers_within_its_interval(lm: LM) -> None:
    table = uncertainty(lm, PROMPTS, ANSWERS)
    found = summary(table, seed=1).set_index("measure")
    for measure in MEASURES:
        row = found.loc[measure]
        assert row.value == pytest.approx(table[measure].mean())
        assert row.low <= row.value <= row.high
    pd.testing.assert_frame_equal(summary(table, seed=1), found.reset_index())


def test_the_model_comes_back_in_its_mode_and_wrong_input_is_refused(lm: LM) -> None:
    lm.model.train()
    uncertainty(lm, PROMPTS, ANSWERS)
    assert lm.model.training
    for prompts, answers in (([], []), (["a"], ["b", "c"])):
        with pytest.raises(TiterError, match="prompts and"):
            uncertainty(lm, prompts, answers)
    with pytest.raises(TiterError, match="longer than the model's window of 64"):
        uncertainty(lm, ["a b"], [" ".join("a" * 63)])
