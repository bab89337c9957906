"""What a run of the study would cost, before it runs: alignments and attacks by part, steps, operations. L7."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from titer.recipes.huang2024 import Scale, world_of
from titer.studies.huang2024.defences import CORE, FAMILY
from titer.studies.huang2024.parts import SWEPT, TASKS
from titer.studies.pricing import forward_flop, used_width

TRAINED = 3.0  # forward passes' worth of a trained request: forward 1, backward 2
PERTURBED = 5.0  # Vaccine: a forward pass and a backward to activations more


def cost(scale: Scale, seeds: int, parts: Collection[str]) -> pd.DataFrame:
    """part, alignments, attacks, steps, tflop: of all seeds (the choosing seed beside them). Attacks shared by parts count once each part."""
    world = world_of(scale, 0)
    width = used_width(world)
    each = forward_flop(scale.base.architecture, len(world.words), width) * width
    align, attack = scale.align_steps * scale.align_batch, max(scale.keep) * scale.budget.batch
    rows = [_row("base models", seeds + 1, 0, (seeds + 1) * scale.base.pretrain_steps, scale.base.pretrain_batch, each)]
    choosing = {"choice of rho": (1 + len(scale.rhos), 2 * (1 + len(scale.rhos)))}
    for part, (alignments, attacks) in (choosing | {p: COUNTS[p](scale) for p in parts if p in COUNTS}).items():
        times = 1 if part == "choice of rho" else seeds
        trained = times * (alignments * align * PERTURBED / TRAINED + attacks * attack)
        steps = times * (alignments * scale.align_steps + attacks * max(scale.keep))
        rows.append(
            {
                "part": part,
                "alignments": times * alignments,
                "attacks": times * attacks,
                "steps": steps,
                "tflop": TRAINED * trained * each / 1e12,
            }
        )
    return pd.DataFrame(rows)


def _row(part: str, alignments: int, attacks: int, steps: int, batch: int, each: float) -> dict[str, object]:
    return {"part": part, "alignments": alignments, "attacks": attacks, "steps": steps, "tflop": TRAINED * steps * batch * each / 1e12}


def _curves(s: Scale) -> tuple[int, int]:
    again = (s.align_seeds - 1) * (len(CORE) - 2)
    return 4 + again, (len(CORE) - 1) * len(s.rates) * len(s.ratios) + again * 3


COUNTS = {
    "curves": _curves,
    "table1": lambda s: (0, len(CORE) * len(s.table_ratios)),
    "table2": lambda s: (0, 5 * len(s.table_examples)),
    "table6": lambda s: (len(s.rhos) - 1, len(SWEPT) * len(s.rhos)),
    "table7": lambda s: (len(s.variances), len(SWEPT) * len(s.variances)),
    "table3": lambda s: (3 * len(s.sizes), 4 * len(s.sizes)),
    "table4": lambda s: (0, 4 * len(TASKS)),
    "table8": lambda s: (2, 4 * len(SWEPT)),
    "table9": lambda s: (0, (1 + len(s.ewc)) * len(SWEPT)),
    "table10": lambda s: (len(s.taus), len(SWEPT) * len(s.taus)),
    "family": lambda s: (3, 3 * (1 + len(FAMILY))),
    "search": lambda s: (0, (s.trials + 1) * (len(CORE) - 1)),
}


def summary(table: pd.DataFrame, rate: float | None) -> str:
    """The plan in words; `rate` in FLOP/s prices it."""
    lines = [
        f"{r.part:16} {r.alignments:4} alignments {r.attacks:5} attacks {r.steps:8} steps {r.tflop:10.2f} TFLOP" for r in table.itertuples()
    ]
    flop = float(table.tflop.sum()) * 1e12
    price = f"; at {rate:.1e} FLOP/s about {flop / rate / 3600:.2f} hours of training" if rate else ""
    return "\n".join([*lines, f"in all {flop:.2e} FLOP of training, and about as long for judging at nano{price}"])
