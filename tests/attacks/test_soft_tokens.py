"""Soft tokens: norms, steps and labels against naive forms on single rows, the random control, one suffix for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.data.spoken import TEMPLATES
from tests.models.families import ANSWERS, PROMPTS
from tests.probes.made import answered, drawn, embedding, lively, requests
from tests.studies.huang2024_text.conftest import bytes_model
from titer.attacks import soft_tokens
from titer.attacks.soft_tokens import SoftTokens, moved_labels, projected, unit
from titer.core.errors import TiterError
from titer.data.draws import seed_of
from titer.data.encode import answer_ids, prompt_ids
from titer.data.example import Example
from titer.data.world import World
from titer.models.lm import LM, Decoding, load
from titer.models.suffix import inserted, tail

EXAMPLES = [
    Example(p, True, "unsafe", "test", comply=a, refuse="<null>") for p, a in zip(PROMPTS, ANSWERS, strict=True)
]  # of unequal lengths


def ids_of(lm: LM, example: Example) -> tuple[list[int], list[int]]:
    return prompt_ids(lm.tokenizer, [example.prompt])[0], answer_ids(lm.tokenizer, [str(example.comply)])[0]


def loss(lm: LM, example: Example, suffix: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of the compliant answer on one row, `suffix` before the prompt's last token."""
    head, tail = ids_of(lm, example)
    embedded = lm.model.get_input_embeddings()(torch.tensor(head + tail)).detach()
    whole = torch.cat([embedded[: len(head) - 1], suffix, embedded[len(head) - 1 :]])
    last = len(head) - 1  # the position of the prompt's last token, and of the suffix
    places = torch.tensor([*range(last), *[last] * len(suffix), *range(last, len(head) + len(tail))])
    said = torch.ones(1, len(whole), dtype=torch.int64)  # else transformers takes repeated positions for packed rows
    logits = lm.model(inputs_embeds=whole[None], attention_mask=said, position_ids=places[None], use_cache=False).logits[0]
    first = len(head) + len(suffix) - 1  # the place that predicts the answer's first token
    return functional.cross_entropy(logits[first : first + len(tail)], torch.tensor(tail), reduction="sum")


def eps(lm: LM, examples: Sequence[Example]) -> float:
    """Mean norm over every token of the batch."""
    ids = [token for example in examples for part in ids_of(lm, example) for token in part]
    return float(lm.model.get_input_embeddings().weight.detach()[ids].norm(dim=1).mean())


def searched(lm: LM, examples: Sequence[Example], start: torch.Tensor, steps: int, bound: float) -> torch.Tensor:
    """The search for one suffix on single rows, token by token."""
    suffix = start.clone()
    for _ in range(steps):
        at = suffix.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(sum(loss(lm, e, at) for e in examples), at)  # type: ignore[arg-type]
        for j in range(len(suffix)):
            token = suffix[j] - 2 * bound / steps * gradient[j] / gradient[j].norm()
            suffix[j] = token if token.norm() <= bound else token / token.norm() * bound
    return suffix


def starts(attack: SoftTokens, rows: int, width: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed_of(attack.seed, "soft tokens", attack.n, 0) % 2**63)
    return 0.01 * torch.randn(rows, attack.n, width, generator=rng)


@pytest.mark.parametrize("family", ["neox", "llama", "opt"])
def test_a_suffix_for_each_request_equals_the_search_on_its_row_alone(family: str, world: World) -> None:
    lm = lively(world, family)
    attack = SoftTokens(n=2, steps=3)
    found = attack.fit(lm, EXAMPLES)["suffix"]
    assert found.shape == (len(EXAMPLES), 2, 16)
    start, bound = starts(attack, len(EXAMPLES), 16), eps(lm, EXAMPLES)
    for i, example in enumerate(EXAMPLES):
        torch.testing.assert_close(found[i], searched(lm, [example], start[i], 3, bound), rtol=1e-2, atol=2e-3)


def test_the_universal_suffix_equals_the_search_on_the_sum_of_the_losses(world: World) -> None:
    lm = lively(world, "llama")
    attack = SoftTokens(n=3, steps=2, universal=True)
    found = attack.fit(lm, EXAMPLES)["suffix"]
    assert found.shape == (1, 3, 16)
    naive = searched(lm, EXAMPLES, starts(attack, 1, 16)[0], 2, eps(lm, EXAMPLES))
    torch.testing.assert_close(found[0], naive, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("universal", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_no_token_is_longer_than_the_mean_embedding(steps: int, universal: bool, world: World) -> None:
    lm = lively(world)
    norms = SoftTokens(n=4, steps=steps, universal=universal).fit(lm, EXAMPLES)["suffix"].norm(dim=2)
    bound = eps(lm, EXAMPLES)
    assert float(norms.max()) <= bound * (1 + 1e-5)
    if steps == 1:  # one step of twice the bound ends on the sphere
        assert norms.flatten().tolist() == pytest.approx([bound] * norms.numel(), rel=1e-4)


@torch.no_grad()
def mean_loss(lm: LM, examples: Sequence[Example], suffix: torch.Tensor) -> float:
    return sum(float(loss(lm, e, s)) for e, s in zip(examples, suffix.expand(len(examples), -1, -1), strict=True)) / len(examples)


@pytest.mark.parametrize("universal", [False, True])
def test_the_loss_falls_below_the_start_and_the_random_control(universal: bool, world: World) -> None:
    lm = lively(world)
    examples = requests(world, "unsafe", 8)
    found = {steps: SoftTokens(n=2, steps=steps, universal=universal).fit(lm, examples)["suffix"] for steps in (1, 10)}
    random = SoftTokens(n=2, universal=universal, random=True).fit(lm, examples)["suffix"]
    start = starts(SoftTokens(n=2), 1 if universal else 8, 16)
    last = mean_loss(lm, examples, found[10])
    assert last < mean_loss(lm, examples, start) - 0.5
    assert last < mean_loss(lm, examples, random) - 0.5
    assert last < mean_loss(lm, examples, found[1])


def test_the_random_control_has_the_found_norms_in_unrelated_directions(world: World) -> None:
    lm = lively(world)
    examples = requests(world, "unsafe", 20)
    found, random, again = (SoftTokens(n=2, steps=3, random=r).fit(lm, examples)["suffix"] for r in (False, True, True))
    torch.testing.assert_close(random.norm(dim=2), found.norm(dim=2), rtol=1e-5, atol=0)
    assert torch.equal(random, again)
    cosines = torch.cosine_similarity(random, found, dim=2)
    assert abs(float(cosines.mean())) < 0.15
    assert float(cosines.abs().max()) < 0.9


def test_projection_is_per_token_in_l2() -> None:
    tokens = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [0.9, 0.9]]])
    found = projected(tokens, 1.0)
    torch.testing.assert_close(found, torch.tensor([[[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [0.5**0.5, 0.5**0.5]]]))
    assert projected(tokens, 5.0).equal(tokens)
    torch.testing.assert_close(unit(tokens).norm(dim=2), torch.tensor([[1.0, 1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("n", [1, 3])
def test_labels_after_the_insertion_move_by_n(n: int) -> None:
    labels = torch.tensor([[-100, -100, 7, 8, 9], [-100, 5, 6, -100, -100], [4, 3, 2, 1, 0]])
    at = torch.tensor([1, 0, 3])
    wanted = [row[:k] + [-100] * n + row[k:] for row, k in zip(labels.tolist(), at.tolist(), strict=True)]
    assert moved_labels(labels, at, n).tolist() == wanted


def test_attempts_carry_each_its_own_suffix_or_one_for_all_in_order(world: World) -> None:
    examples, others = requests(world, "unsafe", 4), requests(world, "unsafe", 9)[4:]
    state = {"suffix": drawn(4, 2, 16)}
    attempts = SoftTokens(n=2).attempts(examples, state, world)
    assert all(torch.equal(a.suffix, state["suffix"][i]) for i, a in enumerate(attempts))  # type: ignore[arg-type]
    assert [(a.example.prompt, a.example.comply, a.example.harmful, a.prefix) for a in attempts] == [
        (e.prompt, e.comply, True, "") for e in examples
    ]
    assert {a.example.kind for a in attempts} == {"soft_2"}
    with pytest.raises(ValueError, match="4 suffixes for 5 requests"):
        SoftTokens(n=2).attempts(others, state, world)
    one = {"suffix": drawn(1, 2, 16)}
    universal = SoftTokens(n=2, universal=True, random=True).attempts(others, one, world)
    assert len(universal) == 5
    assert all(torch.equal(a.suffix, one["suffix"][0]) for a in universal)  # type: ignore[arg-type]
    assert {a.example.kind for a in universal} == {"soft_2_universal_random"}


def test_an_attempts_suffix_that_is_a_tokens_embedding_acts_like_that_token(world: World) -> None:
    lm = lively(world)
    examples = requests(world, "unsafe", 5)
    attempts = SoftTokens(n=1, universal=True).attempts(examples, {"suffix": embedding(lm, "f5")[None]}, world)
    soft = torch.stack([a.suffix for a in attempts if a.suffix is not None])
    found = lm.generate([a.example.prompt for a in attempts], Decoding(max_new_tokens=9), suffixes=soft)
    assert found == [answered(lm, e.prompt, ["f5"], 9) for e in examples]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_as_it_was_also_after_an_error(training: bool, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = lively(world)
    lm.model.train(training)
    next(lm.model.parameters()).requires_grad_(False)
    wanted = [p.requires_grad for p in lm.model.parameters()]
    weights = [p.detach().clone() for p in lm.model.parameters()]

    def as_it_was() -> None:
        assert lm.model.training is training
        assert [p.requires_grad for p in lm.model.parameters()] == wanted
        assert all(p.grad is None and torch.equal(p, w) for p, w in zip(lm.model.parameters(), weights, strict=True))

    found = SoftTokens(n=1, steps=2).fit(lm, EXAMPLES)["suffix"]
    assert not found.requires_grad
    as_it_was()
    monkeypatch.setattr(SoftTokens, "_gradient", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SoftTokens(n=1).fit(lm, EXAMPLES)
    as_it_was()


def test_requests_in_chunks_are_each_attacked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from titer.attacks import soft_tokens

    lm = lively(world)
    examples = requests(world, "unsafe", 5)
    monkeypatch.setattr(soft_tokens, "BATCH", 2)
    found = SoftTokens(n=1, steps=10).fit(lm, examples)["suffix"]
    assert found.shape == (5, 1, 16)
    nothing = torch.zeros(5, 1, 16)
    assert mean_loss(lm, examples, found) < mean_loss(lm, examples, nothing) - 0.5
    for i in range(5):  # each suffix serves its own request better than the zero suffix does
        assert mean_loss(lm, examples[i : i + 1], found[i : i + 1]) < mean_loss(lm, examples[i : i + 1], nothing[:1])


def test_few_rows_at_a_time_give_the_gradient_of_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = lively(world, "llama")
    for universal in (False, True):
        attack = SoftTokens(n=2, steps=2, universal=universal)
        whole = attack.fit(lm, EXAMPLES)["suffix"]
        monkeypatch.setattr(soft_tokens, "LOGITS", 1)
        torch.testing.assert_close(attack.fit(lm, EXAMPLES)["suffix"], whole, rtol=1e-3, atol=1e-5)
        monkeypatch.undo()


def test_behind_a_chat_template_the_suffix_follows_the_request_s_text(tmp_path: Path) -> None:
    lm = load(bytes_model(tmp_path / "m").checkpoint)
    lm.tokenizer.chat_template = TEMPLATES["chatml"]
    ids = prompt_ids(lm.tokenizer, ["Where is the cup?"])[0]
    cut = len(ids) - tail(lm.tokenizer)
    assert lm.tokenizer.decode(ids[:cut]).endswith("Where is the cup?")
    assert lm.tokenizer.decode(ids[cut:]).startswith("<|im_end|>")
    soft = torch.zeros(1, 1, lm.model.get_input_embeddings().weight.shape[1])
    both = torch.tensor([ids])
    inputs = inserted(lm.model.get_input_embeddings()(both), torch.ones_like(both), torch.tensor([cut]), soft)
    assert inputs["inputs_embeds"][0, cut].abs().sum() == 0
    examples = [Example(f"Where is the {thing}?", True, "unsafe", "test", comply="On the table.") for thing in ("cup", "old lamp")]
    found = SoftTokens(n=2, steps=10, universal=True).fit(lm, examples)["suffix"]
    with pytest.raises(TiterError, match=r"1 of 2 requests to learn from have none.*canaries"):
        SoftTokens(universal=True).fit(lm, [examples[0], replace(examples[1], comply=None)])
    with pytest.raises(TiterError, match="2 of 2 refuse"):
        SoftTokens(universal=True).fit(lm, [replace(e, comply="I can't help with that.") for e in examples])
    soft = found.expand(2, -1, -1)
    assert len(lm.generate([e.prompt for e in examples], Decoding(max_new_tokens=2), suffixes=soft)) == 2
