"""Averting: values read piece by piece and at once, the logits by hand, what it learns, refusals, dual ascent; on tokens and on states."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch

from tests.conftest import neox
from tests.decoders import contract
from tests.decoders.contract import WORLD, answers
from titer.core.errors import TiterError
from titer.data.encode import answer_ids, pad, prompt_ids
from titer.data.world import WorldSource
from titer.decoders import averting
from titer.decoders.averting import Averting, seen, valued
from titer.decoders.base import Guide, Guided, Step
from titer.models.lm import LM, Decoding

HELD = [e for kind in ("unsafe", "safe") for e in WorldSource(world=WORLD, kind=kind, split="test").examples(np.arange(24))]
OTHERS = [e for kind in ("unsafe", "safe") for e in WorldSource(world=WORLD, kind=kind, split="test").examples(np.arange(24, 48))]


READS: tuple[Literal["tokens", "hidden"], ...] = ("tokens", "hidden")


@cache
def learned(reads: Literal["tokens", "hidden"] = "tokens") -> tuple[LM, dict[str, Any]]:
    lm = neox(WORLD)
    return lm, dict(Averting(epochs=60, hidden=24, reads=reads).fit(lm, {}, HELD))


def values(lm: LM, state: dict[str, Any], rows: list[list[int]]) -> list[float]:
    return valued(lm, rows, state).tolist()  # type: ignore[no-any-return]


@pytest.mark.long
@pytest.mark.parametrize("reads", READS)
def test_it_tells_answers_that_it_did_not_see_apart_the_better_the_longer(reads: Literal["tokens", "hidden"]) -> None:
    """AUROC, every pair counted, behind 0, 3 and all words: refusals and safe answers are low, what an unsafe request wants is high."""
    lm, state = learned(reads)
    said = [(e.prompt, a, label) for e in OTHERS for a, label in ((e.comply, e.harmful), (e.refuse, False)) if a]
    heads, tails = prompt_ids(lm.tokenizer, [p for p, _, _ in said]), answer_ids(lm.tokenizer, [a for _, a, _ in said])

    def told(words: int) -> float:
        found = values(lm, state, [h + t[:words] for h, t in zip(heads, tails, strict=True)])
        high, low = ([v for v, (_, _, label) in zip(found, said, strict=True) if label is side] for side in (True, False))
        return float(np.mean([[(a > b) + (a == b) / 2 for a in high] for b in low]))

    begun, early, whole = told(0), told(3), told(99)
    assert begun < early <= whole
    assert whole > 0.95


@pytest.mark.long
@pytest.mark.parametrize("reads", READS)
def test_what_the_logits_lose_by_hand(reads: Literal["tokens", "hidden"]) -> None:
    lm, state = learned(reads)
    rows = prompt_ids(lm.tokenizer, [HELD[0].prompt, "a b"])
    new, logits, memory = (
        torch.tensor([[9, 12], [13, 10]]),
        torch.randn(2, len(lm.tokenizer), generator=torch.Generator().manual_seed(0)),
        {},
    )
    decoder = Averting(hidden=24, top=3, strength=7.0)
    for n in range(3):
        with torch.no_grad():
            step = Step(logits, {}, new[:, :n], rows, torch.zeros(2), lm, memory)
            found = decoder.logits(step, state)
        for row in range(2):
            order = sorted(range(logits.shape[1]), key=lambda i: -float(logits[row, i]))
            V = dict(zip(order[:3], values(lm, state, [[*rows[row], *new[row, :n].tolist(), a] for a in order[:3]]), strict=True))
            wanted = [float(logits[row, i]) - 7.0 * V.get(i, max(V.values())) for i in range(logits.shape[1])]
            assert found[row].tolist() == pytest.approx(wanted, abs=1e-4)


def test_a_state_before_each_token_is_read_and_none_after_it() -> None:
    """Of the first token there is none; a later token changes what is read of no place before it."""
    lm, state = learned("hidden")
    (row,) = prompt_ids(lm.tokenizer, [HELD[0].prompt])
    one, other = (seen(lm, *pad([[*row, last]], 0, "right"), state)[0] for last in (9, 12))
    width = one.shape[1] // 2
    assert not one[0, width:].any()
    assert torch.equal(one[:-1], other[:-1])
    assert torch.equal(one[-1, width:], other[-1, width:])
    assert not torch.equal(one[-1, :width], other[-1, :width])


@pytest.mark.long
def test_states_are_read_alike_whatever_batch_a_row_is_in_and_no_hook_stays() -> None:
    settings = {"reads": "hidden", "strength": 40.0, "epochs": 30, "hidden": 8}
    contract.check_batches(Averting, neox, settings)
    contract.check_no_hook_left(Averting, neox, settings)


@pytest.mark.long
def test_it_refuses_in_an_answer_s_place_where_the_value_is_too_high() -> None:
    lm, state = learned()
    (one,) = answers(lm, Guided(Averting(hidden=24, refuse_above=0.0), state=state), {}, prompts=(HELD[0].prompt,))
    assert (one.text, one.ended) == (HELD[0].refuse, True)
    assert answers(lm, Guided(Averting(hidden=24, strength=0.0, refuse_above=1.0), state=state), {}) == answers(lm, None, {})


@pytest.mark.long
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_dual_ascent_lands_within_two_points_of_its_target(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the prompts it was found on, measured anew with 1,536 draws, whose error is a point."""
    monkeypatch.setattr(averting, "NEW", 12)
    lm, state = learned()
    prompts, hot = [e.prompt for e in HELD] * 32, Decoding(max_new_tokens=12, temperature=1.0, seed=99)

    def mean(strength: float) -> float:
        guide = Guide(Guided(Averting(hidden=24, strength=strength), state=state), lm, {}, prompts, None)
        said = [c.text for c in lm.generate(prompts, hot, 1024, guide=guide)]
        rows = [h + t for h, t in zip(prompt_ids(lm.tokenizer, prompts), answer_ids(lm.tokenizer, said), strict=True)]
        return float(np.mean(values(lm, state, rows)))

    target = share * mean(0.0)
    found = Averting(hidden=24, target=target)._ascended(lm, state, [e.prompt for e in HELD])
    assert target > 0.05
    assert mean(found) == pytest.approx(target, abs=0.02)


def test_it_needs_answers_of_both_labels() -> None:
    with pytest.raises(TiterError, match="0 unsafe answers"):
        Averting().fit(neox(WORLD), {}, [e for e in HELD if not e.harmful])
