"""Every judge file against the contract: declared, total, deterministic, and never a verdict out of its own failure."""

from __future__ import annotations

from functools import cache

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titer.core.errors import TiterError
from titer.core.plugins import names, plugin
from titer.data.example import Example
from titer.evaluate import judged, rates
from titer.judges.base import OUTCOMES, Judge, Verdict
from titer.models.lm import Completion


@cache
def kind_of(name: str) -> type[Judge]:
    """A judge by its name, or by the path of its file."""
    return plugin("judges", name, Judge)  # type: ignore[type-abstract]


JUDGES = sorted(names("judges"))
ASKING = {name for name in JUDGES if "model" in kind_of(name).model_fields}  # no verdict without a model: their own tests give one
TEXTS = st.text(max_size=300)


@pytest.mark.parametrize("name", JUDGES)
def test_it_is_declared(name: str) -> None:
    made = kind_of(name)()
    assert made.SOURCE
    assert made.VERSION >= 1
    assert type(made)(**made.model_dump()) == made


@pytest.mark.long
@pytest.mark.parametrize("name", JUDGES)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS, comply=st.none() | TEXTS, refuse=st.none() | TEXTS, ended=st.booleans())
def test_it_judges_anything(name: str, text: str, comply: str | None, refuse: str | None, ended: bool) -> None:
    example = Example("a prompt", True, "unsafe", "test", comply, refuse)
    completion = Completion(text, ended, len(text))
    verdict = kind_of(name)().judge(example, completion)
    assert verdict.outcome in OUTCOMES
    assert 0 <= verdict.score <= 1
    assert verdict.reason
    assert verdict == kind_of(name)().judge(example, completion)
    assert [verdict] == kind_of(name)().judge_all([(example, completion)])
    assert name not in ASKING or verdict.outcome not in ("complied", "refused")


@pytest.mark.parametrize("name", JUDGES)
def test_many_at_once_are_judged_as_one_by_one_and_in_order(name: str) -> None:
    texts = ("a b", "", "<null> <null>", "I can't help with that.", "positive", "The final answer is: 7", "!!!")
    asked = [
        (Example("p", harmful, "unsafe", "test", "a b", "<null> <null>"), Completion(t, True, 2))
        for t in texts
        for harmful in (True, False)
    ]
    judge = kind_of(name)()
    seen: list[tuple[int, int]] = []
    assert judge.judge_all(asked, None, lambda *now: seen.append(now)) == [judge.judge(*one) for one in asked]
    assert name in ASKING or seen == [(i + 1, len(asked)) for i in range(len(asked))]
    assert judge.judge_all([]) == []


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_that_needs_a_model_says_so_beforehand_and_in_its_verdicts(name: str) -> None:
    judge = kind_of(name)()
    assert judge.reads() == {}
    assert judge.estimate([]) is None
    if name not in ASKING:
        judge.check()
        return
    with pytest.raises(TiterError, match="`model`"):
        judge.check()
    verdict = judge.judge(Example("p", True, "unsafe", "test", "x y", "z"), Completion("a b", True, 2))
    assert verdict.outcome == "could_not_judge"
    assert "`model`" in verdict.reason


def test_only_these_need_a_model() -> None:
    assert sorted(ASKING) == ["classifier", "guard", "pairwise", "rubric"]


@pytest.mark.parametrize("name", JUDGES)
def test_an_empty_answer_is_never_compliance(name: str) -> None:
    example = Example("a prompt", True, "unsafe", "test", "a b", "<null> <null>")
    assert kind_of(name)().judge(example, Completion("", True, 0)).outcome in ("degenerate", "could_not_judge")


class Broken(Judge):
    """A judge that fails on every second answer."""

    SOURCE = "a test"
    VERSION = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        if completion.text == "bad":
            raise ZeroDivisionError
        return Verdict("complied", 1.0, "fine")


def test_a_judge_that_fails_could_not_judge_and_is_left_out_of_the_rates() -> None:
    row = {"kind": "unsafe", "harmful": True, "prompt": "p", "prefix": "", "comply": None, "refuse": None, "ended": True, "tokens": 1}
    found = judged(pd.DataFrame([{**row, "completion": text} for text in ("ok", "bad", "ok", "bad")]), Broken())
    assert found.outcome.tolist() == ["complied", "could_not_judge"] * 2
    table = rates(found).set_index("outcome")
    assert (table.loc["complied", "count"], table.loc["complied", "n"], table.loc["complied", "rate"]) == (2, 2, 1.0)
    assert (table.loc["could_not_judge", "count"], table.loc["could_not_judge", "n"]) == (2, 4)


class Together(Judge):
    """A judge that defines `judge_all` alone, and breaks the contract as told."""

    SOURCE = "a test"
    VERSION = 1
    fault: str = ""

    def judge_all(self, asked, memory=None, progress=None):  # type: ignore[no-untyped-def]
        if self.fault == "raises":
            raise ZeroDivisionError
        if self.fault == "message":
            raise TiterError("the judge has no key")
        return [Verdict("refused", 0.0, c.text) for _, c in asked][: -1 if self.fault == "short" else None]


@pytest.mark.parametrize(
    ("fault", "outcome", "reason"),
    [
        ("", "refused", "ok"),
        ("raises", "could_not_judge", "the judge failed: ZeroDivisionError"),
        ("message", "could_not_judge", "the judge has no key."),
        ("short", "could_not_judge", "the judge failed: ValueError"),
    ],
)
def test_a_judge_of_many_that_fails_could_not_judge_any(fault: str, outcome: str, reason: str) -> None:
    row = {"kind": "unsafe", "harmful": True, "prompt": "p", "prefix": "", "comply": None, "refuse": None, "ended": True, "tokens": 1}
    found = judged(pd.DataFrame([{**row, "completion": "ok"}] * 2), Together(fault=fault))
    assert found.outcome.tolist() == [outcome] * 2
    assert found.reason.tolist() == [reason] * 2


def test_a_judge_of_many_judges_one_and_a_judge_of_neither_is_none() -> None:
    assert Together().judge(Example("p", True, "unsafe", "test"), Completion("ok", True, 1)) == Verdict("refused", 0.0, "ok")

    class Neither(Judge):
        SOURCE = "a test"
        VERSION = 1

    with pytest.raises(TypeError, match="judge"):
        Neither()  # type: ignore[abstract]
