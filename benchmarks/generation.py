"""Generation: tokens a second in one batch against one prompt at a time, same model, same prompts."""

from __future__ import annotations

import numpy as np
import torch
from _common import LOWER, finish, interleaved, median

from titer.data.vocabulary import STOP
from titer.data.world import WorldSource
from titer.models.lm import LM, Decoding
from titer.recipes.demo import NANO

BATCH, SINGLE, ROUNDS = 256, 3, 5
NEW_TOKENS = 32
LIMITS = {"ratio": (LOWER, 5.0)}


def endless() -> LM:
    """The nano architecture with random weights, its end token's logit held at 0 so that another one leads."""
    lm = NANO.architecture.build(NANO.world.tokenizer(), seed=0)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[STOP] = 0
    return lm


def main() -> None:
    lm = endless()
    source = WorldSource(world=NANO.world, kind="safe", split="test")
    prompts = [example.prompt for example in source.examples(np.arange(BATCH))]
    decoding = Decoding(max_new_tokens=NEW_TOKENS)
    tokens = {"batched": 0, "single": 0}

    def batched() -> None:
        tokens["batched"] = sum(one.tokens for one in lm.generate(prompts, decoding, batch=BATCH))

    def single() -> None:
        tokens["single"] = sum(one.tokens for one in lm.generate(prompts[:SINGLE], decoding, batch=1))

    seconds = interleaved({"batched": batched, "single": single}, ROUNDS)
    rates = {name: tokens[name] / median(seconds[name]) for name in tokens}
    print(f"batch {BATCH}: {rates['batched']:,.0f} tokens a second; one at a time: {rates['single']:,.0f}")
    numbers = {"batch": BATCH, "batched_per_second": rates["batched"], "single_per_second": rates["single"], "tokens": tokens}
    finish("generation", {**numbers, "ratio": rates["batched"] / rates["single"]}, LIMITS)


if __name__ == "__main__":
    main()
