"""Figure 4: the embeddings of alignment data in one plane, before and after the attack, SFT beside Vaccine. L7."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from titer.models.lm import LM
from titer.probes import projection
from titer.studies.huang2024.attack import tuned_by
from titer.studies.huang2024.defences import defence
from titer.studies.huang2024.selection import budget_of
from titer.studies.huang2024.subject import Subject
from titer.workbench import Model, fingerprint

COMPARED = ("sft", "vaccine")
RATIO = 0.05


def picture(s: Subject, rho: float) -> pd.DataFrame:
    """model, kind, input, x, y, share_x, share_y of fresh unsafe requests (refused), all models in one plane."""
    budget = budget_of(s, ratio=RATIO)
    named: dict[str, Model] = {}
    for name in COMPARED:
        one = defence(s, name, rho)
        named[f"{name}, aligned"] = one.aligned(s)
        named[f"{name}, attacked"] = tuned_by(s, one, budget)
    examples = s.fresh()
    inputs = {
        "study": ["huang2024", "picture", projection.VERSION],
        "models": [m.key for m in named.values()],
        "examples": fingerprint(examples),
    }

    def loaded() -> Iterator[tuple[str, LM]]:
        for name, model in named.items():
            yield name, s.bench.lm(model)

    return s.bench.table("tables", inputs, lambda: projection.projection(loaded(), {"unsafe": examples}))
