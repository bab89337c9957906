"""Studies on a Ray cluster of two one-core nodes while workers, nodes and drivers are killed (kill -9) at random: the same bits at the end.

`python -m tests.ray_faults`. Every try is a study at a tiny scale (`--study`), killed at random moments and run again until it ends by
itself; every file of every artefact, results.csv and claims.json are compared with those of an undisturbed run in one process. `--apart`:
no node sees the run folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": "0" * 64, "OMP_NUM_THREADS": "1"}  # before Ray is imported
LOST = "is begun again"


def study(name: str, root: str, on: str, bases: int, apart: bool) -> None:
    """A child: the study, run or finished. What it tells goes to a file beside the run folder."""
    import pytest
    import torch

    from tests.studies.conftest import Listener
    from tests.studies.frozen import RELAXED
    from tests.studies.huang2024.conftest import relax
    from tests.studies.jain2024.conftest import TINY as JAIN
    from tests.studies.qi2024.conftest import TINY as QI
    from titer.core import parallel, ray_cluster
    from titer.core.run import Store, write_text
    from titer.studies.engine.lab import form
    from titer.studies.engine.run import run_study
    from titer.studies.request import StudyRequest

    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    relax(patch)
    for constant in RELAXED:
        patch.setattr(constant, -1.0)
    if on == "processes":
        patch.setattr(parallel, "processes", lambda: 1)
    if apart:
        patch.setattr(ray_cluster, "_marked", lambda root: root.name.rjust(32, "0"))  # not what the folder's own file says
    told = Listener()
    try:
        order = StudyRequest(name, "tiny", (0,), (), bases=bases, on=on)
        run_study(form(name, None), order, {"qi2024": QI, "jain2024": JAIN}[name], Store(Path(root)), told, f"titer study {name}")
    finally:
        write_text(Path(root).with_suffix(f".{os.getpid()}.txt"), "\n".join(told.told))


def contents(root: Path) -> dict[str, str]:
    """Every file that decides by its checksum; what is damaged is an error."""
    from titer.core.run import damage, files_under, sha256_of

    folders = [done.parent for done in sorted(root.glob("*/*/DONE")) if "." not in done.parent.name]
    if broken := [str(folder) for folder in folders if damage(folder)]:
        raise SystemExit(f"damaged: {broken}")
    found = {f"{one.parent.name}/{one.name}/{name}": sha256_of(file) for one in folders for name, file in files_under(one).items()}
    return found | {file.name: sha256_of(file) for name in ("results.csv", "claims.json") for file in root.glob(f"*/{name}")}


class Trial:
    """The cluster, and what is killed on it."""

    def __init__(self, asked: argparse.Namespace) -> None:
        from ray.cluster_utils import Cluster

        self.asked, self.rng, self.killed = asked, random.Random(asked.seed), Counter[str]()
        quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 10}
        self.nodes = self._started(
            lambda: Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": quick})
        )
        for _ in range(2):
            self._started(lambda: self.nodes.add_node(num_cpus=1))
        os.environ["RAY_ADDRESS"] = self.nodes.address

    def _started(self, start: Any) -> Any:
        """Ray gives a node half a minute, which a busy machine may not have."""
        for _ in range(5):
            with contextlib.suppress(Exception):
                return start()
        return start()

    def workers(self) -> list[psutil.Process]:
        """Processes of the cluster that are at a piece now."""
        raylets = [psutil.Process(one.process.pid) for node in self.nodes.worker_nodes for one in node.all_processes.get("raylet", [])]
        found = []
        for child in (one for raylet in raylets for one in raylet.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if "ray::" in " ".join(child.cmdline()) and "IDLE" not in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def kill(self, driver: Any) -> None:
        """One of: a worker, a node (another comes in its place), the driver."""
        what = self.rng.choices(("worker", "node", "driver"), (5, 2, 1))[0]
        if what == "worker":
            if not (found := self.workers()):
                return
            with contextlib.suppress(psutil.Error):
                self.rng.choice(found).kill()
        elif what == "node":
            self.nodes.remove_node(self.rng.choice(sorted(self.nodes.worker_nodes, key=lambda n: n.unique_id)), allow_graceful=False)
            self._started(lambda: self.nodes.add_node(num_cpus=1))
        else:
            driver.kill()
        self.killed[what] += 1

    def mend(self) -> None:
        """A node that Ray gave up, as it does where a busy machine keeps it from answering, gets one in its place."""
        for node in list(self.nodes.worker_nodes):
            raylets = [one.process for one in node.all_processes.get("raylet", [])]
            if any(one.poll() is not None for one in raylets):
                self.nodes.remove_node(node, allow_graceful=False)
                self._started(lambda: self.nodes.add_node(num_cpus=1))

    def run(self, root: Path) -> int:
        """A study to its end through `kills` kills; how often a piece was begun again."""
        context, kills = multiprocessing.get_context("spawn"), self.asked.kills
        while True:
            driver = context.Process(target=study, args=(self.asked.study, str(root), "auto", self.asked.bases, self.asked.apart))
            driver.start()
            while driver.is_alive():
                driver.join(self.rng.uniform(0.1, 1.0) * self.asked.every)
                self.mend()
                if driver.is_alive() and kills:
                    kills -= 1
                    self.kill(driver)
            if driver.exitcode == 0:
                return sum(file.read_text(encoding="utf-8").count(LOST) for file in root.parent.glob(f"{root.name}.*.txt"))
            if driver.exitcode != -9:
                raise SystemExit(f"the driver ended with {driver.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="in each run")
    parser.add_argument("--every", type=float, default=8.0, help="seconds between kills, at most")
    parser.add_argument("--study", choices=("qi2024", "jain2024"), default="qi2024")
    parser.add_argument("--bases", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--apart", action="store_true")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        alone = multiprocessing.get_context("spawn").Process(
            target=study, args=(asked.study, f"{folder}/alone", "processes", asked.bases, False)
        )
        alone.start()
        alone.join()
        expected = contents(Path(folder) / "alone")
        assert expected, "the undisturbed run left nothing"
        trial, again = Trial(asked), []
        for i in range(asked.runs):
            again.append(trial.run(Path(folder) / f"run{i}"))
            equal = contents(Path(folder) / f"run{i}") == expected
            print(
                f"run {i}: {dict(trial.killed)} killed so far, {again[-1]} pieces begun again, {'equal' if equal else 'DIFFERENT'}",
                flush=True,
            )
            assert equal
        trial.nodes.shutdown()
    told = {"runs": asked.runs, "files": len(expected), "killed": dict(trial.killed), "begun_again": sum(again)}
    print(json.dumps({"benchmark": "ray_faults", **told, "seconds": round(time.monotonic() - began), "ok": True}), flush=True)


if __name__ == "__main__":
    main()
