"""Measures the synthetic world's sampler on one core: sequences per second at scale nano and for the paper's world (four grammars)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from _common import LOWER, finish, interleaved, median

from titer.data.example import Batch
from titer.data.world import World
from titer.data.worlds import WORLDS
from titer.recipes.demo import NANO, Scale, pretrain

SIZES = (1024, 4096)
ROUNDS = 25
LIMITS = {"nano_per_second": (LOWER, 200_000), "paper_per_second": (LOWER, 50_000)}


def sampler(world: World, size: int) -> Callable[[], Batch]:
    """Returns a function that draws the next batch of `size` sequences of the pretraining stream at every call, as a stage does."""
    stream, tokenizer, turn = pretrain(Scale(world=world), world).streams["train"], world.tokenizer(), count()
    return lambda: stream.batch(next(turn) * size, size, tokenizer)


def main() -> None:
    torch.set_num_threads(1)
    worlds = {"nano": NANO.world, "paper": WORLDS["paper"]}
    works = {f"{name} {size}": sampler(world, size) for name, world in worlds.items() for size in SIZES}
    seconds = interleaved(works, ROUNDS, warm=3)
    rates = {f"{name} {size}": size / median(seconds[f"{name} {size}"]) for name in worlds for size in SIZES}
    for work, rate in rates.items():
        print(f"{work:12} {rate:10,.0f} sequences a second")
    best = {f"{name}_per_second": max(rates[f"{name} {size}"] for size in SIZES) for name in worlds}
    finish("sampler", {**best, "by_batch": rates}, LIMITS)


if __name__ == "__main__":
    main()
