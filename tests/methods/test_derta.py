"""DeRTa: the two kinds of rows it makes, its loss against sums over single rows, the expectation of dropped places, its baselines."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from tests.conftest import neox
from tests.methods.contract import WORLD, Bare
from tests.methods.single_step import step_of, token_logs
from titer.core.errors import TiterError
from titer.data import vocabulary as v
from titer.data.encode import encode
from titer.data.example import IGNORE, Batch, join
from titer.methods.base import token_nll
from titer.methods.derta import DeRTa, paired, prefixed, thinned, transitions
from titer.models.lm import LM

PROMPTS = ["<bos> f1 f0 <sot> a b c <eot>", "<bos> f2 f1 <sot> a b <eot>", "<bos> f0 f0 <sot> e <eot>"]
SAFE = ["<null> <null>", "a <null>", "<null>"]
HARMFUL = ["c d e f", "a b c d e", "d"]  # the second begins as its refusal does
END = v.STOP


@pytest.fixture
def lm() -> LM:
    return neox(WORLD)


def pairs(lm: LM, side: str = "right") -> tuple[Batch, Batch]:
    return tuple(encode(lm.tokenizer, PROMPTS, answers, torch.arange(3).numpy(), side=side) for answers in (SAFE, HARMFUL))  # type: ignore[arg-type, return-value]


def words(lm: LM, ids: list[int]) -> str:
    return " ".join(lm.tokenizer.convert_ids_to_tokens([i for i in ids if i != v.PAD]))


def trained(lm: LM, batch: Batch, row: int) -> list[tuple[str, str]]:
    """(what the model has read last, what it is to say) of every labelled place of a row."""
    ids, labels = batch.input_ids[row].tolist(), batch.labels[row].tolist()
    token = lm.tokenizer.convert_ids_to_tokens
    return [(token(ids[t - 1]), token(label)) for t, label in enumerate(labels) if label != IGNORE]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_refusal_stands_behind_the_first_tokens_of_the_harmful_answer(lm: LM, side: str) -> None:
    batch = prefixed(paired(*pairs(lm, side)), [2, 0, 1])
    assert [words(lm, row) for row in batch.input_ids.tolist()] == [
        f"{PROMPTS[0]} c d <null> <null> <stop>",
        f"{PROMPTS[1]} a <null> <stop>",
        f"{PROMPTS[2]} d <null> <stop>",
    ]
    assert trained(lm, batch, 0) == [("d", "<null>"), ("<null>", "<null>"), ("<null>", "<stop>")]
    assert trained(lm, batch, 1)[0] == ("<eot>", "a")
    assert trained(lm, batch, 2)[0] == ("d", "<null>")


def test_the_prefix_has_no_gradient(lm: LM) -> None:
    """Acceptance (v): of the logits that predict prompt and prefix nothing is asked."""
    batch = prefixed(paired(*pairs(lm)), [3, 4, 0])
    logits = torch.randn(*batch.input_ids.shape, 40, requires_grad=True)
    token_nll(logits, batch.labels).total.backward()
    assert logits.grad is not None
    for row, (prompt, k, answer) in enumerate(zip(PROMPTS, (3, 4, 0), SAFE, strict=True)):
        first, asked = len(prompt.split()) + k - 1, len(answer.split()) + 1
        expected = [first <= t < first + asked for t in range(logits.shape[1])]
        assert (logits.grad[row].abs().sum(1) > 0).tolist() == expected


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_place_of_a_harmful_answer_is_to_turn_but_its_end(lm: LM, side: str) -> None:
    batch = transitions(paired(*pairs(lm, side)))
    assert [words(lm, row) for row in batch.input_ids.tolist()] == [f"{p} {a} <stop>" for p, a in zip(PROMPTS, HARMFUL, strict=True)]
    assert trained(lm, batch, 0) == [(last, "<null>") for last in ("<eot>", "c", "d", "e")]
    assert trained(lm, batch, 1) == [(last, "<null>") for last in ("a", "b", "c", "d")]  # both begin with a: not before it
    assert trained(lm, batch, 2) == [("<eot>", "<null>")]
    fixed = transitions(paired(*pairs(lm, side)), v.EOS)
    assert trained(lm, fixed, 1) == [(last, "<eos>") for last in ("<eot>", "a", "b", "c", "d")]


def test_answers_that_are_alike_have_nothing_to_turn_to(lm: LM) -> None:
    preferred, _ = pairs(lm)
    assert (transitions(paired(preferred, preferred)).labels == IGNORE).all()


@pytest.mark.parametrize("keep", [0.05, 0.5])
def test_dropped_places_leave_the_expectation(keep: float) -> None:
    """Acceptance (iv): over every way to draw, each as likely as it is, the loss is that of all places; and uniform numbers draw so."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 9, generator=generator)
    labels = torch.tensor([[IGNORE, IGNORE, 4, 4, 4, IGNORE], [IGNORE, 7, 7, IGNORE, IGNORE, IGNORE]])
    whole = token_nll(logits, labels)
    total = 0.0
    for kept in itertools.product([True, False], repeat=5):
        uniform = torch.tensor([keep / 2 if one else (1 + keep) / 2 for one in kept])
        found = thinned(logits, labels, [uniform[:3], uniform[3:]], keep)
        assert int(found.over) == int(whole.over)
        total += keep ** sum(kept) * (1 - keep) ** (5 - sum(kept)) * float(found.total)
    assert total == pytest.approx(float(whole.total), rel=1e-5)
    flat = thinned(torch.zeros(1, 20_001, 9), torch.ones(1, 20_001, dtype=torch.int64), [torch.rand(20_001, generator=generator)], keep)
    assert float(flat.total / flat.over) == pytest.approx(float(torch.tensor(9.0).log()), rel=0.15)


@pytest.mark.long
def test_a_third_of_the_refusals_come_first_and_the_others_anywhere(lm: LM) -> None:
    pair = paired(*pairs(lm))[1]  # five tokens and the end
    assert pair.length == 5
    drawn = [torch.tensor([a, b]) for a, b in itertools.product((torch.arange(60) + 0.5) / 60, (torch.arange(40) + 0.5) / 40)]
    found = Counter(DeRTa()._places(pair, one, None) for one in drawn)
    assert found == {0: 800, 1: 400, 2: 400, 3: 400, 4: 400}
    assert {DeRTa(begun=0.0)._places(pair, one, None) for one in drawn} == {0}
    room = len(pair.refusal) + 2
    assert {DeRTa()._places(pair, one, room) for one in drawn} == {0, 1, 2}, "no row is longer than the window"
    assert {DeRTa(begun=1.0)._places(paired(*pairs(lm))[2], one, None) for one in drawn} == {0}, "one token: there is no middle"


@pytest.mark.parametrize(("refusal", "transition"), [(1.0, 1.0), (0.5, 3.0), (0.0, 2.0), (2.0, 0.0)])
def test_the_loss_is_the_weighted_mean_of_three_sums(lm: LM, refusal: float, transition: float) -> None:
    preferred, rejected = pairs(lm)
    train = encode(lm.tokenizer, PROMPTS[:2], ["a b c d", "e"], torch.arange(2).numpy())
    found = DeRTa(refusal=refusal, transition=transition, begun=0.0).loss(
        Bare(lm), {"train": train, "preferred": preferred, "rejected": rejected}
    )
    total = count = 0.0
    for weight, batch in ((1.0, train), (refusal, preferred), (transition, turned(lm))):
        logs = torch.cat(token_logs(lm, batch))
        total, count = total - weight * float(logs.detach().sum()), count + weight * len(logs)
    assert float(found.total.detach()) == pytest.approx(total, rel=1e-4)
    assert float(found.over) == pytest.approx(count)


def turned(lm: LM) -> Batch:
    """The harmful answers, each labelled with the null token at its places, by hand."""
    _, rejected = pairs(lm)
    labels = rejected.labels.clone()
    labels[labels != IGNORE] = v.NULL
    for row, (prompt, answer) in enumerate(zip(PROMPTS, HARMFUL, strict=True)):
        labels[row, len(prompt.split()) + len(answer.split())] = IGNORE
    labels[1, len(PROMPTS[1].split())] = IGNORE
    return Batch.of(rejected.input_ids, labels, rejected.indices, rejected.attention_mask)


def test_vanilla_is_sft_on_answers_and_refusals_in_one_batch(lm: LM) -> None:
    preferred, rejected = pairs(lm)
    train = encode(lm.tokenizer, PROMPTS[:2], ["a b c d", "e"], torch.arange(2).numpy())
    found = DeRTa(begun=0.0, transition=0.0).loss(Bare(lm), {"train": train, "preferred": preferred, "rejected": rejected})
    both = join([train, preferred], pad_id=0)
    expected = token_nll(lm.model(**both.inputs()).logits, both.labels)
    assert float(found.total.detach()) == pytest.approx(float(expected.total.detach()), rel=1e-5)
    assert int(found.over) == int(expected.over)


def test_a_refusal_token_that_the_model_lacks_is_told() -> None:
    with pytest.raises(TiterError, match=r"no token 4000 in a vocabulary of \d+"):
        step_of(DeRTa(token=4000))
