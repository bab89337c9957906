"""`titer study qi2024`: seeds in turn, claims over them, the report; and what it would cost. L6."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from titer.core.claims import SEEDS_FOR_A_VERDICT
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.methods.sft import SFT
from titer.recipes import huang2024, qi2024
from titer.recipes.huang2024 import SELECTION_SEED
from titer.recipes.qi2024 import Scale
from titer.report.html import write_report
from titer.studies.claims import settled
from titer.studies.huang2024 import making
from titer.studies.qi2024.claims import claims
from titer.studies.qi2024.evidence import Evidence
from titer.studies.qi2024.levels import measured
from titer.studies.qi2024.report import compose
from titer.workbench import Reporter, Workbench


def run_qi(store: Store, reporter: Reporter, scale: Scale, seeds: Sequence[int], command: str) -> tuple[Path, str]:
    """Run, or finish, the study under the store's root: its page and the answer. Errors: the seed its sizes were set on."""
    if SELECTION_SEED in seeds:
        raise TiterError(f"the sizes were set on seed {SELECTION_SEED}, so no verdict may use it", next_step="ask for fewer seeds.")
    with store.lock(store.root / f"qi2024-{scale.name}.lock"):
        bench = Workbench(store, reporter, scale.save_every)
        making.bases(bench, scale.base, seeds)
        evidence = [Evidence(seed, scale, measured(bench, scale, seed)) for seed in seeds]
        if len(seeds) < SEEDS_FOR_A_VERDICT:
            reporter.tell("fewer than three seeds: verdicts are provisional")
        report = compose(evidence, settled(claims(scale), evidence), scale, command)
        reporter.tell("drawing the report")
        return write_report(report, store.root / f"qi2024-{scale.name}"), report.answer


def plan(store: Store, scale: Scale, seeds: Sequence[int]) -> pd.DataFrame:
    """seed, model, steps, batch, stands: every stage of the study, without running one."""
    rows = []
    for seed in seeds:
        world = huang2024.world_of(scale.base, seed)
        base = huang2024.pretrain(scale.base, seed)
        aligned = huang2024.align(scale.base, world, SFT(), "aligned")
        keys = [base.key("", {})]
        keys.append(aligned.key(keys[0], {}))
        stages = {name: qi2024.stage(scale, world, one, name) for name, one in qi2024.tunings(scale).items()}
        keys += [stage.key(keys[1], {}) for stage in stages.values()]
        for (name, stage), key in zip({"base": base, "aligned": aligned, **stages}.items(), keys, strict=True):
            row = {"seed": seed, "model": name, "steps": stage.steps, "batch": stage.batch, "stands": store.has("stages", key)}
            rows.append(row)
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> str:
    """The plan in words, a line a stage."""
    return "\n".join(
        f"seed {r.seed}  {r.model:32} {r.steps:4} steps of {r.batch:3}  {'stands' if r.stands else 'to run'}" for r in table.itertuples()
    )
