"""Decoders over thoughts: each turn goes on with both models' rows, a refusal stands in the answer's place and not in the thought's."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from tests.models.thinking import HELP, LONG, MARKS, REFUSAL, SAFE, UNSAFE, said, taught
from titer.decoders.base import Decoder, Guide, Guided, State, Step
from titer.decoders.emulated import Emulated
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, Completion, Decoding, load

ASKED = [*UNSAFE[:2], *SAFE[:2]]


class Within(Decoder):
    """Ends an answer at its sixth token behind the thought."""

    SOURCE = "this test"
    VERSION = 1
    NEUTRAL = "none: it is a test's"

    def stops(self, step: Step, state: State) -> torch.Tensor:
        written = [
            step.lm.tokenizer.decode([*row[len(row) - n :], *new])
            for row, n, new in zip(step.rows, step.before.tolist(), step.new.tolist(), strict=True)
        ]
        return torch.tensor([len(text.partition(MARKS[1])[2]) > 12 for text in written])

    def ending(self, answer: str, state: State) -> str:
        return f"[{answer[:5]}]"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    return load(open_checkpoint(taught(tmp_path_factory.mktemp("thinking") / "m", said(*MARKS), plain=("<think>", "</think>"))), "cpu")


def answers(lm: LM, one: Guided, others: dict[str, LM], decoding: Decoding, batch: int = 8) -> list[Completion]:
    return lm.generate(ASKED, decoding, batch, guide=Guide(one, lm, others, ASKED, None))


@pytest.mark.long
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5])
def test_two_models_go_on_over_turns(lm: LM, alpha: float) -> None:
    """Of one model twice every mixture is that model: if a turn left out what was written before, it would not be."""
    other = LM(deepcopy(lm.model), lm.tokenizer, "other")
    for new in (4, 64):
        plain = lm.generate(ASKED, Decoding(max_new_tokens=new))
        assert plain[0].thought == LONG
        assert answers(lm, Guided(Emulated(alpha=alpha)), {"base": other}, Decoding(max_new_tokens=new)) == plain
        assert answers(lm, Guided(Emulated(alpha=alpha)), {"base": other}, Decoding(max_new_tokens=new), 1) == plain


@pytest.mark.long
def test_an_answer_is_replaced_behind_its_thought(lm: LM) -> None:
    found = answers(lm, Guided(Within()), {}, Decoding(max_new_tokens=32))
    assert [c.text for c in found] == [f"[{one[:5]}]" for one in (REFUSAL, REFUSAL, HELP, HELP)]
    assert [c.thought for c in found][:2] == [LONG, LONG]
    assert all(c.ended and not c.unfinished for c in found)
