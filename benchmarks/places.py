"""Times a small study on processes of this machine and, in turns, on a Ray cluster of it, with the cluster's start and stop.

Run `python benchmarks/places.py [ROUNDS] [STEPS]`. `make bench` runs it where Ray is installed. It needs idle cores and takes minutes. The
longer the pieces, the less the cluster's start matters, so the start is also reported by itself.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

from _common import UPPER, finish, interleaved, median, timed

from titer.core.parallel import Silent
from titer.core.ray_cluster import places
from titer.core.run import Store
from titer.studies.engine.run import run_study
from titer.studies.qi2024.scale import NANO
from titer.studies.qi2024.study import RiskLevels
from titer.studies.request import StudyRequest

LIMITS = {"ratio": (UPPER, 1.05)}


class Unchecked(RiskLevels):
    """The study without its checks of what the base learned, since such a short training teaches it little."""

    def needs(self, scale: object) -> list[object]:  # type: ignore[override]
        return []


def study(on: str, steps: int) -> None:
    """Runs the study in a fresh run folder: two bases, each pretrained for `steps` steps, and their tunes."""
    base = NANO.base.base.model_copy(update={"pretrain_steps": steps, "inputs": 32})
    aligned = NANO.base.model_copy(update={"base": base, "align_steps": max(10, steps // 5), "align_seeds": 1, "inputs": 32})
    scale = NANO.model_copy(update={"name": "places", "base": aligned, "inputs": 32, "searched": 8, "grid_batches": (32, 128)})
    with tempfile.TemporaryDirectory() as folder:
        order = StudyRequest("qi2024", "places", (0,), (), bases=2, on=on)
        run_study(Unchecked(), order, scale, Store(Path(folder)), Silent(), "")


def main() -> None:
    rounds, steps = (int(word) for word in [*sys.argv[1:], *("2", "300")[len(sys.argv) - 1 :]])
    start = timed(lambda: places("ray").stop(at_once=False))
    seconds = interleaved({on: partial(study, on, steps) for on in ("processes", "ray")}, rounds, warm=0)
    numbers = {
        "processes_seconds": median(seconds["processes"]),
        "ray_seconds": median(seconds["ray"]),
        "ratio": median(seconds["ray"]) / median(seconds["processes"]),
        "cluster_start_seconds": start,
        "each": seconds,
    }
    finish("places", numbers, LIMITS)


if __name__ == "__main__":
    main()
