"""The demo under one thread and under two, which differ in a trained model's last bits: its verdicts must not.

At the tiny scale here; at the demo's own by hand (docs/log.md): `python -m tests.studies.test_threads CLAIMS CLAIMS`, of two runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.studies.conftest import Listener
from titer.core import parallel
from titer.core.run import Store
from titer.recipes.demo import Scale
from titer.studies.demo import run_demo

DECIDED = {"supported", "not supported"}


def differing(first: Path, second: Path) -> list[str]:
    """What two runs' claims.json disagree on: a verdict that flips, intervals without a common point."""
    told = []
    runs = [{one["name"]: one for one in json.loads(place.read_text(encoding="utf-8"))["claims"]} for place in (first, second)]
    assert runs[0].keys() == runs[1].keys()
    for name, one in runs[0].items():
        other = runs[1][name]
        if {one["verdict"], other["verdict"]} == DECIDED:
            told.append(f"{name}: {one['verdict']}, then {other['verdict']}")
        if one["interval"] and other["interval"] and not _meet(one["interval"], other["interval"]):
            told.append(f"{name}: {one['interval']} and {other['interval']} have no common point")
    return told


def _meet(one: list[float], other: list[float]) -> bool:
    return max(one[0], other[0]) <= min(one[1], other[1])


@pytest.mark.slow
def test_no_verdict_flips_between_one_thread_and_two(tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 1)  # workers have one thread each, whatever this process has
    monkeypatch.setattr("titer.studies.demo.LEARNED", -1.0)  # a tiny base that learned little counts
    before, pages = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            page, _ = run_demo(Store(tmp_path / str(threads)), Listener(), 1, tiny, bases=3)
            pages.append(page)
            told = json.loads(page.with_name("summary.json").read_text(encoding="utf-8"))["provenance"]
            assert told["threads"] == str(threads)
    finally:
        torch.set_num_threads(before)
    claims = [page.with_name("claims.json") for page in pages]
    assert any(one["interval"] for one in json.loads(claims[0].read_text(encoding="utf-8"))["claims"])
    assert differing(*claims) == []


def test_a_flip_and_intervals_apart_are_told(tmp_path: Path) -> None:
    def written(name: str, *claims: tuple[str, str, list[float] | None]) -> Path:
        place = tmp_path / name
        rows = [{"name": n, "verdict": verdict, "interval": interval} for n, verdict, interval in claims]
        place.write_text(json.dumps({"claims": rows}), encoding="utf-8")
        return place

    one = written("one", ("a", "supported", [0.2, 0.4]), ("b", "inconclusive", [0.0, 0.1]), ("c", "not testable", None))
    same = written("same", ("a", "inconclusive", [0.1, 0.2]), ("b", "not supported", [-0.1, 0.0]), ("c", "supported", [1.0, 2.0]))
    other = written("other", ("a", "not supported", [0.3, 0.5]), ("b", "inconclusive", [0.2, 0.3]), ("c", "not testable", None))
    assert differing(one, same) == []
    assert differing(one, other) == ["a: supported, then not supported", "b: [0.0, 0.1] and [0.2, 0.3] have no common point"]


if __name__ == "__main__":
    found = differing(*map(Path, sys.argv[1:3]))
    print("\n".join(found) or "no verdict flips, and all intervals meet")
    sys.exit(int(bool(found)))
