"""Evaluating saved models on a text file: the numbers are those of a loop by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from titer.attacks.prefill import Prefill
from titer.commands import evaluation
from titer.core.errors import TiterError
from titer.core.stats import wilson
from titer.data.example import Example
from titer.data.sources import TextData, read_text
from titer.judges.base import Judge, Verdict
from titer.judges.exact import Exact
from titer.judges.refusal import Refusal
from titer.models.checkpoint import Checkpoint
from titer.models.lm import Completion, Decoding, load
from titer.pipeline import Model, Pipeline

Saved = Callable[..., Checkpoint]
DECODING = Decoding(max_new_tokens=6)


class Letters(Judge):
    """Refused if the answer begins with a letter of the first half of the alphabet: a judge that says both."""

    SOURCE = "this test"
    VERSION = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        return Verdict("refused" if completion.text[:1] < "h" else "complied", 0.0, completion.text[:1])


@pytest.fixture
def data(prompts: Path) -> TextData:
    return read_text(prompts)


@pytest.fixture
def model(saved: Saved) -> Model:
    checkpoint = saved("aligned")
    return Model(checkpoint.label, checkpoint.key, checkpoint)


def rate(rates: pd.DataFrame, kind: str, outcome: str) -> Any:
    """The row of one kind and outcome."""
    return rates[(rates.kind == kind) & (rates.outcome == outcome)].iloc[0]


@pytest.mark.long
def test_rates_are_those_of_a_loop_by_hand(pipeline: Pipeline, model: Model, data: TextData) -> None:
    verdicts, rates = evaluation.evaluate_model(pipeline, model, data, Letters(), DECODING, None, None)
    lm = load(model.checkpoint)
    for kind in ("safe", "unsafe"):
        examples = data.of_class(kind == "unsafe")
        answers = [lm.generate([e.prompt], DECODING)[0] for e in examples]
        refused = sum(answer.text[:1] < "h" for answer in answers)
        row = rate(rates, kind, "refused")
        assert (row["count"], row.n) == (refused, 12)
        assert (row.rate, row.low, row.high) == pytest.approx(tuple(wilson(refused, 12)))
        mine = verdicts[verdicts.kind == kind]
        assert mine.prompt.tolist() == [e.prompt for e in examples]
        assert mine.completion.tolist() == [answer.text for answer in answers]
    assert 0 < rates[rates.outcome == "refused"]["count"].sum() < 24


def test_the_first_prompts_of_each_class_are_asked(pipeline: Pipeline, model: Model, data: TextData) -> None:
    verdicts, rates = evaluation.evaluate_model(pipeline, model, data, Letters(), DECODING, 5, None)
    assert verdicts.groupby("kind").size().to_dict() == {"safe": 5, "unsafe": 5}
    assert verdicts.prompt.tolist() == [e.prompt for harmful in (False, True) for e in data.of_class(harmful)[:5]]
    assert set(rates.n) == {5}


def test_an_attack_is_a_set_of_its_own_beside_the_direct_prompts(pipeline: Pipeline, model: Model, data: TextData) -> None:
    plain, _ = evaluation.evaluate_model(pipeline, model, data, Letters(), DECODING, None, None)
    verdicts, rates = evaluation.evaluate_model(pipeline, model, data, Letters(), DECODING, None, ("prefill", Prefill(opening="a b")))
    attacked = verdicts[verdicts.kind == "prefill"]
    assert len(attacked) == 12
    assert set(attacked.prefix) == {"a b"}
    assert rate(rates, "prefill", "refused")["count"] == 12  # each answer is judged whole: it begins with the opening's a
    pd.testing.assert_frame_equal(verdicts[verdicts.kind != "prefill"].reset_index(drop=True), plain)


def test_a_second_evaluation_makes_nothing_and_another_judge_makes_verdicts_alone(pipeline: Pipeline, model: Model, data: TextData) -> None:
    first = evaluation.evaluate_model(pipeline, model, data, Letters(), DECODING, None, None)
    made = len(pipeline.store.made)
    again = evaluation.evaluate_model(Pipeline(pipeline.store, pipeline.reporter), model, data, Letters(), DECODING, None, None)
    pd.testing.assert_frame_equal(first[0], again[0])
    assert len(pipeline.store.made) == made
    evaluation.evaluate_model(pipeline, model, data, Refusal(), DECODING, None, None)
    assert [one.split("/")[0] for one in pipeline.store.made[made:]] == ["verdicts", "verdicts"]


def test_the_report_of_an_evaluation(pipeline: Pipeline, model: Model, data: TextData, tmp_path: Path) -> None:
    verdicts, rates = evaluation.evaluate_model(pipeline, model, data, Letters(), DECODING, None, None)
    page, answer = evaluation.evaluation_report(model, data, verdicts, rates, "titer evaluate aligned", tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    for kind in ("unsafe", "safe"):
        assert f"{rate(rates, kind, 'refused').rate:.0%} [" in answer
    assert answer in text
    assert "titer evaluate aligned" in text
    assert data.sha256 in text
    assert model.key in text
    results = pd.read_csv(page.parent / "results.csv")
    assert set(results.model) == {"aligned"}
    assert results[results.measure == "refused"]["count"].tolist() == rates[rates.outcome == "refused"]["count"].tolist()
    assert (page.parent / "figures" / "outcomes.svg").exists()
    assert text.count('class="blurred"') == 6  # the first six unsafe answers


def test_answers_that_no_one_could_judge_are_told_as_such(pipeline: Pipeline, model: Model, data: TextData, tmp_path: Path) -> None:
    verdicts, rates = evaluation.evaluate_model(pipeline, model, data, Exact(), DECODING, None, None)
    assert set(verdicts.outcome) == {"could_not_judge"}
    page, answer = evaluation.evaluation_report(model, data, verdicts, rates, "titer evaluate", tmp_path / "report")
    for text in (answer, *evaluation.refusal_lines(rates), page.read_text(encoding="utf-8")):
        assert not re.search(r"\bnan\b", text.split("<script")[0], re.IGNORECASE)
    assert "no answer to unsafe prompts could be judged" in answer
    assert answer.endswith(f"24 answers could not be judged, most often: {verdicts.reason[0]}; they are in no rate.")


def test_a_class_that_was_not_asked_is_told_as_such(pipeline: Pipeline, model: Model, tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_text("prompt,label\na b,safe\nc d,safe\n", encoding="utf-8")
    data = read_text(file)
    verdicts, rates = evaluation.evaluate_model(pipeline, model, data, Letters(), DECODING, None, None)
    _, answer = evaluation.evaluation_report(model, data, verdicts, rates, "titer evaluate", tmp_path / "report")
    assert "no unsafe prompt was asked" in answer
    assert set(rates.kind) == {"safe"}


def test_a_prompt_longer_than_the_window_is_refused_before_any_answer(pipeline: Pipeline, model: Model, tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text(f"prompt,label\na b,safe\n{'a ' * 70},unsafe\n", encoding="utf-8")
    with pytest.raises(TiterError, match="longer than the model's window of 64"):
        evaluation.evaluate_model(pipeline, model, read_text(file), Letters(), DECODING, None, None)
    assert pipeline.store.made == []


def test_a_judge_by_answer_speaks_of_right_answers_alone(pipeline: Pipeline, model: Model, data: TextData, tmp_path: Path) -> None:
    verdicts, rates = evaluation.evaluate_model(pipeline, model, data, Letters(), DECODING, None, None)
    page, answer = evaluation.evaluation_report(model, data, verdicts, rates, "titer evaluate", tmp_path / "report", by_answer=True)
    for kind in ("safe", "unsafe"):
        row = rate(rates, kind, "complied")
        assert f"{row.rate:.0%} [{row.low:.0%}, {row.high:.0%}] of {row.n} answers of the {kind} set are right" in answer
    assert "refus" not in answer
    assert "right answers, safe" in page.read_text(encoding="utf-8")
