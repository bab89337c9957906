"""Verdicts by an endpoint in the run store: a server's failure is not kept, what it answered is."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import llama
from tests.studies.conftest import Listener
from titer.attacks.base import Attempt
from titer.core.memory import Memory
from titer.core.run import Store
from titer.data.example import Example
from titer.data.world import World
from titer.judges.base import Asked, Judge, Verdict
from titer.models.checkpoint import open_checkpoint
from titer.models.endpoint import Estimate
from titer.models.lm import Decoding, Progress
from titer.workbench import Model, Workbench

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


def test_a_servers_failure_is_asked_again_and_a_whole_table_is_kept(world: World, tmp_path: Path) -> None:
    CALLS.clear()
    READ.clear()
    llama(world).save(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    listener = Listener()
    bench = Workbench(Store(tmp_path / "runs"), listener)
    model = Model("m", checkpoint.key, checkpoint)
    attempts = [Attempt(Example(f"a {letter}", True, "unsafe", "test")) for letter in "bcde"]

    def asked() -> list[str]:
        return list(bench.verdicts(model, attempts, Flaky(), Decoding(max_new_tokens=2), 4).outcome)

    assert asked() == ["complied", "could_not_judge"] * 2
    assert "judging sends 4 to 12 requests, 10 to 30 tokens" in listener.told
    assert any("2 answers could not be judged" in line for line in listener.told)
    assert asked() == ["complied"] * 4
    assert asked() == ["complied"] * 4
    assert len(CALLS) == 2  # the third time nothing is asked
    assert len(READ) == 1  # a model's weights are hashed once
