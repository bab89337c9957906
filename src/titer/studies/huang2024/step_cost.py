"""Tables 5 and 11: seconds per step and peak memory of each method against SFT, each measured in a separate process. L7.

Times are ratios of medians, with SFT and the method taking turns in one process. Memory is the peak of a process that runs the method
alone, minus that of SFT's process. The numbers hold for this machine and are kept under its name.
"""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from titer.core.config import environment
from titer.methods.base import Method
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.checkpoint import Checkpoint
from titer.models.lm import load
from titer.pipeline import Model
from titer.recipes import huang2024 as recipe
from titer.recipes.huang2024 import Scale
from titer.studies.engine.declare import Measure, Seed
from titer.studies.huang2024.defences import TUNED, alignment_of
from titer.train import train

VERSION = 1
STEPS, SKIPPED = 12, 4  # measured in each turn, and left out at its start
TURNS = 3
MB = 1024.0  # ru_maxrss is in KiB on Linux
PAPER = {"sft": 1.0, "vaccine": 1.97, "rep_noise": 2.42}  # a step over SFT's: Llama-2 7B (table 5), RepNoise at 13 B (table 11)
PAPER_GB = {"sft": 0.0, "vaccine": 0.12, "rep_noise": 27.2}


def step_costs(lab: Seed, rho: float) -> Measure:
    """Returns the measure of methods' costs: method, seconds, ratio (to SFT's step), peak MB, extra MB (over SFT's), the paper's values."""
    methods: dict[str, Method] = {
        "sft": SFT(),
        "vaccine": Vaccine(rho=rho),
        "vaccine, tau 10": Vaccine(rho=rho, every=10),
        "noise": Vaccine(rho=rho, noise="norm"),
        **{name: alignment_of(lab, name, rho).method for name in ("t_vaccine", "booster", "rep_noise")},
        **{name: TUNED[name] for name in ("lisa", "ewc", "kl", "constrained_sft")},
    }  # SafeLoRA and Antidote step as SFT does

    def make(lab: Seed, base: Model) -> pd.DataFrame:
        rows = []
        for name, method in methods.items():
            with ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
            ) as own:
                rows.append({"method": name, **own.submit(measured, lab.scale, lab.seed, base.checkpoint, method).result()})
        table = pd.DataFrame(rows)
        more = {
            "extra MB": table["peak MB"] - float(table["peak MB"][0]),
            "paper ratio": table.method.map(PAPER),
            "paper extra GB": table.method.map(PAPER_GB),
        }
        return table.assign(**more)

    return Measure("cost", make, [("base",)], [VERSION, [repr(m) for m in methods.values()], environment()])


def measured(scale: Scale, seed: int, base: Checkpoint, method: Method) -> dict[str, float]:
    """Measures a method in a process of its own: first the method alone for its memory, then in turns with SFT for its time."""
    _ = seconds(scale, seed, base, method)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB
    times: dict[str, list[float]] = {"own": [], "sft": []}
    for _ in range(TURNS):
        times["sft"] += seconds(scale, seed, base, SFT())
        times["own"] += seconds(scale, seed, base, method)
    own, sft = (statistics.median(times[name]) for name in ("own", "sft"))
    return {"seconds": own, "ratio": own / sft, "peak MB": peak}


def seconds(scale: Scale, seed: int, base: Checkpoint, method: Method) -> list[float]:
    """Returns the wall-clock seconds of each step of a short alignment; the first steps are left out."""
    stage = recipe.align(scale, recipe.world_of(scale, seed), method, "measured", steps=STEPS)
    marks: list[float] = []

    def mark(done: int, of: int) -> None:
        marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        train(stage, lambda: load(base), lambda _: load(base), Path(folder), 10 * STEPS, mark)
    return [b - a for a, b in itertools.pairwise(marks)][SKIPPED:]
