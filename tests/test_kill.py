"""Kill -9 at random points of the demo, start again: it goes on and ends with the same bits.

Children are forked from one server that has already imported everything, so a try costs its work alone.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.kill_child import demo
from titer.core.run import sha256_of

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def forks() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.kill_child"])
    return context


def results(root: Path) -> dict[str, str]:
    """Every file that a run leaves, the report apart (it holds provenance), by its checksum."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix not in (".lock", ".owner"))
    return {p.relative_to(root).as_posix(): sha256_of(p) for p in files if p.name != "report.html"}


def run_until(forks: Any, root: Path, seconds: float | None) -> bool:
    """Run the demo under `root`; kill it after `seconds` (None: never). True if it ended by itself, well."""
    child = forks.Process(target=demo, args=(str(root),))
    child.start()
    child.join(seconds)
    if child.is_alive():
        child.kill()
        child.join()
        return False
    assert child.exitcode == 0
    return True


@pytest.mark.parametrize("least", [6, pytest.param(22, marks=pytest.mark.slow)])
def test_a_killed_demo_goes_on_and_ends_with_the_same_bits(least: int, forks: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    assert run_until(forks, tmp_path / "whole", None)
    whole = time.monotonic() - began
    expected = results(tmp_path / "whole")
    assert any(name.endswith("model.safetensors") for name in expected)
    rng = random.Random(0)
    kills = tries = 0
    while kills < least:
        root = tmp_path / f"try{tries}"
        tries += 1
        before = kills
        while not run_until(forks, root, rng.uniform(0.02, 0.4 + (kills - before) / 20) * whole):  # ever later: a busy machine ends too
            kills += 1
            assert kills < 20 * least, "the demo makes no progress between kills"
        assert results(root) == expected


def test_two_demos_on_one_folder_do_not_meet(forks: Any, tmp_path: Path) -> None:
    first, second = (forks.Process(target=demo, args=(str(tmp_path / "runs"),)) for _ in range(2))
    first.start()
    second.start()
    first.join()
    second.join()
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert run_until(forks, tmp_path / "alone", None)
    assert results(tmp_path / "runs") == results(tmp_path / "alone")
