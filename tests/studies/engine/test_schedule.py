"""The order in which a run's models are made, with workers that make nothing: parents first, no place idle, the longest chain first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import TINY
from tests.studies.conftest import Listener
from titer.core.errors import TiterError
from titer.core.parallel import Ended, LostError, Work
from titer.core.run import Store
from titer.pipeline import Pipeline
from titer.studies.demo import Demo
from titer.studies.engine.declare import Need, Study
from titer.studies.engine.lab import Lab
from titer.studies.engine.run import labs_of
from titer.studies.engine.schedule import Schedule
from titer.studies.request import StudyRequest


class Idle:
    """Two places in which nothing is made; `began` and `log` say which pieces began, and which ended, in order.

    The first that is not slow ends first, with `error(name)`, which may raise.
    """

    count, told, alone = 2, "2", True

    def __init__(
        self, slow: Callable[[str], bool] = lambda _: False, error: Callable[[str], BaseException | None] = lambda _: None
    ) -> None:
        self.log: list[tuple[str, str]] = []
        self.slow, self.error = slow, error
        self.stopped: bool | None = None
        self._running: list[str] = []

    def submit(self, work: Work) -> str:
        assert isinstance(work.make, partial)
        name = f"{work.make.keywords['unit'][1]} {work.make.keywords['name']}"  # the base's number and the model
        self._running.append(name)
        self.log.append(("began", name))
        assert len(self._running) <= self.count
        return name

    def stop(self, at_once: bool) -> None:
        self.stopped = at_once

    def ended(self) -> list[Ended]:
        one = min(self._running, key=self.slow)
        self._running.remove(one)
        self.log.append(("ended", one))
        return [Ended(one, self.error(one))]

    def began(self) -> list[str]:
        return [name for what, name in self.log if what == "began"]


def labs(study: Study, root: Path, bases: int) -> list[Lab]:
    request = StudyRequest("demo", seeds=(1,), bases=bases)
    return labs_of(request, study, TINY, Pipeline(Store(root), Listener(), TINY.save_every))


def worked(all_labs: list[Lab], workers: Idle) -> Idle:
    with Schedule(all_labs, "demo", workers) as work:
        for lab in all_labs:
            work.want(lab, lab.names)
        work.further(all_labs)
    assert workers.stopped is False
    return workers


def test_a_piece_begins_when_its_parents_stand_and_the_longest_chain_first(tmp_path: Path) -> None:
    ours = labs(Demo(), tmp_path, 3)
    workers = worked(ours, Idle(slow=lambda name: name == "2 base"))
    assert sorted(workers.began()) == sorted(f"{lab.base} {name}" for lab in ours for name in lab.names)
    assert workers.began()[:3] == ["0 base", "1 base", "2 base"]
    for lab in ours:
        for name in lab.nodes:
            for parent in lab.before(name):
                assert workers.log.index(("ended", f"{lab.base} {parent}")) < workers.log.index(("began", f"{lab.base} {name}"))
    last = workers.log.index(("ended", "2 base"))
    before = [name for what, name in workers.log[:last] if what == "ended"]
    assert {f"{base} {name}" for base in (0, 1) for name in ours[0].names} == set(before), "the others wait for the third base"
    assert workers.log.index(("began", "0 aligned")) < workers.log.index(("began", "0 benign")), "users begin from the aligned one"


def test_a_lone_base_is_made_here_with_every_thread_and_the_rest_by_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab,) = labs(Demo(), tmp_path, 1)
    here: list[str] = []
    monkeypatch.setattr(Lab, "piece", lambda self, name: here.append(name))
    workers = worked([lab], Idle())
    assert here == ["base"]
    assert set(workers.began()) == {f"0 {name}" for name in lab.names if name != "base"}


def test_a_seed_whose_first_need_fails_is_trained_no_further_beside_one_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Needy(Demo):
        def needs(self, scale: Any) -> list[Need]:
            return [Need("base", ("safe",), "complied", 0.5, first=True)]

    def rates(self: Lab, verdicts: object) -> pd.DataFrame:
        return pd.DataFrame([{"model": "base", "set": "safe", "outcome": "complied", "count": 10 * self.base, "n": 10}])

    ours = labs(Needy(), tmp_path, 2)
    monkeypatch.setattr(Lab, "verdicts", lambda self, name: None)
    monkeypatch.setattr(Lab, "rates", rates)
    workers = worked(ours, Idle())
    assert [one for one in workers.began() if one.startswith("0")] == ["0 base"]
    assert ours[0].names == ["base"]
    assert "base: 0.0% of safe complied" in ours[0].ended
    assert len([one for one in workers.began() if one.startswith("1")]) == len(ours[1].names)


def test_an_interruption_stops_the_workers_at_once(tmp_path: Path) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    workers, ours = Idle(error=interrupted), labs(Demo(), tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        worked(ours, workers)
    assert workers.stopped is True


def test_a_piece_that_raises_leaves_the_others_and_what_begins_from_it_is_not_made(tmp_path: Path) -> None:
    bad = TiterError("this piece cannot be made", next_step="ask for another.", status=1)
    workers, ours = Idle(error=lambda name: bad if name == "0 aligned" else None), labs(Demo(), tmp_path, 2)
    with pytest.raises(TiterError) as caught:
        worked(ours, workers)
    assert caught.value is bad
    assert workers.stopped is False, "the others were made before"
    from_it = {name for name in ours[0].names if "aligned" in ours[0].line(name)} - {"aligned"}
    looks = {name for name in ours[0].names for _, over in ours[0].spoken(name) if "aligned" in over} - {"aligned"}
    assert from_it
    assert set(workers.began()) == {f"{lab.base} {name}" for lab in ours for name in lab.names} - {f"0 {name}" for name in from_it | looks}
    told = ours[0].pipeline.reporter
    assert isinstance(told, Listener)
    assert told.told == [f"aligned of seed 1, base 0 failed, the others go on: {bad}"]


def test_a_piece_whose_place_went_away_is_begun_again_but_not_for_ever(tmp_path: Path) -> None:
    left = {"1 base": 2}

    def killed(name: str) -> BaseException | None:
        left[name] = left.get(name, 0) - 1
        return LostError("killed") if left[name] >= 0 else None

    workers, ours = Idle(error=killed), labs(Demo(), tmp_path, 2)
    with Schedule(ours, "demo", workers) as work:
        for lab in ours:
            work.want(lab, lab.names)
        work.until(ours)
    assert work.lost == 2
    assert workers.began().count("1 base") == 3
    assert len(workers.began()) == 2 + sum(len(lab.names) for lab in ours)
    with pytest.raises(TiterError, match="base of seed 1, base 0: its place went away 6 times"):
        worked(labs(Demo(), tmp_path, 2), Idle(error=lambda name: LostError("killed") if name == "0 base" else None))


def test_a_model_that_stands_is_a_piece_again_where_something_measured_of_it_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measure that was added or changed is made by the workers, not one model after the other when the run gathers."""
    workers = Idle()
    monkeypatch.setattr(Lab, "stands", lambda lab, name: True)
    monkeypatch.setattr(Lab, "is_measured", lambda lab, name: name != "aligned")
    monkeypatch.setattr(Lab, "verdicts", lambda lab, name: pd.DataFrame())
    monkeypatch.setattr(Lab, "rates", lambda lab, verdicts: pd.DataFrame({"model": []}))
    both = labs(Demo(), tmp_path, 2)
    with Schedule(both, "demo", workers) as work:
        for lab in both:
            work.want(lab, lab.names)
        work.until(both)
    assert sorted(workers.began()) == ["0 aligned", "1 aligned"]
