"""The real model, where `titer models get smollm2-135m` has fetched it; skipped elsewhere."""

from __future__ import annotations

import pytest

from titer.core.errors import TiterError
from titer.judges.base import nonsense
from titer.models.checkpoint import Checkpoint
from titer.models.fetch import resolve
from titer.models.lm import LM, Decoding, load
from titer.models.weights import skeleton

QUESTIONS = ("What is the capital of France?", "How do I boil an egg?", "Name three colours.")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """The fetched model."""
    try:
        return resolve("smollm2-135m")
    except TiterError:
        pytest.skip("smollm2-135m is not fetched: titer models get smollm2-135m")


@pytest.fixture(scope="module")
def real(checkpoint: Checkpoint) -> LM:
    """The fetched model."""
    return load(checkpoint)


@pytest.mark.long
def test_the_head_is_tied_to_the_embeddings(real: LM, checkpoint: Checkpoint) -> None:
    assert real.model.get_output_embeddings().weight.data_ptr() == real.model.get_input_embeddings().weight.data_ptr()
    assert "lm_head.weight" not in checkpoint.files
    assert 134e6 < sum(p.numel() for p in real.model.parameters()) < 136e6


@pytest.mark.long
def test_sites_are_found_and_named_as_in_the_file(real: LM, checkpoint: Checkpoint) -> None:
    assert real.sites.layers == 30
    assert skeleton(checkpoint).tensor("mlp_up[29]") == real.sites.tensor("mlp_up[29]")
    assert real.sites.tensor("mlp_up[29]") in checkpoint.files


@pytest.mark.long
def test_greedy_answers_to_harmless_questions_make_sense(real: LM) -> None:
    answers = real.generate(QUESTIONS, Decoding(max_new_tokens=48))
    assert "Paris" in answers[0].text
    assert not any(nonsense(answer.text) for answer in answers)
    assert not any("<|" in answer.text for answer in answers)
    assert answers[0].ended


@pytest.mark.long
def test_a_batch_answers_as_single_prompts_do(real: LM) -> None:
    decoding = Decoding(max_new_tokens=12)
    assert real.generate(QUESTIONS, decoding) == [real.generate([question], decoding)[0] for question in QUESTIONS]
