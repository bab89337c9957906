"""Compares generated tokens per second in one batch with those of one prompt at a time, on the same model and prompts.

It measures the nano model, and SmolLM2-135M-Instruct (`titer models get smollm2-135m`) with real prompts through its chat template.
"""

from __future__ import annotations

import numpy as np
import torch
from _common import LOWER, finish, interleaved, median
from pair import ACTIONS, THINGS

from titer.data.vocabulary import STOP
from titer.data.world import WorldSource
from titer.models.fetch import get
from titer.models.lm import LM, Decoding, load
from titer.recipes.demo import NANO

BATCH, SINGLE, ROUNDS = 256, 3, 5
NEW_TOKENS = 32
REAL_BATCH, REAL_SINGLE, REAL_ROUNDS, REAL_TOKENS = 64, 4, 3, 48
LIMITS = {"ratio": (LOWER, 5.0), "real_ratio": (LOWER, 8.0)}


def endless() -> LM:
    """Returns a nano model with random weights that never ends an answer: its end token's logit is always 0, so another token leads."""
    lm = NANO.architecture.build(NANO.world.tokenizer(), seed=0)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[STOP] = 0
    return lm


def rates(lm: LM, prompts: list[str], batch: int, singles: int, rounds: int, new: int) -> tuple[float, float]:
    """Returns tokens per second: of all prompts in batches of `batch`, and of `singles` of them one at a time. The two take turns."""
    decoding = Decoding(max_new_tokens=new)
    tokens = {"batched": 0, "single": 0}

    def batched() -> None:
        tokens["batched"] = sum(one.tokens for one in lm.generate(prompts, decoding, batch=batch))

    def single() -> None:
        tokens["single"] = sum(one.tokens for one in lm.generate(prompts[:: len(prompts) // singles][:singles], decoding, batch=1))

    seconds = interleaved({"batched": batched, "single": single}, rounds)
    return tokens["batched"] / median(seconds["batched"]), tokens["single"] / median(seconds["single"])


def main() -> None:
    source = WorldSource(world=NANO.world, kind="safe", split="test")
    small = [example.prompt for example in source.examples(np.arange(BATCH))]
    batched, single = rates(endless(), small, BATCH, SINGLE, ROUNDS, NEW_TOKENS)
    print(f"nano, batch {BATCH}: {batched:,.0f} tokens a second; one at a time: {single:,.0f}")
    questions = [f"How do I {action} {thing} {when}?" for when in ("today", "tomorrow") for action in ACTIONS for thing in THINGS]
    real = load(get("smollm2-135m"))
    many, one = rates(real, questions[:REAL_BATCH], REAL_BATCH, REAL_SINGLE, REAL_ROUNDS, REAL_TOKENS)
    print(f"SmolLM2-135M, batch {REAL_BATCH}: {many:,.0f} tokens a second; one at a time: {one:,.0f}")
    numbers = {"batch": BATCH, "batched_per_second": batched, "single_per_second": single, "ratio": batched / single}
    more = {"real_batch": REAL_BATCH, "real_batched_per_second": many, "real_single_per_second": one, "real_ratio": many / one}
    finish("generation", {**numbers, **more}, LIMITS)


if __name__ == "__main__":
    main()
