"""How a landscape is judged: all points at once, when the moved model is gone; replies kept, failures not; the price told."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

from tests.studies.conftest import Listener
from titer import evaluate
from titer.attacks.base import Attempt
from titer.commands import landscape as study
from titer.commands.landscape import Landscape, landscape
from titer.core.config import digest
from titer.core.memory import Memory
from titer.core.tables import read_table
from titer.data.example import Example
from titer.judges.base import Asked, Judge, Verdict, unjudged
from titer.judges.refusal import Refusal
from titer.models.checkpoint import Checkpoint
from titer.models.endpoint import Estimate
from titer.models.lm import LM, Progress
from titer.pipeline import Model, Pipeline, attempts_key

UNSAFE = [Example(f"{a} {b}", True, "unsafe", "test") for a, b in zip("abcd", "dcba", strict=True)]
SMALL = Landscape(multiplier=3, points=3, directions=2, prompts=4, tokens=5, batch=4)
Saved = Callable[[str, int], Checkpoint]
CALLS: list[int] = []
ALIVE: list[bool] = []
LOADED: list[weakref.ref[LM]] = []
AWAY: list[int] = []  # while it holds a number, the asking fails on that answer


class Server(Judge):
    """Like a judge with a model of its own behind a price: it counts its calls, and keeps replies where it has a memory."""

    SOURCE: ClassVar[str] = "this test"
    VERSION: ClassVar[int] = 1
    model: str = "one"

    def judge_all(self, asked: Asked, memory: Memory | None = None, progress: Progress | None = None) -> list[Verdict]:
        assert memory is not None
        CALLS.append(len(asked))
        gc.collect()
        ALIVE.append(any(one() is not None for one in LOADED))
        return [unjudged("away", again=True) if AWAY and i == AWAY[0] else Verdict("complied", 1.0, "") for i in range(len(asked))]

    def reads(self) -> dict[str, str]:
        return {"model": self.model}

    def estimate(self, asked: Asked) -> Estimate:
        return Estimate(len(asked), 3 * len(asked), 10, 30, None, None)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (CALLS, ALIVE, LOADED, AWAY):
        one.clear()  # type: ignore[attr-defined]
    real = Pipeline.lm

    def lm(self: Pipeline, model: Model) -> LM:
        found = real(self, model)
        LOADED.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Pipeline, "lm", lm)
    monkeypatch.setattr(study.coherence, "broken", lambda table, limit: pd.Series(False, index=table.index))


@pytest.fixture
def model(saved: Saved) -> Model:
    checkpoint = saved("base", 0)
    return Model(checkpoint.label, checkpoint.key, checkpoint)


def kept(pipeline: Pipeline) -> list[Path]:
    return [done.parent for done in pipeline.store.root.glob("verdicts/*/DONE")]


def complied(found: pd.DataFrame) -> set[float]:
    return set(found[found.quantity == "unsafe"].value)


@pytest.mark.long
def test_all_points_are_judged_by_one_call_when_the_moved_model_is_gone(pipeline: Pipeline, model: Model) -> None:
    found = landscape(pipeline, model, UNSAFE, Server(), SMALL)
    assert len(CALLS) == 1
    assert CALLS[0] == 4 * SMALL.points_in_all(False)  # 0 is judged once, whichever direction it stands in
    assert LOADED
    assert ALIVE == [False]
    assert complied(found.points) == {1.0}
    assert f"judging the landscape sends {CALLS[0]} to {3 * CALLS[0]} requests, 10 to 30 tokens" in pipeline.reporter.told  # type: ignore[attr-defined]


@pytest.mark.long
def test_a_failure_is_not_kept_and_its_point_alone_is_judged_again(pipeline: Pipeline, model: Model) -> None:
    AWAY[:] = [6]  # an answer of the second point
    first = landscape(pipeline, model, UNSAFE, Server(), SMALL)
    assert first.points[first.points.quantity == "could_not_judge"].value.max() == 0.25
    assert len(kept(pipeline)) == SMALL.points_in_all(False) - 1
    assert any("1 answers could not be judged, most often: away" in line for line in pipeline.reporter.told)  # type: ignore[attr-defined]
    AWAY.clear()
    loaded = len(LOADED)
    again = landscape(Pipeline(pipeline.store, Listener()), model, UNSAFE, Server(), SMALL)
    assert CALLS[1:] == [4]
    assert len(LOADED) == loaded  # no answer is written again
    assert again.points[again.points.quantity == "could_not_judge"].value.eq(0).all()
    landscape(pipeline, model, UNSAFE, Server(), SMALL)
    assert len(CALLS) == 2


@pytest.mark.long
def test_another_model_behind_the_same_judge_is_another_judge(pipeline: Pipeline, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    landscape(pipeline, model, UNSAFE, Server(), SMALL)
    monkeypatch.setattr(Server, "reads", lambda self: {"model": "other weights"})
    landscape(Pipeline(pipeline.store, Listener()), model, UNSAFE, Server(), SMALL)
    assert len(CALLS) == 2


@pytest.mark.long
def test_the_phrase_judge_s_verdicts_and_their_keys_are_those_of_a_judgement_point_by_point(pipeline: Pipeline, model: Model) -> None:
    landscape(pipeline, model, UNSAFE, Refusal(), SMALL)
    attempts = [Attempt(example) for example in UNSAFE]
    seen = 0
    for folder in pipeline.store.root.glob("landscape/*"):
        table = folder / "table.jsonl"
        if not (folder / "DONE").exists() or "completion" not in (samples := read_table(table)).columns:
            continue
        seen += 1
        alone = evaluate.judged(samples, Refusal())
        stored = [read_table(one / "table.jsonl") for one in kept(pipeline)]
        assert any(alone.to_json() == one.to_json() for one in stored)
    assert seen == SMALL.points_in_all(False)
    versions = [study.VERSION, evaluate.VERSION, study.coherence.VERSION]
    shared = {"landscape": versions, "model": model.key, "dtype": "float32", "attempts": attempts_key(attempts), "tokens": SMALL.tokens}
    judge = ["refusal", Refusal.VERSION, Refusal()]
    places = [{"a": 0}, *({"a": a, "random": seed} for seed in (0, 1) for a in (-1.5, 1.5))]
    assert {one.name for one in kept(pipeline)} == {digest({**shared, **place, "judge": judge}) for place in places}


@pytest.mark.long
def test_it_goes_on_with_the_points_that_stand(pipeline: Pipeline, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(Server, "judge_all", stop)
        with pytest.raises(KeyboardInterrupt):
            landscape(pipeline, model, UNSAFE, Server(), SMALL)
    loaded = len(LOADED)
    landscape(Pipeline(pipeline.store, Listener()), model, UNSAFE, Server(), SMALL)
    assert len(LOADED) == loaded  # every point's answers were there
    assert len(CALLS) == 1
    assert CALLS[0] == 4 * SMALL.points_in_all(False)
