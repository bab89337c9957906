"""The child of the kill test: one demo at the tiny scale, in a process that may die at any moment."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.conftest import TINY
from titer.core import parallel
from titer.core.parallel import Silent
from titer.core.run import Store
from titer.studies.demo import run_demo


def demo(root: str) -> None:
    """Run, or finish, the tiny demo under `root`."""
    torch.set_num_threads(1)
    parallel.processes = lambda: 1  # what is killed is this process
    run_demo(Store(Path(root)), Silent(), 0, TINY, bases=1)
