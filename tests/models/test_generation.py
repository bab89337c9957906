"""Batched generation against one-by-one greedy decoding written out here; ends, prefixes, padding, window."""

from __future__ import annotations

import pytest
import torch

from tests.models.families import PROMPTS, SUPPORTED, gpt2
from titer.core.errors import TiterError
from titer.data.encode import prompt_ids
from titer.data.world import World
from titer.models.lm import LM, Completion, Decoding

GREEDY = Decoding(max_new_tokens=12)


@torch.no_grad()
def greedy(lm: LM, ids: list[int], room: int) -> Completion:
    """One answer, token by token: the whole row through the model each time, no cache, no padding."""
    row: list[int] = []
    while len(row) < room:
        token = int(lm.model(input_ids=torch.tensor([ids + row]), use_cache=False).logits[0, -1].argmax())
        if token in lm.ends:
            return Completion(lm.tokenizer.decode(row), True, len(row))
        row.append(token)
    return Completion(lm.tokenizer.decode(row), False, len(row))


def often(lm: LM) -> int:
    """A token that the model likes to write: the first one of the first prompt's answer."""
    return int(lm.tokenizer(greedy(lm, prompt_ids(lm.tokenizer, PROMPTS)[0], 3).text.split()[-1])["input_ids"][0])


@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize("name", [*sorted(SUPPORTED), "gpt2"])
def test_batches_equal_one_by_one_greedy_decoding(name: str, batch: int, world: World) -> None:
    lm = {**SUPPORTED, "gpt2": gpt2}[name](world)
    lm.model.eval()
    expected = [greedy(lm, ids, 12) for ids in prompt_ids(lm.tokenizer, PROMPTS)]
    assert lm.generate(PROMPTS, GREEDY, batch) == expected
    assert len({one.text for one in expected}) > 1


def test_an_end_token_ends_the_answer_and_is_not_part_of_it(family: LM) -> None:
    token = often(family)
    family.model.generation_config.eos_token_id = [family.tokenizer.eos_token_id, token]
    assert token in family.ends
    found = family.generate(PROMPTS, GREEDY)
    assert found == [greedy(family, ids, 12) for ids in prompt_ids(family.tokenizer, PROMPTS)]
    assert any(one.ended for one in found)
    assert all(family.tokenizer.decode([token]) not in one.text.split() for one in found if one.ended)


def test_ends_are_those_of_the_tokenizer_and_of_the_generation_config(lm: LM) -> None:
    stop = lm.tokenizer.eos_token_id
    lm.model.generation_config.eos_token_id = None
    assert lm.ends == [stop]
    lm.model.generation_config.eos_token_id = 7
    assert lm.ends == sorted({stop, 7})


def test_a_prefix_is_part_of_the_prompt_and_not_of_the_answer(lm: LM) -> None:
    prefixes = ["a", "b c d", "", "<null>", "e"]
    found = lm.generate(PROMPTS, GREEDY, 2, prefixes)
    joined = [f"{prompt} {prefix}".strip() for prompt, prefix in zip(PROMPTS, prefixes, strict=True)]
    assert found == [greedy(lm, ids, 12) for ids in prompt_ids(lm.tokenizer, joined)]


def test_shorter_prompts_are_padded_on_the_left_and_masked(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    lm.generate(PROMPTS[:2], GREEDY)  # what the model makes of padding is tried out
    batches = []
    real = lm.model.generate

    def watched(ids, attention_mask, **rest):  # type: ignore[no-untyped-def]
        batches.append((ids.clone(), attention_mask.clone()))
        return real(ids, attention_mask=attention_mask, **rest)

    monkeypatch.setattr(lm.model, "generate", watched)
    lm.generate(PROMPTS, GREEDY)
    ((ids, mask),) = batches
    lengths = sorted(lm.lengths(PROMPTS))
    assert mask.sum(1).tolist() == lengths
    for row, kept, length in zip(ids, mask, lengths, strict=True):
        assert kept.tolist() == [0] * (len(row) - length) + [1] * length
        assert set(row[: len(row) - length].tolist()) <= {lm.tokenizer.pad_token_id}


@pytest.mark.long
def test_a_chat_template_wraps_the_prompt_once(lm: LM) -> None:
    lm.tokenizer.chat_template = "<bos> <sot> {{ messages[0].content }} <eot>"
    ids = prompt_ids(lm.tokenizer, ["a b"])[0]
    assert lm.tokenizer.decode(ids) == "<bos> <sot> a b <eot>"
    assert lm.lengths(["a b"]) == [5]
    assert lm.generate(["a b"], GREEDY) == [greedy(lm, ids, 12)]


def test_a_prompt_without_room_for_its_answer_is_refused_before_anything_runs(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm.model, "generate", lambda *_, **__: pytest.fail("it ran"))
    long = " ".join("a" * 60)
    with pytest.raises(TiterError, match=r"72 tokens .* longer than the model's window of 64"):
        lm.generate(["a b", long], GREEDY)
    lm.check([long], 4)
    with pytest.raises(TiterError, match="65 tokens"):
        lm.check([long], 5)


def test_the_window_is_enough_to_its_last_position(family: LM) -> None:
    prompt = " ".join("a" * 52)
    assert family.generate([prompt], GREEDY) == [greedy(family, prompt_ids(family.tokenizer, [prompt])[0], 12)]


def test_the_checkpoint_s_own_penalties_and_cuts_do_not_change_the_answers(lm: LM) -> None:
    plain = lm.generate(PROMPTS, GREEDY)
    sampled = lm.generate(PROMPTS, Decoding(max_new_tokens=12, temperature=2.0))
    own = lm.model.generation_config
    own.repetition_penalty, own.top_k, own.num_beams, own.min_new_tokens = 5.0, 1, 3, 11
    assert lm.generate(PROMPTS, GREEDY) == plain
    assert lm.generate(PROMPTS, Decoding(max_new_tokens=12, temperature=2.0)) == sampled
    assert lm.model.generation_config is own


def test_sampling_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(lm: LM) -> None:
    hot = Decoding(max_new_tokens=12, temperature=3.0, seed=1)
    state = torch.random.get_rng_state()
    first = lm.generate(PROMPTS, hot)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    assert lm.generate(PROMPTS, hot) == first
    assert lm.generate(PROMPTS, hot.model_copy(update={"seed": 2})) != first
    assert lm.generate(PROMPTS, GREEDY) != first


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_comes_back_also_after_an_error(lm: LM, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lm.model.train(training)
    lm.generate(["a b"], GREEDY)
    assert lm.model.training is training

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("stop")

    own = lm.model.generation_config
    monkeypatch.setattr(lm.model, "generate", fail)
    with pytest.raises(RuntimeError, match="stop"):
        lm.generate(["a b"], GREEDY)
    assert lm.model.training is training
    assert lm.model.generation_config is own


def test_progress_counts_to_the_end(lm: LM) -> None:
    told: list[tuple[int, int]] = []
    lm.generate(PROMPTS, GREEDY, 2, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_logits_of_padded_rows_equal_those_of_single_rows(family: LM) -> None:
    rows = prompt_ids(family.tokenizer, PROMPTS)
    found, mask = family.logits(rows)
    for i, row in enumerate(rows):
        alone, _ = family.logits([row])
        assert int(mask[i].sum()) == len(row)
        torch.testing.assert_close(found[i, : len(row)], alone[0], rtol=1e-4, atol=1e-5)
