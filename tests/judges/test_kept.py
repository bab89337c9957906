"""Verdicts in the run store: a failure of the asking is not kept, at whatever price; what was answered is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import llama
from tests.judges import tiny
from tests.judges.server import Act, say, serving, status
from tests.studies.conftest import Listener
from titer.attacks.base import Attempt
from titer.core.memory import Memory
from titer.core.run import Store
from titer.data.example import Example
from titer.data.world import World
from titer.judges.base import Asked, Judge, Verdict, unjudged
from titer.judges.classifier import Classifier
from titer.judges.guard import Guard
from titer.judges.rubric import Rubric
from titer.models.checkpoint import open_checkpoint
from titer.models.endpoint import Endpoint, Estimate
from titer.models.lm import LM, Completion, Decoding, Progress
from titer.pipeline import JudgingBatch, Model, Pipeline

CALLS: list[int] = []
READ: list[int] = []


class Flaky(Judge):
    """Like an endpoint that fails on every other answer the first time it is asked."""

    SOURCE = "this test"
    VERSION = 1

    def judge_all(self, asked: Asked, memory: Memory | None = None, progress: Progress | None = None) -> list[Verdict]:
        CALLS.append(len(asked))
        bad = Verdict("could_not_judge", 0.0, "the server is away")
        return [bad if i % 2 and len(CALLS) == 1 else Verdict("complied", 1.0, "") for i in range(len(asked))]

    def reads(self) -> dict[str, str]:
        READ.append(1)
        return {"model": "0123"}

    def estimate(self, asked: Asked) -> Estimate:
        return Estimate(len(asked), 3 * len(asked), 10, 30, None, None)


class Local(Judge):
    """Like a local model without a price: it runs out of memory on every other answer while `SHORT`, and on "c" has no verdict ever."""

    SOURCE = "this test"
    VERSION = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        CALLS.append(1)
        if SHORT and len(CALLS) % 2 == 0:
            raise MemoryError
        return unjudged("the reply says nothing") if "c" in example.prompt else Verdict("complied", 1.0, "")


SHORT: list[int] = []
ANSWERS = ["bread", "bad", "bread bread", "bread bad"]


def answers(texts: list[str] = ANSWERS) -> pd.DataFrame:
    """As `evaluate.sample` gives them."""
    one = {"kind": "unsafe", "harmful": True, "prompt": "bread", "prefix": "", "comply": None, "refuse": None, "ended": True, "tokens": 2}
    return pd.DataFrame([{**one, "completion": text} for text in texts])


def kept(pipeline: Pipeline) -> list[Path]:
    """The tables of verdicts that stand."""
    return [done.parent for done in pipeline.store.root.glob("verdicts/*/DONE")]


def judged(pipeline: Pipeline, judge: Judge, *tables: pd.DataFrame) -> list[list[str]]:
    piles = [JudgingBatch({"samples": str(i)}, lambda table=table: table) for i, table in enumerate(tables or (answers(),))]  # type: ignore[misc]
    return [list(found.outcome) for found in pipeline.judged(piles, judge)]


def test_what_fails_without_a_price_is_asked_again_too(tmp_path: Path) -> None:
    CALLS.clear()
    SHORT[:] = [1]
    pipeline = Pipeline(Store(tmp_path / "runs"), Listener())
    assert judged(pipeline, Local()) == [["complied", "could_not_judge"] * 2]
    assert not kept(pipeline)
    assert (
        "judging: 2 answers could not be judged, most often: the judge failed: MemoryError; run the same command again to judge these"
        in (
            pipeline.reporter.told  # type: ignore[attr-defined]
        )
    )
    SHORT.clear()
    assert judged(pipeline, Local()) == [["complied"] * 4]
    assert len(kept(pipeline)) == 1
    asked = len(CALLS)
    assert judged(pipeline, Local()) == [["complied"] * 4]
    assert len(CALLS) == asked


def test_a_considered_could_not_judge_is_kept(tmp_path: Path) -> None:
    SHORT.clear()
    pipeline = Pipeline(Store(tmp_path / "runs"), Listener())
    table = answers().assign(prompt="c")
    assert judged(pipeline, Local(), table) == [["could_not_judge"] * 4]
    assert len(kept(pipeline)) == 1
    assert not pipeline.reporter.told  # type: ignore[attr-defined]


def test_of_several_piles_those_without_a_failure_are_kept_and_the_judge_is_called_once(tmp_path: Path) -> None:
    CALLS.clear()
    SHORT[:] = [1]
    pipeline = Pipeline(Store(tmp_path / "runs"), Listener())
    tables = answers(["bread"]), answers(["bad"]), answers(["bread", "bread"])  # the second and the fourth answer fail
    assert judged(pipeline, Local(), *tables) == [["complied"], ["could_not_judge"], ["complied", "could_not_judge"]]
    assert len(kept(pipeline)) == 1
    SHORT.clear()
    assert judged(pipeline, Local(), *tables) == [["complied"], ["complied"], ["complied"] * 2]
    assert len(CALLS) == 7  # the pile that was kept is not judged again


def test_a_damaged_table_is_made_again_by_the_same_rule(tmp_path: Path) -> None:
    CALLS.clear()
    SHORT.clear()
    pipeline = Pipeline(Store(tmp_path / "runs"), Listener())
    judged(pipeline, Local())
    (folder,) = kept(pipeline)
    (folder / "table.jsonl").write_text("")
    SHORT[:] = [1]
    again = Pipeline(Store(tmp_path / "runs"), Listener())
    assert "could_not_judge" in judged(again, Local())[0]
    SHORT.clear()
    assert judged(Pipeline(Store(tmp_path / "runs"), Listener()), Local()) == [["complied"] * 4]


def test_a_local_guard_out_of_memory_is_asked_for_what_it_has_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Guard(model=str(tiny.guard(tmp_path / "guard")), batch=2)
    pipeline, real, calls = Pipeline(Store(tmp_path / "runs"), Listener()), LM.generate, []

    def generate(self: LM, prompts: list[str], *more: object) -> object:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise MemoryError
        return real(self, prompts, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(LM, "generate", generate)
    assert judged(pipeline, judge)[0].count("could_not_judge") == 2
    assert not kept(pipeline)
    assert judged(pipeline, judge) == [["refused", "complied", "refused", "complied"]]
    assert calls == [2, 2, 2]  # the batch that was answered is in the memory
    assert len(kept(pipeline)) == 1


def test_what_a_local_model_says_and_cannot_be_read_is_kept(tmp_path: Path) -> None:
    judge = Guard(model=str(tiny.guard(tmp_path / "guard")))
    pipeline = Pipeline(Store(tmp_path / "runs"), Listener())
    assert judged(pipeline, judge, answers(["odd", "bad"])) == [["could_not_judge", "complied"]]  # it writes "maybe"
    assert len(kept(pipeline)) == 1
    long = judged(pipeline, Guard(model=judge.model, tokens=500), answers(["bread " * 20, "bread"]))
    assert long == [["could_not_judge", "refused"]]  # no room for the first reply, today as tomorrow
    assert len(kept(pipeline)) == 2


def test_an_endpoint_s_failure_is_not_kept_and_its_unreadable_reply_is(tmp_path: Path) -> None:
    down = [True]

    def answer(_: int, body: dict[str, Any]) -> Act:
        word = body["messages"][-1]["content"]
        return status(500) if down and word == "bad" else say("maybe" if word == "odd" else "unsafe")

    harmless = answers(["bread", "odd"]).assign(harmful=False)  # which a guard is not asked about
    with serving(answer) as server:
        judge = Guard(endpoint=Endpoint(url=server.url, model="guard", tries=1, wait=0))
        pipeline = Pipeline(Store(tmp_path / "runs"), Listener())
        table = pd.concat([answers(["odd", "bad"]), harmless], ignore_index=True)
        assert judged(pipeline, judge, table) == [["could_not_judge"] * 4]
        assert not kept(pipeline)
        told = pipeline.reporter.told[-1]  # type: ignore[attr-defined]
        assert told.startswith("judging: 1 answers could not be judged, most often: the guard: status 500")
        down.clear()
        assert judged(pipeline, judge, table) == [["could_not_judge", "complied", "could_not_judge", "could_not_judge"]]
        assert len(kept(pipeline)) == 1
        assert server.count == 3  # odd, bad, and bad again


def test_a_rubric_s_and_a_classifier_s_failures_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.grader(tmp_path / "grader")
    tiny.classifier(tmp_path / "classifier", ["bread", "bad"], ["no", "yes"])
    judges = [
        Rubric(model=str(tmp_path / "grader"), tokens=8),
        Classifier(model=str(tmp_path / "classifier"), refused="no", complied="yes"),
    ]

    def fails(*_: object, **__: object) -> object:
        raise MemoryError

    for number, judge in enumerate(judges):
        pipeline = Pipeline(Store(tmp_path / f"runs {number}"), Listener())
        with monkeypatch.context() as patch:
            patch.setattr(LM, "generate", fails)
            patch.setattr("titer.judges.classifier.probabilities", fails)
            assert judged(pipeline, judge) == [["could_not_judge"] * 4]
        assert not kept(pipeline)
        assert "could_not_judge" not in judged(pipeline, judge)[0]
        assert len(kept(pipeline)) == 1


def test_a_servers_failure_is_asked_again_and_a_whole_table_is_kept(world: World, tmp_path: Path) -> None:
    CALLS.clear()
    READ.clear()
    llama(world).save(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    listener = Listener()
    pipeline = Pipeline(Store(tmp_path / "runs"), listener)
    model = Model("m", checkpoint.key, checkpoint)
    attempts = [Attempt(Example(f"a {letter}", True, "unsafe", "test")) for letter in "bcde"]

    def asked() -> list[str]:
        return list(pipeline.verdicts(model, attempts, Flaky(), Decoding(max_new_tokens=2), 4).outcome)

    assert asked() == ["complied", "could_not_judge"] * 2
    assert "judging sends 4 to 12 requests, 10 to 30 tokens" in listener.told
    assert any("2 answers could not be judged" in line for line in listener.told)
    assert asked() == ["complied"] * 4
    assert asked() == ["complied"] * 4
    assert len(CALLS) == 2  # the third time nothing is asked
    assert len(READ) == 1  # a model's weights are hashed once
