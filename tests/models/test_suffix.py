"""Inserted embeddings: where they stand, which positions they and the rest have, and that a token's embedding is that token."""

from __future__ import annotations

import pytest
import torch

from tests.models.families import ANSWERS, PROMPTS, SUPPORTED
from tests.probes.made import answered, drawn, embedding, lively, read, written
from titer.core.errors import TiterError
from titer.data.encode import Side, answer_ids, pad, prompt_ids
from titer.data.world import World
from titer.models.activations import at_prompt_end, over_answer
from titer.models.lm import LM, Decoding
from titer.models.suffix import inserted

TOKENS = (("f3", "a"), ("<null>", "p"), ("g1", "b"), ("c", "f5"), ("d", "d"))
LENGTHS = (5, 2, 1, 4)
SIDES = pytest.mark.parametrize("side", ["left", "right"])
FAMILIES = pytest.mark.parametrize("name", sorted(SUPPORTED))


def suffixes(lm: LM) -> torch.Tensor:
    return torch.stack([embedding(lm, *tokens) for tokens in TOKENS])


@SIDES
@pytest.mark.parametrize("n", [1, 3])
def test_each_row_is_the_naive_concatenation_and_its_own_tokens_keep_their_positions(side: Side, n: int) -> None:
    width = max(LENGTHS)
    _, mask = pad([[1] * length for length in LENGTHS], 0, side)
    embedded, suffix = drawn(len(LENGTHS), width, 3, seed=1), drawn(len(LENGTHS), n, 3, seed=2)
    local = torch.tensor([3, 0, 0, 3])  # before which token of its own each row takes the suffix
    first = torch.tensor([width - length if side == "left" else 0 for length in LENGTHS])
    found = inserted(embedded, mask, first + local, suffix)
    assert found["inputs_embeds"].shape == (len(LENGTHS), width + n, 3)
    for i, length in enumerate(LENGTHS):
        k = int(local[i])
        own = embedded[i, int(first[i]) : int(first[i]) + length]
        wanted = torch.cat([own[:k], suffix[i], own[k:]])
        real = found["attention_mask"][i].bool()
        assert int(real.sum()) == length + n
        assert torch.equal(found["inputs_embeds"][i][real], wanted)
        assert found["position_ids"][i][real].tolist() == [*range(k), *[k] * n, *range(k, length)]
        assert real.tolist() == sorted(real.tolist(), reverse=side == "right")  # padding stays on its side


@SIDES
@FAMILIES
def test_a_tokens_embedding_gives_the_logits_of_that_token(name: str, side: Side, world: World) -> None:
    lm = lively(world, name)
    rows = prompt_ids(lm.tokenizer, PROMPTS)
    ids, mask = pad(rows, lm.tokenizer.pad_token_id, side)
    ends = torch.tensor([ids.shape[1] - 1 if side == "left" else len(row) - 1 for row in rows])
    with torch.no_grad():
        inputs = inserted(lm.model.get_input_embeddings()(ids), mask, ends, suffixes(lm))
        logits = lm.model(**inputs, use_cache=False).logits
        for i, prompt in enumerate(PROMPTS):
            alone = lm.model(**written(lm, prompt, TOKENS[i])).logits[0]
            found = logits[i][inputs["attention_mask"][i].bool()]
            torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [2, 64])
@FAMILIES
def test_activations_with_suffixes_are_those_of_the_written_tokens(name: str, batch: int, world: World) -> None:
    lm = lively(world, name)
    sites = ("attn_out[0]", "mlp_in[1]", "mlp_act[0]", "mlp_out[1]", "resid[1]")
    soft = suffixes(lm)
    ends, means = at_prompt_end(lm, PROMPTS, sites, batch, soft), over_answer(lm, PROMPTS, ANSWERS, sites, 3, batch, soft)
    tails = answer_ids(lm.tokenizer, ANSWERS)
    heads = [len(ids) + len(TOKENS[0]) for ids in prompt_ids(lm.tokenizer, PROMPTS)]
    alone = [read(lm, prompt, tokens, sites, tail) for prompt, tokens, tail in zip(PROMPTS, TOKENS, tails, strict=True)]
    plain = at_prompt_end(lm, PROMPTS, sites, batch)
    for site in sites:
        for i, row in enumerate(alone):
            predicting = row[site][heads[i] - 1 : heads[i] - 1 + min(3, len(tails[i]))]
            torch.testing.assert_close(ends[site][i], row[site][heads[i] - 1], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(means[site][i], predicting.mean(0), rtol=1e-3, atol=1e-4)
        assert float((ends[site] - plain[site]).abs().amax(1).min()) > 1e-2  # each suffix is seen


@pytest.mark.parametrize("batch", [2, 64])
@FAMILIES
def test_answers_after_a_suffix_are_those_after_the_written_tokens(name: str, batch: int, world: World) -> None:
    lm = lively(world, name)
    decoding = Decoding(max_new_tokens=5)
    found = lm.generate(PROMPTS, decoding, batch, suffixes=suffixes(lm))
    assert found == [answered(lm, prompt, tokens, 5) for prompt, tokens in zip(PROMPTS, TOKENS, strict=True)]
    assert sum(a.text != b.text for a, b in zip(found, lm.generate(PROMPTS, decoding, batch), strict=True)) >= 2


def test_the_suffix_counts_in_the_window(lm: LM) -> None:
    prompts, soft = [" ".join("a" * 60)], torch.zeros(1, 3, 16)
    at_prompt_end(lm, prompts, ["resid[0]"], suffixes=soft)
    lm.generate(prompts, Decoding(max_new_tokens=1), suffixes=soft)
    with pytest.raises(TiterError, match="window of 64"):
        at_prompt_end(lm, prompts, ["resid[0]"], suffixes=torch.zeros(1, 5, 16))
    with pytest.raises(TiterError, match="window of 64"):
        lm.generate(prompts, Decoding(max_new_tokens=2), suffixes=soft)
