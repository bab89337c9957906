"""`titer study jain2024`: seeds in turn, then claims over them, then the report. L7."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from titer.core.claims import SEEDS_FOR_A_VERDICT, Claim
from titer.core.errors import unknown
from titer.core.run import Store
from titer.recipes.jain2024 import Scale
from titer.report.html import write_report
from titer.studies.claims import settled
from titer.studies.jain2024.claims_behaviour import behaviour
from titer.studies.jain2024.claims_clusters import clusters
from titer.studies.jain2024.claims_mechanism import mechanism
from titer.studies.jain2024.gather import PARTS, gather
from titer.studies.jain2024.report import compose
from titer.workbench import Reporter, Workbench


def parts_of(only: str) -> tuple[str, ...]:
    """The parts that `--only fig3,soft` names; all for "". Errors: an unknown part."""
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    for name in chosen:
        if name not in PARTS:
            unknown("part", name, PARTS)
    return tuple(chosen) or tuple(PARTS)


def run_jain(
    store: Store, reporter: Reporter, scale: Scale, seeds: Sequence[int], only: Collection[str], command: str
) -> tuple[Path, str, list[Claim]]:
    """Run, or finish, the study under the store's root; returns the report's path, the answer and the claims."""
    folder = store.root / f"jain2024-{scale.name}"
    with store.lock(store.root / f"jain2024-{scale.name}.lock"):
        bench = Workbench(store, reporter, scale.save_every)
        found = {seed: gather(bench, scale, seed, only) for seed in seeds}
        few = len(seeds) < SEEDS_FOR_A_VERDICT
        evidence = [replace(e, over_inputs=few) for e, _ in found.values()]
        measured = [e for e in evidence if len(e.tables) > 1]
        claims = settled([*behaviour(), *clusters(), *mechanism()], measured) if measured else []
        report = compose(evidence, claims, {seed: made for seed, (_, made) in found.items()}, scale, command)
        reporter.tell("drawing the report")
        return write_report(report, folder), report.answer, claims
