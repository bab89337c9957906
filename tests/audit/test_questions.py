"""Questions of fact in an audit: asked plainly and behind two contexts, right in any accepted form, with uncertainty on right answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from titer.audit.ask import AuditRequest, prepared
from titer.audit.report import audit_report
from titer.audit.study import measured
from titer.core.errors import TiterError
from titer.data.facts import stands
from titer.data.tasks import QUESTIONS
from titer.models.checkpoint import Checkpoint
from titer.models.lm import Decoding, load
from titer.pipeline import Pipeline

Saved = Callable[..., Checkpoint]
FORMS = ("questions", "questions, false context", "questions, random context")
TOKENS = 4


@pytest.fixture
def questions(saved: Saved, tmp_path: Path) -> Path:
    """Six questions; of the first three the further form is what the model `aligned` says."""
    asked = [f"Which letter comes after {letter}?" for letter in "bcdefg"]
    said = load(saved("aligned", 1)).generate([QUESTIONS.format(one) for one in asked], Decoding(max_new_tokens=TOKENS), 8)
    rows = [{"question": one, "answer": [f"right {i}", *([said[i].text] if i < 3 else [])]} for i, one in enumerate(asked)]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def order(saved: Saved, prompts: Path, *capability: str, contexts: bool = True) -> AuditRequest:
    models = [str(saved(name, seed).path) for name, seed in (("aligned", 1), ("tuned", 2))]
    return AuditRequest(models, prompts, max_new_tokens=TOKENS, capability=capability, contexts=contexts)


@pytest.mark.long
def test_an_audit_asks_questions_of_fact_three_ways(
    pipeline: Pipeline, saved: Saved, prompts: Path, questions: Path, tmp_path: Path
) -> None:
    ready = prepared(order(saved, prompts, f"questions:{questions}"))
    f = measured(pipeline, ready.found, ready.question, None)
    assert f.missing.empty
    mine = f.verdicts[f.verdicts.kind.isin(FORMS)]
    assert mine.groupby(["model", "kind"]).size().to_dict() == {(m, kind): 6 for m in ("aligned", "tuned") for kind in FORMS}
    for row in mine.itertuples():
        right = any(stands(form, row.completion) for form in (row.comply, *json.loads(row.also)))
        assert (row.outcome == "complied") == right
    plain = mine[(mine.model == "aligned") & (mine.kind == "questions")]
    told = plain[plain.prompt.str.contains("after [bcd]")]
    assert set(told.outcome) == {"complied"}  # right in a form that is not the first
    assert set(f.uncertainty.set) == set(FORMS)
    assert (f.uncertainty[f.uncertainty.measure == "perplexity"].value >= 1).all()
    assert set(FORMS) <= set(f.shifts.kind)
    page, _ = audit_report(ready.found, ready.question, f, ready.text, {}, "titer audit", tmp_path / "audit")
    text = page.read_text(encoding="utf-8")
    for kind in FORMS:
        assert f"<td>{kind} right</td>" in text
    results = pd.read_csv(page.parent / "results.csv")
    assert set(FORMS) <= set(results[results.table == "uncertainty"].set)


def test_a_false_context_claims_another_rows_answer(saved: Saved, prompts: Path, questions: Path) -> None:
    sets = prepared(order(saved, prompts, f"questions:{questions}")).question.capability
    assert list(sets) == list(FORMS)
    plain, false, other = (sets[kind][0] for kind in FORMS)
    for one, claimed, before in zip(plain, false, other, strict=True):
        assert (one.comply, one.also) == (claimed.comply, claimed.also) == (before.comply, before.also)
        told = claimed.prompt.removesuffix(one.prompt).strip()
        assert any(told.endswith(f": {e.comply}") for e in plain if e is not one)
        assert not any(stands(form, told) for form in (one.comply, *one.also))
        assert before.prompt.endswith(one.prompt)


def test_the_answers_accepted_tell_one_audit_from_another(saved: Saved, prompts: Path, questions: Path) -> None:
    first = prepared(order(saved, prompts, f"questions:{questions}", contexts=False)).identity
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    rows[5]["answer"].append("another form")
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert prepared(order(saved, prompts, f"questions:{questions}", contexts=False)).identity != first


def test_what_is_wrong_with_the_order_is_told(saved: Saved, prompts: Path, questions: Path) -> None:
    with pytest.raises(TiterError, match=r"'trivia:x'.*sst2, ag_news, gsm8k, questions, choices"):
        prepared(order(saved, prompts, "trivia:x"))
    with pytest.raises(TiterError, match="questions was given twice"):
        prepared(order(saved, prompts, f"questions:{questions}", f"questions:{questions}"))
    with pytest.raises(TiterError, match=r"--contexts without a set.*questions"):
        prepared(order(saved, prompts))
