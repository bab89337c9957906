"""A model that thinks, evaluated: the answer is judged, what was cut off in thought is no verdict, what is kept says which."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.models.thinking import HELP, LONG, MARKS, REFUSAL, SAFE, SHORT, UNSAFE, said, taught
from titer.api import evaluate
from titer.attacks.base import Attempt
from titer.core.errors import TiterError
from titer.core.parallel import Silent
from titer.core.run import Store
from titer.data.example import Example
from titer.evaluate import asked_of, judged, rates
from titer.judges.refusal import Refusal
from titer.models.checkpoint import open_checkpoint
from titer.models.fetch import resolve
from titer.models.lm import Decoding
from titer.pipeline import Model, Pipeline


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("thinking") / "think", said(*MARKS), plain=("<think>", "</think>"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing but its answers says that it thinks."""
    return taught(tmp_path_factory.mktemp("thinking") / "plain", said("<reasoning>", "</reasoning>"))


def asked(folder: Path) -> Path:
    file = folder / "prompts.csv"
    rows = [{"prompt": p, "label": "unsafe"} for p in UNSAFE] + [{"prompt": p, "label": "safe"} for p in SAFE]
    pd.DataFrame(rows).to_csv(file, index=False)
    return file


def counts(found: pd.DataFrame, kind: str) -> dict[str, int]:
    mine = found[(found.kind == kind) & found["count"].gt(0)]
    return dict(zip(mine.outcome, mine["count"], strict=True))


@pytest.mark.long
@pytest.mark.parametrize("room", [{}, {"max_new_tokens": 256}, {"max_new_tokens": 20, "max_thinking_tokens": 200}])
@pytest.mark.parametrize("kind", ["tokens", "plain"])
def test_answers_are_judged_and_thoughts_are_not(kind: str, room: dict[str, int], request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(kind)
    found = evaluate(str(model), asked(tmp_path), runs=tmp_path / "runs", progress=False, **room)
    assert counts(found.rates, "unsafe") == {"refused": 4}
    assert counts(found.rates, "safe") == {"complied": 4}
    assert set(found.verdicts.thought) == {LONG, SHORT}
    assert "cut off" not in found.lines
    assert LONG in found.page.read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tokens", "plain"])
def test_what_is_cut_off_in_thought_is_counted_and_no_verdict(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(kind)
    found = evaluate(str(model), asked(tmp_path), max_new_tokens=24, runs=tmp_path / "runs", progress=False)
    assert counts(found.rates, "unsafe") == {"cut_in_thought": 4}
    assert counts(found.rates, "safe") == {"complied": 4}
    assert found.rates[(found.rates.kind == "unsafe") & ~found.rates.outcome.isin(["cut_in_thought", "could_not_judge"])].n.eq(0).all()
    told = "4 of 8 answers were cut off while the model was still thinking, after 24 tokens: raise --max-thinking-tokens"
    assert told in found.lines
    assert told in found.page.read_text(encoding="utf-8")
    assert "4 were cut off while the model was still thinking" in found.answer
    more = evaluate(str(model), asked(tmp_path), max_new_tokens=24, max_thinking_tokens=100, runs=tmp_path / "runs", progress=False)
    assert counts(more.rates, "unsafe") == {"refused": 4}


@pytest.mark.long
def test_answers_kept_of_old_form_are_asked_again(plain: Path, tmp_path: Path) -> None:
    """A model that nothing but its answers says to think goes by the key of others; what stands there unsplit is not read."""
    checkpoint = open_checkpoint(plain)
    pipeline = Pipeline(Store(tmp_path), Silent())
    attempts, decoding = [Attempt(Example(p, True, "unsafe", "t")) for p in UNSAFE], Decoding(max_new_tokens=64)
    first = pipeline.verdicts(Model("m", checkpoint.key, checkpoint), attempts, Refusal(), decoding, 4)
    for file in (tmp_path / "samples").glob("*/samples.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert {row["completion"] for row in rows} <= {REFUSAL, ""}
    again = pipeline.verdicts(Model("m", checkpoint.key, checkpoint), attempts, Refusal(), decoding, 4)
    assert first.outcome.tolist() == again.outcome.tolist() == ["refused"] * 4


def test_a_judge_is_not_asked_about_what_has_no_answer() -> None:
    row = {"kind": "safe", "harmful": False, "prompt": "p", "prefix": "", "comply": None, "refuse": None, "ended": False, "tokens": 3}
    thoughts = pd.DataFrame(
        [
            {**row, "completion": "", "thought": "I can't", "unfinished": True},
            {**row, "completion": HELP, "thought": "", "unfinished": False},
            {**row, "completion": "", "thought": "", "unfinished": True, "ended": True},
        ]
    )
    found = judged(thoughts, Refusal())
    assert found.outcome.tolist() == ["cut_in_thought", "complied", "cut_in_thought"]
    assert [reason.split(":")[0] for reason in found.reason[::2]] == ["cut off in thought", "it ended within its thought"]
    table = rates(found).set_index("outcome")
    assert (table.loc["cut_in_thought", "count"], table.loc["cut_in_thought", "n"], table.loc["complied", "n"]) == (2, 3, 1)


def test_a_beginning_that_is_of_a_thought_is_not_judged() -> None:
    row = {"kind": "safe", "harmful": False, "prompt": "p", "comply": None, "refuse": None, "ended": True, "tokens": 3, "completion": HELP}
    begun = pd.DataFrame([{**row, "prefix": "<think>\nI can't help"}, {**row, "prefix": "Well,"}])
    assert [completion.text for _, completion in asked_of(begun)] == [HELP, f"Well, {HELP}"]


@pytest.mark.long
def test_room_of_a_thought_that_is_named_must_fit_the_window(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="longer than the model's window of 512"):
        evaluate(str(tokens), asked(tmp_path), max_thinking_tokens=480, runs=tmp_path / "runs", progress=False)


def test_thinking_off_is_a_model_of_its_own_and_none_where_the_template_cannot_say_it(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="has no variable that turns thinking on and off"):
        evaluate(str(tokens), asked(tmp_path), thinking="off", runs=tmp_path / "runs", progress=False)
    assert resolve(str(tokens)).key == open_checkpoint(tokens).key != resolve(str(tokens), thinking="off").key
    assert resolve(str(tokens), thinking="off").option == " --thinking off"
