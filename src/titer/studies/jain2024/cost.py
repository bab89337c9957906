"""What a run of the study would cost, before it runs: trainings, tokens, operations, and hours where a rate is known. L7."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from titer.core.run import Store
from titer.recipes.jain2024 import METHODS, Scale, jain_recipe, relearn
from titer.recipes.node import Node
from titer.studies.pricing import forward_flop, used_width
from titer.workbench import plan

PASSES = {"sft": 3.0, "unlearn": 6.0, "dpo": 6.0}  # forward passes' worth a trained request: forward 1, backward 2; pairs twice
MEDIUM = tuple(f"{method} M" for method in METHODS)  # the models that are relearned
RELEARNED = len(MEDIUM)


def cost(scale: Scale, seeds: Sequence[int], store: Store) -> pd.DataFrame:
    """Per model and seed: steps, tokens (of requests, cropped to their used length), TFLOP, and whether it stands."""
    rows = []
    for seed in seeds:
        nodes = jain_recipe(scale, seed)
        world = scale.world.model_copy(update={"seed": seed})
        width = used_width(world)
        each = forward_flop(scale.architecture, len(world.words), width)
        planned = plan(nodes, store)
        for node, (name, key, steps, stands) in zip(nodes, planned, strict=True):
            rows.append({"seed": seed, "model": name, "key": key, "steps": steps, "stands": stands, **_size(node, width, each)})
        again = relearn(scale, world)
        tokens = RELEARNED * again.steps * again.batch * width
        rows.append(
            {
                "seed": seed,
                "model": "relearning, 3 models",
                "key": "",
                "steps": RELEARNED * again.steps,
                "stands": all(store.has("stages", again.key(key, {})) for name, key, *_ in planned if name in MEDIUM),
                "tokens": tokens,
                "tflop": 3 * tokens * each / 1e12,
            }
        )
    return pd.DataFrame(rows)


def _size(node: Node, width: float, each: float) -> dict[str, float]:
    method = type(node.stage.method).__module__.rsplit(".", 1)[-1]
    tokens = node.stage.steps * node.stage.batch * width
    reference = 2 * tokens / node.stage.steps * min(node.stage.steps, pool_batches(node)) if method == "dpo" else 0.0
    return {"tokens": tokens, "tflop": (PASSES.get(method, 3.0) * tokens + reference) * each / 1e12}


def pool_batches(node: Node) -> int:
    """Batches of one pass over the stage's pool; every step's where the stream is endless."""
    pool = next(iter(node.stage.streams.values())).pool
    return node.stage.steps if pool is None else -(-pool // node.stage.batch)


def summary(table: pd.DataFrame, rate: float | None) -> str:
    """The plan in words; `rate` in FLOP/s prices what does not stand yet."""
    lines = [
        f"seed {r.seed}  {r.model:24} {r.steps:7} steps {r.tokens / 1e6:10.1f} M tokens {r.tflop:12.2f} TFLOP  {'stands' if r.stands else 'to run'}"
        for r in table.itertuples()
    ]
    left = table[~table.stands]
    flop = float(left.tflop.sum()) * 1e12
    total = f"to run: {left.tokens.sum() / 1e9:.3f} G tokens, {flop:.2e} FLOP of training; probes and sweeps add about a third at nano, little above"
    price = f"; at {rate:.1e} FLOP/s about {flop / rate / 3600:.2f} hours of training" if rate else ""
    return "\n".join([*lines, total + price])
