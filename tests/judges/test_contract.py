"""Every judge file against the contract: declared, total, deterministic, and never a verdict out of its own failure."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titer.core.plugins import names, plugin
from titer.data.example import Example
from titer.evaluate import judged, rates
from titer.judges.base import OUTCOMES, Judge, Verdict
from titer.models.lm import Completion

JUDGES = {name: plugin("judges", name, Judge) for name in names("judges")}  # type: ignore[type-abstract]
TEXTS = st.text(max_size=300)


@pytest.mark.parametrize("name", sorted(JUDGES))
def test_it_is_declared(name: str) -> None:
    made = JUDGES[name]()
    assert made.SOURCE
    assert made.VERSION >= 1
    assert type(made)(**made.model_dump()) == made


@pytest.mark.parametrize("name", sorted(JUDGES))
@settings(max_examples=200, deadline=None)
@given(text=TEXTS, comply=st.none() | TEXTS, refuse=st.none() | TEXTS, ended=st.booleans())
def test_it_judges_anything(name: str, text: str, comply: str | None, refuse: str | None, ended: bool) -> None:
    example = Example("a prompt", True, "unsafe", "test", comply, refuse)
    completion = Completion(text, ended, len(text))
    verdict = JUDGES[name]().judge(example, completion)
    assert verdict.outcome in OUTCOMES
    assert 0 <= verdict.score <= 1
    assert verdict.reason
    assert verdict == JUDGES[name]().judge(example, completion)


@pytest.mark.parametrize("name", sorted(JUDGES))
def test_an_empty_answer_is_never_compliance(name: str) -> None:
    example = Example("a prompt", True, "unsafe", "test", "a b", "<null> <null>")
    assert JUDGES[name]().judge(example, Completion("", True, 0)).outcome in ("degenerate", "could_not_judge")


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
