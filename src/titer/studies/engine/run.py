"""Run a study, or finish it: bases of all seeds, what depends on them, claims over seeds, the report; and what it would cost. L7."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from titer.core.claims import SEEDS_FOR_A_VERDICT, Claim
from titer.core.config import environment
from titer.core.errors import TiterError, unknown
from titer.core.parallel import Silent, parallel
from titer.core.plugins import plugin
from titer.core.run import Store
from titer.report.html import Report, Tile, write_report
from titer.studies.engine.claims import settled
from titer.studies.engine.declare import Headline, Page, Study
from titer.studies.engine.found import Found
from titer.studies.engine.lab import Lab, faults
from titer.workbench import Reporter, Workbench


@dataclass(frozen=True)
class Order:
    """A study as its user words it: its name or its file, a scale, the seeds, the tables to measure (none: all)."""

    study: str
    scale: str = ""
    seeds: Sequence[int] = field(default_factory=lambda: range(3))
    only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.study).stem

    def opened(self) -> tuple[Study, Any]:
        """The study and its scale. Errors: an unknown study or scale, a seed on which its sizes were chosen."""
        study = plugin("studies", self.study, Study)()  # type: ignore[type-abstract]
        scale = self.scale or next(iter(study.SCALES))
        if scale not in study.SCALES:
            unknown("scale", scale, study.SCALES)
        return study, study.SCALES[scale]


def run(order: Order, store: Store, reporter: Reporter, command: str) -> tuple[Path, str]:
    """The study's page and its answer. Errors: as `Order.opened`, an unknown table in `only`."""
    study, scale = order.opened()
    return run_study(study, order, scale, store, reporter, command)


def run_study(study: Study, order: Order, scale: Any, store: Store, reporter: Reporter, command: str) -> tuple[Path, str]:
    """As `run`, at a scale that need not have a name."""
    if used := set(study.CHOSEN_ON) & set(order.seeds):
        raise TiterError(f"the sizes were set on seed {min(used)}, so no verdict may use it", next_step="ask for fewer seeds.")
    folder = store.root / f"{order.name}-{scale.name}"
    with store.lock(folder.with_suffix(".lock")):
        bench = Workbench(store, reporter, scale.save_every)
        labs = [Lab(bench, study, order.name, scale, seed) for seed in order.seeds]
        only = chosen(labs[0], order.only)
        found = gathered(labs, order.study, only)
        if len(labs) < SEEDS_FOR_A_VERDICT:
            reporter.tell("fewer than three seeds: verdicts are provisional")
        claims = settled(study.claims(scale), found, study.SOURCE)
        report = composed(study.page(found, scale), order.name, scale, found, claims, command)
        reporter.tell("drawing the report")
        return write_report(report, folder), report.answer


def chosen(lab: Lab, only: Sequence[str]) -> tuple[str, ...]:
    """The measures that `--only` names; all for none. Errors: an unknown one."""
    for name in only:
        if name not in (*lab.measures, "rates"):
            unknown("table", name, [*lab.measures, "rates"])
    return tuple(only) or tuple(lab.measures)


def gathered(labs: Sequence[Lab], place: str, only: Collection[str]) -> list[Found]:
    """What every seed says, its models made generation by generation; a seed that fails a first need is not trained further."""
    names = {lab.seed: list(lab.nodes) for lab in labs}
    for generation in range(1 + max(lab.depth(name) for lab in labs for name in lab.nodes)):
        pieces = [
            (lab.bench.store.root, place, lab.scale, lab.seed, name, tuple(only))
            for lab in labs
            for name in names[lab.seed]
            if lab.depth(name) == generation and not lab.stands(name)
        ]
        parallel(_piece, pieces, labs[0].bench.reporter, f"{len(pieces)} models of {len(labs)} seeds")
        for lab in labs:
            names[lab.seed] = _going_on(lab, names[lab.seed], generation)
    return [lab.found(only, names[lab.seed]) for lab in labs]


def _going_on(lab: Lab, names: list[str], generation: int) -> list[str]:
    """The models that are still worth making: those up to this generation alone where a first need fails."""
    here = [name for name in names if lab.depth(name) <= generation]
    first = [need for need in lab.study.needs(lab.scale) if need.first and need.model in here and lab.depth(need.model) == generation]
    for need in first:
        rates = lab.rates(lab.verdicts(need.model))
        if told := faults(Found(lab.seed, lab.scale, {"rates": rates}), [need]):
            lab.bench.reporter.tell(f"seed {lab.seed}: {told[need.model]}, so nothing more is trained on it")
            return here
    return names


def _piece(root: Path, place: str, scale: Any, seed: int, name: str, only: tuple[str, ...]) -> None:
    silent = Silent()
    study = plugin("studies", place, Study)()  # type: ignore[type-abstract]
    Lab(Workbench(Store(root, silent.tell), silent, scale.save_every), study, Path(place).stem, scale, seed).piece(name, only)


def composed(page: Page, name: str, scale: Any, found: Sequence[Found], claims: Sequence[Claim], command: str) -> Report:
    """The report's content from all seeds."""
    names = dict.fromkeys(table for one in found for table in one.tables)
    whole = {table: pd.concat([one.tables[table] for one in found if table in one.tables], ignore_index=True) for table in names}
    results = [whole[table].assign(table=table) for table in page.results or whole if table in whole]
    return Report(
        title=f"{name}, scale {scale.name}, {len(found)} seed{'s' if len(found) > 1 else ''}",
        answer=page.answer,
        about=page.about,
        tiles=[_tile(one, found) for one in page.headlines],
        claims=claims,
        figures=page.figures,
        tables=page.tables,
        results=pd.concat(results, ignore_index=True),
        samples=pd.concat([one.verdicts for one in found], ignore_index=True),
        commands=[command],
        notes=list(page.notes),
        provenance={
            "seeds": ", ".join(str(one.seed) for one in found),
            "scale": scale.model_dump_json(),
            **{f"model {model}, seed {one.seed}": key for one in found for model, key in one.keys.items()},
            **environment(),
        },
    )


def _tile(one: Headline, found: Sequence[Found]) -> Tile:
    rates = [seed.rate(one.model, one.asked, one.outcome) for seed in found]
    return Tile(one.label, f"{sum(rates) / len(rates):.1%}", f"seeds {min(rates):.0%} to {max(rates):.0%}")
