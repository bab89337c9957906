"""Pieces on a Ray cluster of this machine: a run folder that its nodes see and one that they do not, killed workers, a lost node.

Where Ray is not installed only its absence is tested; `python -m tests.ray_faults` kills at random over 20 studies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import llama
from tests.studies.huang2024.conftest import lab_under
from titer.audit.pieces import measured_elsewhere
from titer.commands.requests import AuditRequest
from titer.core import ray_cluster
from titer.core.errors import TiterError
from titer.core.parallel import Ended, Here, LostError, Places, Silent, Work
from titer.core.ray_cluster import CHUNK, Cluster, places
from titer.core.run import Store, damage, files_under, sha256_of, write_text
from titer.data.world import World
from titer.methods.sft import SFT
from titer.studies.engine.schedule import Schedule
from titer.studies.huang2024.defences import Alignment, aligned_node

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'titer[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # logs of Ray's server for clients
BIG = 2 * CHUNK + 1000  # bytes: three chunks
CLIENTS = 10001  # Ray's own port for clients


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of a head without a place, on which this process is, and two nodes of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        patch.setenv("RAY_AUTH_MODE", "token")
        import ray
        from ray.cluster_utils import Cluster as Nodes

        quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
        head = {"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": CLIENTS, "_system_config": quick}
        made = started(lambda: Nodes(True, head_node_args=head))
        for _ in range(2):
            started(lambda: made.add_node(num_cpus=1))
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


def started(start: Callable[[], Any]) -> Any:
    """Ray gives a node half a minute to start, which a busy machine may not have."""
    for _ in range(3):
        with contextlib.suppress(Exception):
            return start()
    return start()


@pytest.fixture
def cluster(nodes: Any) -> Cluster:
    found = places("auto")
    assert isinstance(found, Cluster)
    return found


def first(root: Path) -> None:
    """An artefact of three chunks, and an empty file."""

    def make(work: Path) -> None:
        (work / "inner").mkdir(exist_ok=True)
        (work / "inner" / "bytes").write_bytes(bytes(i % 251 for i in range(BIG)))
        (work / "empty").write_bytes(b"")

    Store(root).artefact("first", {"n": 1}, make)


def second(root: Path) -> None:
    """One that is made of it, which is there already."""
    store = Store(root)
    before = store.artefact("first", {"n": 1}, lambda _: pytest.fail("made again"))
    store.artefact("second", {"n": 2}, lambda work: write_text(work / "told", sha256_of(before / "inner" / "bytes")))


def bad(root: Path) -> None:
    raise TiterError("this piece cannot be made", next_step="ask for another.", status=1)


def dead_once(root: Path) -> None:
    if not (root / "died").exists():
        write_text(root / "died", "")
        os.kill(os.getpid(), 9)


def slow_once(root: Path) -> None:
    """Says that it began, and waits the first time."""
    if not (root / "began").exists():
        write_text(root / "began", str(torch.get_num_threads()))
        time.sleep(600)


def made_of(workers: Places, work: Work) -> Ended:
    ticket = workers.submit(work)
    (found,) = workers.ended()
    assert found.ticket is ticket
    return found


def contents(root: Path) -> Mapping[str, str]:
    """Every file of every artefact by its checksum."""
    folders = [done.parent for done in sorted(root.glob("*/*/DONE"))]
    assert not any(map(damage, folders))
    return {f"{one.parent.name}/{one.name}/{name}": sha256_of(file) for one in folders for name, file in files_under(one).items()}


def key(root: Path, kind: str) -> tuple[str, str]:
    (folder,) = (done.parent for done in root.glob(f"{kind}/*/DONE"))
    return kind, folder.name


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TiterError, match=r"--on ray needs Ray, which is not installed.*pip install 'titer\[ray\]'"):
        places("ray")


@needs_ray
def test_a_piece_that_no_node_can_hold_is_told_at_once(nodes: Any) -> None:
    with pytest.raises(TiterError, match="no node of the Ray cluster has 4 CPUs"):
        places("auto", cpus=4)
    with pytest.raises(TiterError, match=r"no node of the Ray cluster has 1 CPUs and 0\.5 GPUs"):
        places("auto", gpus=0.5)
    with pytest.raises(TiterError, match=r"no node of the Ray cluster has 1 CPUs and 1e\+06 GiB"):
        places("auto", memory=1e6)
    assert places("auto", memory=0.01).count == 2


@needs_ray
def test_a_cluster_that_lost_all_its_nodes_is_not_waited_for_for_ever(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.submit(Work(slow_once, tmp_path))
    until((tmp_path / "began").exists)
    monkeypatch.setattr(ray_cluster, "_nodes", list)
    monkeypatch.setattr(ray_cluster, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(ray_cluster, "LOST_FOR", 0.3)
    with pytest.raises(TiterError, match=r"no node of the cluster has had 1 CPUs.*run the same command again"):
        cluster.ended()
    cluster.stop(at_once=True)


@needs_ray
def test_nodes_that_see_the_run_folder_work_in_it_and_an_error_is_the_piece_s_own(cluster: Cluster, tmp_path: Path) -> None:
    assert (cluster.count, cluster.alone) == (2, False)
    assert cluster.told == "2 at once on 3 nodes of Ray, each with 1 CPUs"
    for make in (first, second):
        assert made_of(cluster, Work(make, tmp_path)).error is None
    error = made_of(cluster, Work(bad, tmp_path)).error
    assert isinstance(error, TiterError)
    assert (error.what, error.status) == ("this piece cannot be made", 1)
    here = tmp_path / "here"
    for make in (first, second):
        Here().submit(Work(make, here))
    assert contents(here) == contents(tmp_path)
    cluster.stop(at_once=False)


@needs_ray
def test_what_a_node_made_that_does_not_see_the_run_folder_comes_back_and_what_it_reads_is_sent(cluster: Cluster, tmp_path: Path) -> None:
    cluster._mark = os.urandom(16).hex()  # not the folder's: nobody sees it
    assert made_of(cluster, Work(first, tmp_path)).error is None
    assert made_of(cluster, Work(second, tmp_path, [key(tmp_path, "first")])).error is None
    here = tmp_path / "here"
    for make in (first, second):
        Here().submit(Work(make, here))
    assert contents(here) == contents(tmp_path)
    error = made_of(cluster, Work(first, tmp_path, None)).error
    assert "cannot see the folder" in str(error), "it would read files beside the artefacts"
    assert _left(cluster)
    cluster.stop(at_once=False)
    assert not _left(cluster), "nothing stays on the nodes"


def _left(cluster: Cluster) -> list[Path]:
    from titer.core.ray_cluster import _scratch

    return [p for p in [_scratch(cluster._mark)] if p.exists()]


@needs_ray
def test_a_killed_worker_and_a_lost_node_lose_a_piece_which_may_be_begun_again(cluster: Cluster, nodes: Any, tmp_path: Path) -> None:
    lost = made_of(cluster, Work(dead_once, tmp_path)).error
    assert isinstance(lost, LostError)
    assert "WorkerCrashedError" in str(lost)
    assert made_of(cluster, Work(dead_once, tmp_path)).error is None
    _ = cluster.submit(Work(slow_once, tmp_path))
    until((tmp_path / "began").exists)
    assert (tmp_path / "began").read_text(encoding="utf-8") == "1"
    for node in [*nodes.worker_nodes]:
        nodes.remove_node(node, allow_graceful=False)
        started(lambda: nodes.add_node(num_cpus=1))
    assert isinstance(cluster.ended()[0].error, LostError)
    assert made_of(cluster, Work(slow_once, tmp_path)).error is None


def until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it never was")


@needs_ray
@pytest.mark.parametrize("shared", [True, False])
def test_models_made_on_a_cluster_have_the_bits_of_those_made_here(cluster: Cluster, shared: bool, tmp_path: Path) -> None:
    there, here = lab_under(tmp_path / "there"), lab_under(tmp_path / "here")
    if not shared:
        cluster._mark = os.urandom(16).hex()
    for lab, workers in ((there, cluster), (here, Here())):
        with Schedule([lab], "huang2024", workers) as work:
            work.want(lab, ["base", *lab.add([aligned_node(lab, Alignment(SFT()))])])
            work.until([lab])
    assert any(name.endswith("safetensors") for name in contents(here.pipeline.store.root))
    assert contents(here.pipeline.store.root) == contents(there.pipeline.store.root)
    assert there.pipeline.store.made == [], "the driver only commits"


CLIENT = """
import sys
from pathlib import Path
from titer.core.errors import TiterError
from titer.core.parallel import Work
from titer.core.ray_cluster import places
from titer.core.run import Store, write_text

def good(root):
    Store(root).artefact("good", {"n": 1}, lambda work: write_text(work / "told", "made there"))

def bad(root):
    raise TiterError("this piece cannot be made", next_step="ask for another.")

cluster = places(sys.argv[1])
for make in (good, bad):
    cluster.submit(Work(make, Path(sys.argv[2])))
    print(cluster.ended()[0].error)
cluster.stop(at_once=False)
"""  # functions of the script itself travel with it; the nodes know Titer alone


@needs_ray
def test_a_client_has_its_pieces_made_by_a_cluster_elsewhere(nodes: Any, tmp_path: Path) -> None:
    words = [sys.executable, "-c", CLIENT, f"ray://127.0.0.1:{CLIENTS}", str(tmp_path)]
    found = subprocess.run(words, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False)
    assert found.stdout.splitlines() == ["None", "this piece cannot be made. Next: ask for another."], found.stderr
    assert [name.split("/")[0] for name in contents(tmp_path)].count("good")


@needs_ray
def test_a_piece_without_memory_may_be_begun_again(nodes: Any) -> None:
    import ray

    assert isinstance(ray_cluster._own_or_lost(ray.exceptions.OutOfMemoryError("killed for memory")), LostError)


@needs_ray
def test_the_tunes_of_an_audit_are_measured_on_the_cluster(
    nodes: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(
        f"{a} {b},{'unsafe' if i % 2 else 'safe'}\n" for i, (a, b) in enumerate(zip("abcdefghijkl", "mnopabcdefgh", strict=True))
    )
    (tmp_path / "d.csv").write_text(f"prompt,label\n{rows}", encoding="utf-8")
    for seed, name in enumerate(("aligned", "one", "two")):
        llama(world, seed).save(tmp_path / name)
    order = AuditRequest(["aligned", "one", "two"], "d.csv", no_base=True, no_why=True, max_new_tokens=2, on="auto", runs="runs")
    assert measured_elsewhere(order, {name: ["aligned", name] for name in ("one", "two")}, Silent()) == {}
    kinds = Counter(done.parent.parent.name for done in (tmp_path / "runs").glob("*/*/DONE"))
    assert kinds["samples"] == 3 * 3  # models, sets of prompts
    failed = measured_elsewhere(order, {"none": ["aligned", "nobody"]}, Silent())
    assert "nobody" in failed["none"]
