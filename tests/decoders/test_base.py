"""What a decoder may do: fail at a row, end or replace an answer; what its record enters; raw prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.decoders.contract import ASKED, GREEDY, answers, hooks
from tests.models.families import PROMPTS
from titer.attacks.base import Attempt
from titer.commands.tuning import as_model
from titer.core.config import digest
from titer.core.errors import TiterError
from titer.core.parallel import Silent
from titer.core.run import Store
from titer.data.encode import prompt_ids
from titer.data.example import Example
from titer.decoders.base import Decoder, Guide, Guided, State, Step
from titer.evaluate import judged, rates, sample
from titer.judges.refusal import Refusal
from titer.models import generation_cache
from titer.models.checkpoint import open_checkpoint
from titer.models.hooks import Edit
from titer.models.lm import LM
from titer.models.vllm_engine import Fast
from titer.pipeline import Pipeline, attempts_key


class Odd(Decoder):
    """Fails, or ends, at the rows whose prompt ends in some token."""

    SOURCE = "this test"
    VERSION = 1
    NEUTRAL = "none: it is a test's"

    token: int = -1
    how: str = "raises"

    def _mine(self, step: Step) -> torch.Tensor:
        return torch.tensor([row[-1] == self.token for row in step.rows])

    def logits(self, step: Step, state: State) -> torch.Tensor:
        mine = self._mine(step) & (step.new.shape[1] == 2)
        if self.how == "raises" and bool(mine.any()):
            raise ZeroDivisionError("no such number")
        return step.logits.masked_fill(mine[:, None], torch.nan) if self.how == "nan" else step.logits

    def stops(self, step: Step, state: State) -> torch.Tensor | None:
        return self._mine(step) & (step.new.shape[1] == 2) if self.how in ("ends", "replaces") else None

    def ending(self, answer: str, state: State) -> str:
        return "I refuse." if self.how == "replaces" else answer


class EditOnly(Decoder):
    """Fails while it edits."""

    SOURCE = "this test"
    VERSION = 1
    NEUTRAL = "none: it is a test's"

    def edits(self, lm: LM, state: State) -> dict[str, Edit]:
        def edit(activation: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("an edit that fails")

        return {"resid[0]": edit}


def last(lm: LM) -> int:
    return prompt_ids(lm.tokenizer, [PROMPTS[4]])[0][-1]


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_row_on_which_it_fails_has_no_answer_and_the_others_have_theirs(lm: LM, how: str, tmp_path: Path) -> None:
    plain = lm.generate(PROMPTS, GREEDY)
    found = answers(lm, Guided(Odd(token=last(lm), how=how)), {})
    assert found[:4] == plain[:4]
    assert found[4].text == ""
    assert "the decoder test_base failed" in found[4].failed
    generation_cache.keep(tmp_path / "kept", dict(enumerate(found)))
    assert generation_cache.known(tmp_path / "kept") == dict(enumerate(found))


def test_what_could_not_be_had_is_counted_and_in_no_rate(lm: LM) -> None:
    some = [a._replace(decoder=Guided(Odd(token=last(lm)))) for a in ASKED[:5]]
    verdicts = judged(sample(lm, some, GREEDY, 8), Refusal())
    assert verdicts.outcome[4] == "could_not_judge"
    assert "could not be had: the decoder test_base failed: ZeroDivisionError" in verdicts.reason[4]
    counted = rates(verdicts)
    assert set(counted[counted.outcome == "refused"].n) == {4}


def test_an_edit_that_fails_leaves_no_hook(lm: LM) -> None:
    before = hooks(lm)
    assert all("an edit that fails" in one.failed for one in answers(lm, Guided(EditOnly()), {}))
    assert hooks(lm) == before


@pytest.mark.parametrize(("how", "text"), [("ends", None), ("replaces", "I refuse.")])
def test_it_may_end_an_answer_or_put_another_in_its_place(lm: LM, how: str, text: str | None) -> None:
    plain = lm.generate(PROMPTS, GREEDY)
    found = answers(lm, Guided(Odd(token=last(lm), how=how)), {})
    assert found[:4] == plain[:4]
    assert (found[4].ended, found[4].tokens) == (True, 2)
    assert found[4].text == (text or " ".join(plain[4].text.split()[:2]))


def test_one_that_ends_answers_needs_a_token_that_does(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LM, "ends", property(lambda _: []))
    with pytest.raises(TiterError, match="no token that ends an answer"):
        answers(lm, Guided(Odd(token=last(lm), how="ends")), {})


def test_keys_know_decoders_and_raw_prompts_and_are_what_they_were_without() -> None:
    plain = [Attempt(Example("a b", False, "safe", "test"))]
    assert attempts_key(plain) == digest([["a b", "", "safe", None, None]])
    one, other = (Guided(Odd(), state={"v": torch.full((2,), x), "words": ["x"]}) for x in (0.0, 1.0))
    asked: list[dict[str, Any]] = [{}, {"raw": True}, {"decoder": Guided(Odd())}, {"decoder": Guided(Odd(token=1))}, {"decoder": one}]
    keys = [attempts_key([plain[0]._replace(**more)]) for more in [*asked, {"decoder": other}]]
    assert len(set(keys)) == len(keys)


def test_what_was_learned_on_another_model_is_refused_and_nothing_is_written(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "model")
    model, pipeline = as_model(open_checkpoint(tmp_path / "model")), Pipeline(Store(tmp_path / "runs"), Silent())
    own, other = (ASKED[0]._replace(decoder=Guided(Odd(), state={"v": 1}, learned_on=key)) for key in (model.key, "0" * 16))
    with pytest.raises(TiterError, match="the decoder test_base learned from another model than "):
        pipeline.answered(model, [other], GREEDY, 2)
    assert not (tmp_path / "runs" / "samples").exists()
    assert pipeline.answered(model, [own], GREEDY, 2)[0].is_file()


def test_a_set_is_asked_in_one_way(lm: LM) -> None:
    with pytest.raises(ValueError, match="differ in their decoder"):
        sample(lm, [ASKED[0], ASKED[1]._replace(raw=True)], GREEDY, 2)


def test_embeddings_and_vllm_are_refused_in_words(lm: LM) -> None:
    soft = torch.zeros(len(PROMPTS), 1, 16)
    with pytest.raises(TiterError, match="cannot be used with an attack that inserts embeddings"):
        lm.generate(PROMPTS, GREEDY, suffixes=soft, guide=Guide(Guided(Odd()), lm, {}, PROMPTS, None))
    with pytest.raises(TiterError, match="vLLM cannot run the decoder test_base"):
        sample(Fast(lm, None, dict), [ASKED[0]._replace(decoder=Guided(Odd()))], GREEDY, 2)


def test_a_raw_prompt_goes_without_the_chat_template(lm: LM) -> None:
    plain = lm.generate(["a b c"], GREEDY)
    lm.tokenizer.chat_template = "<bos> <sot> {{ messages[0].content }} <eot>"
    assert lm.generate(["a b c"], GREEDY, raw=True) == plain != lm.generate(["a b c"], GREEDY)
    (row,) = sample(lm, [Attempt(Example("a b c", True, "unsafe", "test"), raw=True)], GREEDY, 1).to_dict("records")
    assert row["completion"] == plain[0].text
