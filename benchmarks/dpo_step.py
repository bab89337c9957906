"""Compares the time of a DPO step, whose reference is computed once, with that of an SFT step at the same batch, at scale nano.

A DPO step reads pairs, which are twice SFT's rows. The pool has fewer examples than the stage draws, as in the mechanistic study, so the
reference's log probabilities are computed once, in `setup`. The steps are those of `titer.train.train` without saving: they include
drawing the batch, clipping and AdamW. The methods take turns step by step (A B C A B C ...).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from _common import UPPER, finish, interleaved, median, timed
from accelerate import Accelerator

from titer.context import Step
from titer.data.example import Stream
from titer.methods.base import Method
from titer.methods.dpo import DPO
from titer.methods.sft import SFT
from titer.recipes.jain2024 import NANO, align
from titer.stage import Stage
from titer.train import _optimiser

ROUNDS, WARM = 100, 10
POOL = 4096  # with a batch of 128 and 110 steps each pair is seen 3.4 times
LIMITS = {"ratio": (UPPER, 2.1)}


def stage_of(method: Method, streams: dict[str, Stream]) -> Stage:
    """Returns the recipe's alignment stage with this method and these streams."""
    made = align(NANO.model_copy(update={"pool": POOL}), NANO.world, "dpo", "M")
    return made.model_copy(update={"method": method, "streams": streams})


def context(stage: Stage, accelerator: Accelerator) -> tuple[Step, Any]:
    """Builds a fresh model of scale nano, prepared for the stage; returns its training context and its optimiser."""
    made, first = (NANO.architecture.build(NANO.world.tokenizer(), 0) for _ in range(2))
    made.model.train()
    model, wrapped = accelerator.prepare(made.model, _optimiser(made, stage))
    return Step(stage, accelerator, model, made, lambda _: first), wrapped


def stepper(c: Step, wrapped: Any) -> Callable[[], None]:
    """Returns a function that makes the training loop's next step at every call."""
    turn = count()

    def step() -> None:
        c.begin(next(turn))
        wrapped.zero_grad()
        c.stage.method.step(c)
        c.settle()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in c.named], c.stage.optimiser.clip)
        assert torch.isfinite(norm)
        wrapped.step()

    return step


def set_up(c: Step) -> None:
    """Computes the reference's values for the whole pool, as the training loop does before the first step."""
    c.at_start = True
    c.state = c.stage.method.setup(c)
    c.at_start = False


def main() -> None:
    threads = torch.get_num_threads()
    accelerator = Accelerator(cpu=True)
    torch.set_num_threads(threads)
    pairs = align(NANO.model_copy(update={"pool": POOL}), NANO.world, "dpo", "M")
    dpo = pairs.method
    assert isinstance(dpo, DPO)
    plain = context(stage_of(SFT(), {"train": pairs.streams["preferred"]}), accelerator)
    cached = context(stage_of(dpo, pairs.streams), accelerator)
    endless = {name: stream.model_copy(update={"pool": None}) for name, stream in pairs.streams.items()}
    fly = context(stage_of(dpo, endless), accelerator)
    build = timed(lambda: set_up(cached[0]))
    assert cached[0].state["reference"].shape == (POOL, 2)
    works = {"sft": stepper(*plain), "dpo": stepper(*cached), "dpo_uncached": stepper(*fly)}
    seconds = interleaved(works, ROUNDS, warm=WARM)
    builds = [build, *(timed(lambda: set_up(cached[0])) for _ in range(2))]
    step = {name: median(seconds[name]) for name in works}
    for name, took in step.items():
        ratio = median([a / b for a, b in zip(seconds[name], seconds["sft"], strict=True)])
        print(f"{name:13} {took * 1e3:7.1f} ms a step, {ratio:.2f} of SFT's")
    print(f"cache of {POOL} pairs {median(builds):.2f} s, {median(builds) / step['sft']:.1f} steps of SFT")
    numbers = {
        "ratio": median([a / b for a, b in zip(seconds["dpo"], seconds["sft"], strict=True)]),
        "ratio_uncached": median([a / b for a, b in zip(seconds["dpo_uncached"], seconds["sft"], strict=True)]),
        "ms": {name: took * 1e3 for name, took in step.items()},
        "cache_seconds": median(builds),
        "cache_sft_steps": median(builds) / step["sft"],
        "pool": POOL,
        "batch": pairs.batch,
        "epochs": (ROUNDS + WARM) * pairs.batch / POOL,
        "threads": torch.get_num_threads(),
    }
    finish("dpo_step", numbers, LIMITS)


if __name__ == "__main__":
    main()
