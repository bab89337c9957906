"""Runs a study or finishes an interrupted one: makes and measures the models of all seeds, settles claims, writes the report. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pandas as pd

from titer.core.claims import SEEDS_FOR_A_VERDICT, Claim
from titer.core.config import environment
from titer.core.errors import TiterError, unknown
from titer.core.parallel import Places
from titer.core.ray_cluster import places
from titer.core.run import Store, slug
from titer.core.stats import wilson
from titer.pipeline import Pipeline, Reporter, attempts_key
from titer.report.html import Report, Tile, write_report
from titer.report.places import report_folder
from titer.studies.engine.claims import settled
from titer.studies.engine.declare import Headline, Page, Study
from titer.studies.engine.found import Found
from titer.studies.engine.lab import Lab, form
from titer.studies.engine.schedule import Schedule
from titer.studies.request import StudyRequest

NOTHING = "The base model did not learn its task, so no claim is drawn."


def opened(order: StudyRequest) -> tuple[Study, Any]:
    """Returns the study and its scale. Errors: an unknown study or scale; a study that has no form for real models."""
    study = form(order.name, order.given)
    scale = order.scale or next(iter(study.SCALES))
    if scale not in study.SCALES:
        unknown("scale", scale, study.SCALES)
    return study, study.SCALES[scale]


def worlds_of(order: StudyRequest, study: Study, scale: Any) -> Sequence[int]:
    """Returns the seeds that the user named or, for a number n, the first n seeds on which no size was chosen."""
    if not isinstance(order.seeds, int):
        return order.seeds
    return list(islice((seed for seed in count() if seed not in study.unused(scale)), order.seeds))


def labs_of(order: StudyRequest, study: Study, scale: Any, pipeline: Pipeline, plan: bool = False) -> list[Lab]:
    """Returns one lab for each seed and base; for a real model, a single lab. Errors: an unknown part, group of parts or table."""
    units = [(0, 0)] if order.given else [(seed, base) for seed in worlds_of(order, study, scale) for base in range(order.bases)]
    return _at_work(order, study, scale, pipeline, units, plan)


def chooser_of(order: StudyRequest, study: Study, scale: Any, pipeline: Pipeline, plan: bool = False) -> list[Lab]:
    """Returns the lab of the seed on which settings are chosen for the others, in a list; empty if the study chooses none."""
    chooses = type(study).choose is not Study.choose and order.given is None
    return _at_work(order, study, scale, pipeline, [(study.CHOSEN_ON[0], 0)] if chooses else [], plan)


def _at_work(order: StudyRequest, study: Study, scale: Any, pipeline: Pipeline, units: Sequence[tuple[int, int]], plan: bool) -> list[Lab]:
    labs: list[Lab] = []
    for seed, base in units:
        made = Lab(
            pipeline, study, order.stem, scale, seed, order.given, order.keep_weights, base, 1 if order.given else order.bases, plan=plan
        )
        made.parts = labs[0].parts if labs else asked_for(made, order.part, order.parts)
        labs.append(made)
    return labs


def run_study(
    study: Study, order: StudyRequest, scale: Any, store: Store, reporter: Reporter, command: str, place: str = ""
) -> tuple[Path, str]:
    """Runs a study; returns the page's path and its answer. `scale` need not be one of the study's. `place`: the folder for the page.

    Errors: those of `labs_of`; a seed on which the study's sizes were chosen.
    """
    worlds = worlds_of(order, study, scale)
    if used := set(study.unused(scale)) & set(worlds):
        raise TiterError(f"the sizes were set on seed {min(used)}, so no verdict may use it", next_step="name other seeds.")
    pipeline = Pipeline(store, reporter, scale.save_every)
    chooser, labs = chooser_of(order, study, scale, pipeline), labs_of(order, study, scale, pipeline)
    folder = store.root / place if place else place_of(labs[0], store)
    with store.lock(folder.with_suffix(".lock")):
        found, where = gathered(labs, order.name, chooser, places(order.on, order.piece_cpus, order.piece_gpus, order.piece_memory))
        claims = settled(study.claims(scale), found, study.SOURCE)
        if claims and len(worlds) < SEEDS_FOR_A_VERDICT:
            reporter.tell("fewer than three worlds: verdicts are provisional")
        report = composed(paged(study, found, scale, claims), order.stem, scale, found, claims, command, store, where)
        reporter.tell("drawing the report")
        return write_report(report, folder), report.answer


def paged(study: Study, found: Sequence[Found], scale: Any, claims: Sequence[Claim]) -> Page:
    """Returns the study's page, made from the bases that learned their task; if none did, a page that says so.

    The notes name each base that did not, and each that is shown though claims leave it out."""
    whole = [one for one in found if not one.ended]
    page = study.concluded(study.page(whole, scale), claims) if whole else Page(NOTHING, study.__doc__ or "")
    ended = [f"{one.unit.capitalize()}: nothing was trained on it: {one.ended}." for one in found if one.ended]
    left = "Claims about such a model leave this base out; the answer, the tables and the charts may count it"
    partly = [f"{fault[0].upper()}{fault[1:]}. {left}." for one in whole if (fault := one.fault(()))]
    return replace(page, notes=[*ended, *partly, *page.notes])


def place_of(lab: Lab, store: Store) -> Path:
    """Returns the folder for the report, named by study and scale; for a real model, each question has a folder of its own."""
    if lab.given is None:
        return store.root / f"{lab.name}-{lab.scale.name}"
    question = {
        "model": lab.given.base.key,
        "scale": lab.scale,
        "stages": {name: lab.key(name) for name in lab.nodes},
        "sets": {one.name: attempts_key(one.attempts) for one in lab.questions},
    }
    return report_folder(store.root, f"{lab.name}-{slug(lab.given.base.name)}-{lab.scale.name}", question)


def asked_for(lab: Lab, part: str, only: Sequence[str]) -> tuple[str, ...]:
    """Returns the parts that the user named, or else those of the group `part`. In a study without parts: the named tables; () is all."""
    parts, groups = lab.study.PARTS, {"all": tuple(lab.study.PARTS), **lab.study.GROUPS}
    if part not in groups:
        unknown("part of the study", part, groups)
    known = [*parts] or [*lab.declared, "rates"]
    for name in only:
        if name not in known:
            unknown("part" if parts else "table", name, known)
    return tuple(only) or groups[part]


def gathered(
    labs: Sequence[Lab], place: str, chooser: Sequence[Lab] = (), workers: Places | None = None
) -> tuple[list[Found], dict[str, str]]:
    """Makes and measures all models; returns every base's results, and a description of where they were made.

    Models that do not depend on a choice are made for all seeds at once, together with those of the seed on which the study chooses. The
    rest follow after the choice. Errors: the choosing seed fails a first need; the error of a piece, raised when the others are made.
    """
    with Schedule([*chooser, *labs], place, workers) as work:
        where = {"workers": work.workers.told}
        for lab in work.labs:
            work.want(lab, lab.names)
        for one in chooser:
            work.until([one])
            if one.ended:
                raise TiterError(f"seed {one.seed}, on which sizes are chosen: {one.ended}", next_step="train it longer.", status=1)
            work.further([one])
            chosen = one.study.choose(one)
            for lab in labs:
                lab.chosen = chosen
        work.further(labs)
    if work.lost:
        where["begun again"] = f"{work.lost} {'piece' if work.lost == 1 else 'pieces'}, whose process or node went away"
    return [lab.found() for lab in labs], where


def composed(
    page: Page,
    name: str,
    scale: Any,
    found: Sequence[Found],
    claims: Sequence[Claim],
    command: str,
    store: Store,
    where: Mapping[str, str],
) -> Report:
    """Builds the report from the study's page and the results of all bases. `where`: a description of where the models were made."""
    names = dict.fromkeys(table for one in found for table in one.tables)
    whole = {table: pd.concat([one.tables[table] for one in found if table in one.tables], ignore_index=True) for table in names}
    results = page.results
    if not isinstance(results, pd.DataFrame):
        results = pd.concat([whole[table].assign(table=table) for table in results or whole if table in whole], ignore_index=True)
    samples = pd.concat([part for one in found for part in (one.verdicts, one.edited)], ignore_index=True)
    shown = set(page.shown or samples.model)
    keys = {f"{model}, {one.unit}": key for one in found for model, key in one.keys.items() if model in shown}
    return Report(
        title=page.title or f"{name}, scale {scale.name}, {_units(found)}",
        answer=page.answer,
        about=" ".join(page.about.split()),
        tiles=[
            *page.tiles,
            *(_tile(one, mine) for one in page.headlines if (mine := [base for base in found if base.judged(one.model, one.asked)])),
        ],
        claims=claims,
        figures=page.figures,
        tables=page.tables,
        results=results,
        samples=samples[samples.model.isin(shown)],
        commands=[command],
        notes=[
            *(f"{one.unit.capitalize()}: {model} was stopped: {why}." for one in found for model, why in one.stopped.items()),
            *page.notes,
        ],
        provenance={
            "seeds": ", ".join(str(seed) for seed in dict.fromkeys(one.seed for one in found)),
            "scale": scale.model_dump_json(),
            **page.provenance,
            **{f"model {model}": key for model, key in keys.items()},
            **{f"weights {model}": sha for model, key in keys.items() if (sha := store.weights(key))},
            **environment(),
            **where,
            **_makers(found, store),
        },
    )


def _makers(found: Sequence[Found], store: Store) -> dict[str, str]:
    """Returns a mapping from processor and threads to the bases with a model made so; the number of threads decides its last bits."""
    made: dict[str, dict[str, None]] = {}
    for one in found:
        for maker in filter(None, map(store.maker, one.keys.values())):
            made.setdefault(f"made by {maker}", {})[one.unit] = None
    return {maker: "; ".join(units) for maker, units in made.items()}


def _units(found: Sequence[Found]) -> str:
    """Returns the number of seeds and bases in words."""
    seeds, bases = len({one.seed for one in found}), len(found)
    told = f"{seeds} seed{'s' if seeds > 1 else ''}"
    return told if bases == seeds else f"{told}, {bases} bases"


def _tile(one: Headline, found: Sequence[Found]) -> Tile:
    def mean(model: str) -> float:
        return sum(seed.rate(model, one.asked, one.outcome) for seed in found) / len(found)

    rates = [seed.rate(one.model, one.asked, one.outcome) for seed in found]
    beside = f"; {one.before}: {mean(one.before):.0%}" if one.before else ""
    if len(found) == 1:
        _, low, high = wilson(*found[0].count(one.model, one.asked, one.outcome))
        return Tile(one.label, f"{mean(one.model):.1%}", f"[{low:.1%}, {high:.1%}]{beside}")
    units = "bases" if any(seed.base for seed in found) else "seeds"
    return Tile(one.label, f"{mean(one.model):.1%}", f"{len(found)} {units}: {min(rates):.1%} to {max(rates):.1%}{beside}")
