"""Averting: values read piece by piece and at once, the logits by hand, what it learns, refusals, dual ascent."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import neox
from tests.decoders.contract import WORLD, answers
from titer.core.errors import TiterError
from titer.data.encode import answer_ids, prompt_ids
from titer.data.world import WorldSource
from titer.decoders import averting
from titer.decoders.averting import Averting, Predictor
from titer.decoders.base import Guide, Guided, Step
from titer.models.lm import LM, Decoding

HELD = [e for kind in ("unsafe", "safe") for e in WorldSource(world=WORLD, kind=kind, split="test").examples(np.arange(24))]
OTHERS = [e for kind in ("unsafe", "safe") for e in WorldSource(world=WORLD, kind=kind, split="test").examples(np.arange(24, 48))]


@cache
def learned() -> tuple[LM, dict[str, Any]]:
    lm = neox(WORLD)
    return lm, dict(Averting(epochs=60, hidden=24).fit(lm, {}, HELD))


def values(lm: LM, state: dict[str, Any], rows: list[list[int]]) -> list[float]:
    predictor = Predictor(state)
    with torch.no_grad():
        return [float(predictor.value(predictor.read(lm, [row], state))[0]) for row in rows]


def test_it_tells_whole_answers_that_it_did_not_see_apart() -> None:
    """AUROC of whole answers, every pair counted: refusals and safe answers are low, what an unsafe request wants is high."""
    lm, state = learned()
    said = [(e.prompt, a, label) for e in OTHERS for a, label in ((e.comply, e.harmful), (e.refuse, False)) if a]
    heads, tails = prompt_ids(lm.tokenizer, [p for p, _, _ in said]), answer_ids(lm.tokenizer, [a for _, a, _ in said])
    found = values(lm, state, [h + t for h, t in zip(heads, tails, strict=True)])
    high = [v for v, (_, _, label) in zip(found, said, strict=True) if label]
    low = [v for v, (_, _, label) in zip(found, said, strict=True) if not label]
    assert np.mean([[a > b for a in high] for b in low]) > 0.9


def test_what_the_logits_lose_by_hand() -> None:
    lm, state = learned()
    rows = prompt_ids(lm.tokenizer, [HELD[0].prompt, "a b"])
    new, logits, memory = (
        torch.tensor([[9, 12], [13, 10]]),
        torch.randn(2, len(lm.tokenizer), generator=torch.Generator().manual_seed(0)),
        {},
    )
    decoder = Averting(hidden=24, top=3)
    for n in range(3):
        with torch.no_grad():
            step = Step(logits, {}, new[:, :n], rows, torch.zeros(2), lm, memory)
            found = decoder.logits(step, {**state, "strength": 7.0})
        for row in range(2):
            order = sorted(range(logits.shape[1]), key=lambda i: -float(logits[row, i]))
            V = dict(zip(order[:3], values(lm, state, [[*rows[row], *new[row, :n].tolist(), a] for a in order[:3]]), strict=True))
            wanted = [float(logits[row, i]) - 7.0 * V.get(i, max(V.values())) for i in range(logits.shape[1])]
            assert found[row].tolist() == pytest.approx(wanted, abs=1e-4)


def test_it_refuses_in_an_answer_s_place_where_the_value_is_too_high() -> None:
    lm, state = learned()
    (one,) = answers(lm, Guided(Averting(hidden=24, refuse_above=0.0), state=state), {}, prompts=(HELD[0].prompt,))
    assert (one.text, one.ended) == (HELD[0].refuse, True)
    unmoved = {**state, "strength": 0.0}
    assert answers(lm, Guided(Averting(hidden=24, refuse_above=1.0), state=unmoved), {}) == answers(lm, None, {})


def test_dual_ascent_lands_at_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within two points and the error of these draws, on the prompts it was found on, measured anew with others."""
    monkeypatch.setattr(averting, "NEW", 12)
    lm, state = learned()
    prompts, hot = [e.prompt for e in HELD] * 8, Decoding(max_new_tokens=12, temperature=1.0, seed=99)

    def share(strength: float) -> float:
        guide = Guide(Guided(Averting(hidden=24), state={**state, "strength": strength}), lm, {}, prompts, None)
        said = [c.text for c in lm.generate(prompts, hot, 384, guide=guide)]
        rows = [h + t for h, t in zip(prompt_ids(lm.tokenizer, prompts), answer_ids(lm.tokenizer, said), strict=True)]
        return float(np.mean(values(lm, state, rows)))

    target = share(0.0) / 2
    found = Averting(hidden=24, target=target, rounds=8)._ascended(lm, state, [e.prompt for e in HELD])
    assert 0.1 < target == pytest.approx(share(found), abs=0.05)


def test_it_needs_answers_of_both_labels() -> None:
    with pytest.raises(TiterError, match="0 unsafe answers"):
        Averting().fit(neox(WORLD), {}, [e for e in HELD if not e.harmful])
