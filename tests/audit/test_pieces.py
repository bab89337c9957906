"""Tunes measured elsewhere: one whose place is lost is begun again, one that fails has its reason, a fault of the program is raised."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.studies.conftest import Listener
from titer.audit import pieces
from titer.audit.pieces import TRIES, measured_elsewhere
from titer.commands.requests import AuditRequest
from titer.core.errors import TiterError
from titer.core.parallel import Ended, LostError, Work

ORDER = AuditRequest(["base", "aligned", "one", "two"], "d.csv", on="processes")
TUNES = {name: ["base", "aligned", name] for name in ("one", "two")}


class Scripted:
    """Places that end a tune's pieces with these errors, in turn; after the last one it is made."""

    count, told, alone = 2, "two scripted places", True

    def __init__(self, errors: Mapping[str, Sequence[BaseException]]) -> None:
        self._errors = {name: deque(some) for name, some in errors.items()}
        self._running: list[tuple[Hashable, str]] = []
        self.begun, self.stopped = Counter[str](), list[bool]()

    def submit(self, work: Work) -> Hashable:
        assert work.root.is_absolute(), "a node has a folder of its own to work in"
        assert work.needs is None, "an audit reads model folders, which are no artefacts"
        name = work.make.args[0].models[-1]  # type: ignore[attr-defined]
        self.begun[name] += 1
        self._running.append((object(), name))
        return self._running[-1][0]

    def ended(self) -> list[Ended]:
        ticket, name = self._running.pop(0)
        left = self._errors.get(name)
        return [Ended(ticket, left.popleft() if left else None)]

    def stop(self, at_once: bool) -> None:
        self.stopped.append(at_once)


def run(monkeypatch: pytest.MonkeyPatch, **errors: Sequence[BaseException]) -> tuple[dict[str, str], Scripted, Listener]:
    where, told = Scripted(errors), Listener()
    monkeypatch.setattr(pieces, "places", lambda *_: where)
    try:
        return measured_elsewhere(ORDER, TUNES, told), where, told
    finally:
        assert len(where.stopped) == 1


def test_a_lost_place_costs_another_try_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons, where, told = run(monkeypatch, one=[LostError("killed")] * TRIES)
    assert reasons == {}
    assert where.begun == {"one": TRIES + 1, "two": 1}
    assert told.told == ["one is begun again: killed"] * TRIES
    assert told.pieces[0] == ["one", "two"]
    assert told.pieces[-1] == []
    assert where.stopped == [False]


def test_a_tune_that_cannot_be_measured_has_its_reason_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons, where, _ = run(monkeypatch, one=[TiterError("no such\nfolder")], two=[LostError("killed")] * (TRIES + 1))
    assert reasons == {"one": "no such folder", "two": "LostError: killed"}
    assert where.begun == {"one": 1, "two": TRIES + 1}


def test_a_fault_of_the_program_is_raised_and_ends_the_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    where = Scripted({"one": [KeyError("a fault")]})
    monkeypatch.setattr(pieces, "places", lambda *_: where)
    with pytest.raises(KeyError, match="a fault"):
        measured_elsewhere(ORDER, TUNES, Listener())
    assert where.stopped == [True]
    assert not Path("runs").exists()
