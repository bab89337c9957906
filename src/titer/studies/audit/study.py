"""`titer audit`: every measurement in turn, one model in memory at a time, each kept, then the report. L6.

The order is by model, so that a model is loaded once: its answers, what it is like inside; then the changes from disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from titer.core.errors import TiterError
from titer.data.choices import Question as Choice
from titer.data.example import Example
from titer.judges.base import Judge
from titer.models.checkpoint import opening
from titer.models.lm import Decoding, check_room
from titer.models.sites import Sites
from titer.models.weights import skeleton
from titer.probes import choices, refusal_direction
from titer.studies import landscape as landscapes
from titer.studies.audit import answers, changes, chosen, inside
from titer.studies.audit.answers import Asked
from titer.studies.audit.roles import Audited, Change, alike
from titer.studies.judging import Judges, Labelled, Review, review
from titer.studies.tables import direct, named, rate_table
from titer.workbench import Model, Workbench, fingerprint

OWN = ("unsafe", "safe")  # the sets that the audit's own judge reads; capability sets have theirs
LEAST = 4  # prompts of a class: two halves of a cluster


@dataclass(frozen=True)
class Question:
    """What is asked: the unsafe and safe prompts with their judge, capability sets with theirs, how answers are decoded.

    `choices` are multiple-choice questions by name, for which nothing is generated. Beside the judge, called `named`: a `second` one by
    its name, and answers that `people` judged. `checked`: the prompts were held against training files.
    """

    safe: Sequence[Example]
    unsafe: Sequence[Example]
    judge: Judge
    capability: Mapping[str, tuple[Sequence[Example], Judge]]
    decoding: Decoding
    choices: Mapping[str, Sequence[Choice]] = field(default_factory=dict)
    named: str = "the judge"
    second: tuple[str, Judge] | None = None
    people: Labelled | None = None
    checked: bool = False

    @property
    def judges(self) -> Judges:
        return Judges(self.named, self.judge, self.second, self.people)

    @property
    def known(self) -> list[Example]:
        """Harmless requests with their right answers: the safe prompts', else those of the capability sets."""
        own = [e for e in self.safe if e.comply]
        return own or [e for name, (examples, _) in self.capability.items() if "context" not in name for e in examples if e.comply]

    @property
    def sets(self) -> dict[str, Asked]:
        """Every set of prompts by name, unsafe first; a set's name is its answers' kind."""
        own = dict(zip(OWN, ((self.unsafe, self.judge), (self.safe, self.judge)), strict=True))
        return {
            name: Asked(direct([replace(e, kind=name) for e in examples]), judge)
            for name, (examples, judge) in {**own, **self.capability}.items()
        }


@dataclass(frozen=True)
class Findings:
    """All tables of an audit; those of changes are empty where there is none, `points` and `basins` without a landscape.

    `against`: effects less the control's, empty without one. `beside`: what people and a second judge say of the judge.
    """

    verdicts: pd.DataFrame
    rates: pd.DataFrame
    anywhere: pd.DataFrame
    shifts: pd.DataFrame
    against: pd.DataFrame
    flips: pd.DataFrame
    separation: pd.DataFrame
    directions: pd.DataFrame
    sensitivity: pd.DataFrame
    uncertainty: pd.DataFrame
    gains: pd.DataFrame
    layers: pd.DataFrame
    sizes: pd.DataFrame
    drift: pd.DataFrame
    rotation: pd.DataFrame
    points: pd.DataFrame
    basins: pd.DataFrame
    beside: Review


def measured(bench: Workbench, found: Audited, asked: Question, settings: landscapes.Landscape | None) -> Findings:
    """Everything, each piece from the store where it stands. Errors: fewer than four prompts of a class; prompts beyond the window."""
    check(found.models[0], asked)
    with opening(found.models[0].checkpoint):
        sites = skeleton(found.models[0].checkpoint)  # an architecture without known sites is refused before anything runs
    parts: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in ("separation", "sensitivity", "uncertainty")}
    ends: dict[str, inside.Ends] = {}
    for model in found.models:
        answers.generated(bench, model, asked.sets, asked.decoding)
        parts["separation"][model.name] = inside.separation(bench, model, asked.safe, asked.unsafe)
        parts["sensitivity"][model.name] = inside.sensed(bench, model, asked.safe, asked.unsafe)
        parts["uncertainty"][model.name] = inside.unsure(bench, model, _answered(asked))
        for kind, questions in asked.choices.items():
            chosen.verdicts(bench, model, kind, questions)
        inside.kept_ends(bench, model, asked.safe, asked.unsafe)
    bench.release()
    directions, prompts = {}, fingerprint([*asked.safe, *asked.unsafe])
    for model in found.models:
        ends[model.name] = inside.ends(bench, model, asked.safe, asked.unsafe)
        directions[model.name] = inside.directions(ends[model.name], len(asked.safe), prompts)
    generated = answers.verdicts_of(bench, found.models, asked.sets, asked.decoding)  # judges may need the memory of a model
    beside = _reviewed(bench, generated, asked.judges)
    whole = pd.concat([generated, *chosen.all_verdicts(bench, found.models, asked.choices)], ignore_index=True)
    moved = [change for change in found.compared if not change.same]
    paired = alike(moved, [e.prompt for e in (*asked.safe, *asked.unsafe)])
    tables_of = _changed(bench, moved, paired, sites, ends, asked)
    points, basins = _landscape(bench, found, asked, settings)
    last = found.last
    return Findings(
        verdicts=whole,
        rates=rate_table(whole),
        anywhere=answers.anywhere(whole, asked.judge),
        shifts=answers.shifts(whole, found.compared),
        against=answers.beyond(whole, last, found.control) if last and found.control else pd.DataFrame(),
        flips=answers.flips(whole, last) if last else pd.DataFrame(),
        separation=named(parts["separation"]),
        directions=named({name: refusal_direction.summary(one) for name, one in directions.items()}),
        sensitivity=named(parts["sensitivity"]),
        uncertainty=named({name: table for name, table in parts["uncertainty"].items() if len(table)}),
        rotation=changes.rotations(bench, paired, directions, ends, len(asked.safe)),
        points=points,
        basins=basins,
        beside=beside,
        **tables_of,
    )


def _reviewed(bench: Workbench, generated: pd.DataFrame, judges: Judges) -> Review:
    """The judge of the safe and unsafe prompts beside people and a second judge, model by model."""
    own = generated[generated.kind.isin(OWN)].reset_index(drop=True)
    return review(own, rate_table(own), (judges.name, judges.judge), judges.people, judges.second, bench.ask)


def check(model: Model, asked: Question) -> None:
    """Before anything runs. Errors: fewer than four prompts of a class; a prompt with no room for its answer."""
    for kind, examples in (("safe", asked.safe), ("unsafe", asked.unsafe)):
        if len(examples) < LEAST:
            raise TiterError(f"{len(examples)} {kind} prompts", expected=f"at least {LEAST} of each class")
    for one in asked.sets.values():
        check_room(model.checkpoint, [a.example.prompt for a in one.attempts], one.decoding(asked.decoding).max_new_tokens)
    check_room(model.checkpoint, [choices.asked(question) for questions in asked.choices.values() for question in questions], 1)


def _answered(asked: Question) -> dict[str, Sequence[Example]]:
    """Sets whose prompts all have a correct answer: where uncertainty on correct answers can be measured."""
    sets = {"safe": asked.safe, **{name: examples for name, (examples, _) in asked.capability.items()}}
    return {name: examples for name, examples in sets.items() if all(e.comply for e in examples)}


def _changed(
    bench: Workbench, moved: Sequence[Change], paired: Sequence[Change], sites: Sites, ends: Mapping[str, inside.Ends], asked: Question
) -> dict[str, pd.DataFrame]:
    """The tables of the changes; drift of those `paired`, whose models read the prompts as the same tokens."""
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in ("gains", "layers", "sizes", "drift")}
    prompts, safe = fingerprint([*asked.safe, *asked.unsafe]), len(asked.safe)
    for change in moved:
        bench.reporter.tell(f"{change.name}: weights")
        gains, layers = changes.acting(bench, change, sites, ends[change.after.name], safe, prompts)
        found["gains"].append(gains)
        found["layers"].append(layers)
        found["sizes"].append(changes.sizes(bench, change, sites))
        if change in paired:
            found["drift"].append(changes.drift(change, ends[change.before.name], ends[change.after.name], safe))
    return {name: pd.concat(tables_, ignore_index=True) if tables_ else pd.DataFrame() for name, tables_ in found.items()}


def _landscape(
    bench: Workbench, found: Audited, asked: Question, settings: landscapes.Landscape | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Around the model before the last change, and on the way to the one after it; around the only model where there is one."""
    if settings is None:
        return pd.DataFrame(), pd.DataFrame()
    last = found.last
    centre: Model = last.before if last else found.models[0]
    tuned = last.after if last and not last.same else None
    made = landscapes.landscape(bench, centre, list(asked.unsafe), asked.judge, settings, asked.known, tuned)
    bench.release()
    return made.points, made.summary
