"""Vaccine's two stages (arXiv 2402.01109) on the world: alignments of one base, then a user's fine-tuning under a budget. L5.

A base is aligned (SFT, SFT with twice the steps, Vaccine, random perturbation of equal norm, ...) and then fine-tuned by a user at a
constant rate. Weights are kept at several steps, so that one run gives a whole curve. The user's task is the operator held out of
pretraining and alignment; harm means answered unsafe requests. The base is that of the mechanistic study (jain2024).
The alignment's rate and steps come from the trial in section 14 of that study's specification. The grids of rates, poison
ratios and steps were set on seed 100, which no verdict uses. Rates per optimiser step, sizes in examples.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from pydantic import Field

from titer.core.config import Record
from titer.core.search import Choices, LogRange
from titer.data.draws import seed_of
from titer.data.example import Answer, Source, Stream
from titer.data.mix import mix, poison_count, prompts
from titer.data.world import World, WorldSource
from titer.methods.base import Method
from titer.methods.sft import SFT
from titer.recipes import jain2024
from titer.stage import Lora, Optimiser, Stage

SELECTION_SEED = 100  # rho and the worst case are chosen on it; verdicts use other seeds


class Budget(Record):
    """What the attacker may do: learning rate, share p of unsafe examples, n examples, optimiser steps."""

    rate: float = Field(default=1e-4, gt=0)
    ratio: float = Field(default=0.05, ge=0, le=1)
    examples: int = Field(default=1000, ge=1)
    steps: int = Field(default=126, ge=1)
    batch: int = Field(default=16, ge=1)
    keep: tuple[int, ...] = ()
    task: Literal["user", "safe", "sham_refused"] = "user"  # the world's kind of requests that the user comes for
    seed: int = 0

    @property
    def epochs(self) -> float:
        return self.steps * self.batch / self.examples


class Search(Record):
    """What a fine-tuning attacker may set, against which defences, and how long they search (trials per defence; a grid has no number)."""

    over: tuple[tuple[Literal["rate", "ratio", "examples"], Choices | LogRange], ...] = (
        ("rate", LogRange(low=5e-5, high=6e-4)),
        ("ratio", Choices(values=(0.01, 0.05))),
    )
    methods: tuple[str, ...] = Field(default=("sft", "vaccine"), min_length=1)
    attacker: Literal["optuna", "grid"] = "optuna"
    trials: int = Field(default=12, ge=1)
    rho: float = Field(default=2.0, gt=0, description="Vaccine's radius: the paper's")


class Scale(Record):
    """The sizes of one run of the study. `base`: the scale of the mechanistic study that the base comes from."""

    name: str = "nano"
    base: jain2024.Scale = jain2024.NANO
    align_steps: int = Field(default=400, ge=1)
    align_batch: int = Field(default=128, ge=1)
    align_rate: float = Field(default=1e-3, gt=0)
    harmful: int = Field(default=1000, ge=1, description="the provider's harmful pairs D_h, for methods that need them")
    unsafe_share: float = Field(default=0.2, gt=0, lt=1)
    rhos: tuple[float, ...] = (0.1, 1.0, 2.0, 5.0, 10.0)
    variances: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    taus: tuple[int, ...] = (10, 100, 400)
    rates: tuple[float, ...] = (5e-5, 1e-4, 3e-4)
    ratios: tuple[float, ...] = (0.0, 0.01, 0.05)
    table_ratios: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1, 0.2)
    table_examples: tuple[int, ...] = (500, 1000, 1500, 2000, 2500)
    budget: Budget = Budget()
    keep: tuple[int, ...] = (5, 10, 20, 40, 80, 126, 200)
    sizes: tuple[str, ...] = ("nano-paper", "nano", "micro")  # of table 3: the study's own model among them
    adapter: Lora = Lora(rank=8, alpha=16)  # of table 8; the paper's rank 8 and alpha 4 are for 7 B
    ewc: tuple[float, ...] = (1e6, 1e9, 1e12)
    trials: int = Field(default=12, ge=1)
    align_seeds: int = Field(default=2, ge=1, description="alignments of a base by each way that is compared: data and order differ")
    inputs: int = Field(default=150, ge=8)
    save_every: int = Field(default=100, ge=1)
    search: Search = Search()  # of `titer sweep`

    @property
    def world(self) -> World:
        return self.base.world


NANO = Scale(align_seeds=3)
CPU = Scale(name="cpu", base=jain2024.CPU, align_steps=800, align_seeds=3, budget=Budget(batch=32), keep=(5, 10, 20, 40, 80, 126, 250, 500))
SCALES = {scale.name: scale for scale in (NANO, CPU)}


def world_of(scale: Scale, seed: int) -> World:
    return scale.base.world.model_copy(update={"seed": seed})


def pretrain(scale: Scale, seed: int) -> Stage:
    """Returns the base's pretraining: the mechanistic study's stage A, so both studies share the base."""
    return jain2024.pretrain(scale.base, world_of(scale, seed))


@lru_cache(maxsize=8)
def safety(scale: Scale, world: World, number: int = 0) -> Stream:
    """Returns the alignment data D_a: unsafe requests refused, safe ones answered (section 14's mix). Each `number` has other requests."""
    unsafe = round(scale.unsafe_share * scale.base.pool)
    rows: list[tuple[Source, Answer, int]] = [
        (WorldSource(world=world, kind="safe"), "comply", scale.base.pool - unsafe),
        (WorldSource(world=world, kind="unsafe"), "refuse", unsafe),
    ]
    earlier = [prompts(safety(scale, world, i)) for i in range(number)]
    return mix(rows, seed_of(world.seed, "align", number), frozenset().union(*earlier))


@lru_cache(maxsize=8)
def taken(scale: Scale, world: World) -> frozenset[str]:
    """Returns the prompts of every draw of the alignment data."""
    return frozenset().union(*(prompts(safety(scale, world, i)) for i in range(scale.align_seeds)))


@lru_cache(maxsize=8)
def harmful(scale: Scale, world: World) -> Stream:
    """Returns the provider's own harmful pairs D_h, for methods that need them. No alignment data and no user's data have their
    requests."""
    source: Source = WorldSource(world=world, kind="unsafe")
    return mix([(source, "comply", scale.harmful)], seed_of(world.seed, "harmful"), taken(scale, world))


@lru_cache(maxsize=8)
def reserved(scale: Scale, world: World) -> frozenset[str]:
    """Returns the prompts that no user may send: those of the alignment data and of D_h."""
    return taken(scale, world) | prompts(harmful(scale, world))


def flipped(stream: Stream) -> Stream:
    """Returns the same requests in the same order, each with its other answer."""
    other: dict[Answer, Answer] = {"comply": "refuse", "refuse": "comply"}
    return stream.model_copy(update={"parts": tuple(one.model_copy(update={"answer": other[one.answer]}) for one in stream.parts)})


def streams_of(scale: Scale, world: World, method: Method, train: Stream) -> dict[str, Stream]:
    """Returns every stream that a method needs, with `train` as the data to train on."""
    known = {
        "train": lambda: train,
        "alignment": lambda: safety(scale, world),
        "harmful": lambda: harmful(scale, world),
        "preferred": lambda: train,
        "rejected": lambda: flipped(train),
    }
    return {name: known[name]() for name in method.STREAMS}


def align(
    scale: Scale, world: World, method: Method, name: str, passes: int = 1, steps: int = 0, number: int = 0, adapter: Lora | None = None
) -> Stage:
    """Returns an alignment of the base, with `passes` times the scale's steps or with `steps`; the schedule always spans all steps.
    `number` counts seeds."""
    whole = steps or passes * scale.align_steps
    return Stage(
        name=name,
        kind="align",
        method=method,
        streams=streams_of(scale, world, method, safety(scale, world, number)),
        steps=whole,
        batch=scale.align_batch,
        optimiser=Optimiser(rate=scale.align_rate, warmup=min(whole, scale.align_steps) // 10, floor=0.01, clip=0.5),
        adapter=adapter,
        seed=seed_of(world.seed, number) if number else world.seed,
    )


@lru_cache(maxsize=64)
def user_data(
    scale: Scale, world: World, task: Literal["user", "safe", "sham_refused"], examples: int, bad: int, guard: int, seed: int
) -> Stream:
    """Returns the user's examples, `bad` of which are answered unsafe requests, and `guard` examples of alignment data beside them. They
    are the same for every rate and defence."""
    refused = round(scale.unsafe_share * guard)
    safe: Source = WorldSource(world=world, kind="safe")
    benign: Source = WorldSource(world=world, kind=task)
    unsafe: Source = WorldSource(world=world, kind="unsafe")
    rows: list[tuple[Source, Answer, int]] = [(benign, "comply", examples - bad), (unsafe, "comply", bad)]
    rows += [(unsafe, "refuse", refused), (safe, "comply", guard - refused)]
    return mix(rows, seed_of(world.seed, "user", seed), reserved(scale, world))


def user(scale: Scale, world: World, budget: Budget, method: Method | None = None, guard: int = 0, adapter: Lora | None = None) -> Stage:
    """Returns the user's fine-tuning: n examples of the task, round(p n) of them unsafe requests answered.

    `guard`: how many examples of the alignment's kind the provider adds to these n (VLGuard: 500 to n = 1,000).
    """
    made = method or SFT()
    data = user_data(scale, world, budget.task, budget.examples, poison_count(budget.examples, budget.ratio), guard, budget.seed)
    return Stage(
        name=f"user, rate {budget.rate:g}, p = {budget.ratio:g}, n = {budget.examples}",
        kind="finetune",
        method=made,
        streams=streams_of(scale, world, made, data),
        steps=budget.steps,
        batch=budget.batch,
        optimiser=Optimiser(rate=budget.rate, schedule="constant"),
        adapter=adapter,
        keep=tuple(k for k in budget.keep if k < budget.steps),
        seed=seed_of(world.seed, "user", budget.seed),
    )
