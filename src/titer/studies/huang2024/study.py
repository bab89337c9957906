"""`titer study huang2024`: rho and worst cases on the selection seed, then seeds in turn, claims over them, the report. L7."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from titer.core.claims import SEEDS_FOR_A_VERDICT, Claim
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.core.search import must_be_installed
from titer.recipes.huang2024 import SELECTION_SEED, Scale
from titer.report.html import write_report
from titer.studies.claims import settled
from titer.studies.huang2024 import making
from titer.studies.huang2024.claims import claims
from titer.studies.huang2024.gather import gather
from titer.studies.huang2024.report import compose
from titer.studies.huang2024.selection import selection
from titer.studies.huang2024.subject import Subject
from titer.workbench import Reporter, Workbench


@dataclass(frozen=True)
class Finished:
    """What a study leaves: its page, the answer in a sentence, the claims."""

    page: Path
    answer: str
    claims: list[Claim]


def run_huang(store: Store, reporter: Reporter, scale: Scale, seeds: Sequence[int], parts: Collection[str], command: str) -> Finished:
    """Run, or finish, the study under the store's root. Errors: the selection seed among the study's."""
    if SELECTION_SEED in seeds:
        raise TiterError(f"seed {SELECTION_SEED} chooses rho, so no verdict may use it", next_step="ask for fewer seeds.")
    if "search" in parts:
        must_be_installed()
    folder = store.root / f"huang2024-{scale.name}"
    with store.lock(store.root / f"huang2024-{scale.name}.lock"):
        bench = Workbench(store, reporter, scale.save_every)
        making.bases(bench, scale, [SELECTION_SEED, *seeds])
        chosen = selection(Subject(bench, scale, SELECTION_SEED), parts)
        found = {seed: gather(bench, scale, seed, parts, chosen) for seed in seeds}
        evidence = [e for e, _ in found.values()]
        measured = [e for e in evidence if len(e.attacks)]
        told = settled(claims(), evidence) if measured else []
        if len(seeds) < SEEDS_FOR_A_VERDICT:
            reporter.tell("fewer than three seeds: verdicts are provisional")
        report = compose(evidence, told, {seed: made for seed, (_, made) in found.items()}, scale, chosen, command)
        reporter.tell("drawing the report")
        return Finished(write_report(report, folder), report.answer, told)
