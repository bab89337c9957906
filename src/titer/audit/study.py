"""Runs every measurement of `titer audit` in turn and keeps each in the store. One model is in memory at a time. L7.

The order is by model, so that each is loaded once: first its answers, then the probes inside it. Changes between models are measured
afterwards, from disk. What cannot be measured is left out and reported (`lacking.py`); only answers and their verdicts are required.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pandas as pd

from titer.audit import answers, changes, hidden, inside, mechanisms, prints, restoring
from titer.audit.answers import Asked
from titer.audit.lacking import CHANGE, COLUMNS, INTERRUPTED, TURNING, Lacking, shaped
from titer.audit.roles import Audited, Change, alike
from titer.commands import landscape as landscapes
from titer.commands.attacking import Attacked
from titer.commands.context_window import ContextWindow
from titer.commands.decoding import Decoded
from titer.commands.judging import Judges, Labelled, Review, review
from titer.core.errors import TiterError
from titer.data.choices import Question as Choice
from titer.data.example import Example
from titer.judges.base import Judge
from titer.models.lm import Decoding
from titer.models.weights import skeleton
from titer.pipeline import Model, Pipeline, fingerprint
from titer.probes import refusal_direction
from titer.probes.base import enough
from titer.tables import direct, named, rate_table

T = TypeVar("T")
MEASURED = tuple(name for name in COLUMNS if name != "missing")
OWN = ("unsafe", "safe")  # the sets that the audit's own judge judges; each capability set has its own judge


@dataclass(frozen=True)
class Question:
    """What is asked: the unsafe and safe prompts with their judge, capability sets with their judges, how answers are decoded.

    `choices`: multiple-choice questions by name; nothing is generated for them. `named`: the judge's name. `second`: a second judge with
    its name. `people`: answers that people judged. `checked`: the prompts were compared with training files. `attacks`: ask the unsafe
    prompts under these too. `odd`: odd prompts in place of those that `hidden.py` makes. `mechanisms`: run the probes of arXiv 2407.10264
    too. `why`: put parts of the last change back. `decoder`: chooses every answer's tokens.
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
    attacks: Sequence[Attacked] = ()
    mechanisms: bool = False
    why: bool = False
    decoder: Decoded | None = None
    odd: dict[str, list[Example]] | None = None

    @property
    def own(self) -> tuple[str, ...]:
        """Returns the sets that the audit's own judge judges: unsafe prompts, plain and under attack, and safe ones."""
        return ("unsafe", *(one.name for one in self.attacks), "safe")

    @property
    def judges(self) -> Judges:
        return Judges(self.named, self.judge, self.second, self.people)

    def shown(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        return self.decoder.shown(verdicts) if self.decoder else verdicts

    @property
    def known(self) -> list[Example]:
        """Returns harmless requests with right answers: the safe prompts that have one; if none has, those of the capability sets."""
        own = [e for e in self.safe if e.comply]
        return own or [e for name, (examples, _) in self.capability.items() if "context" not in name for e in examples if e.comply]

    @property
    def referenced(self) -> dict[str, list[Example]]:
        """Returns, for each set of harmless requests, those with a right answer, on which uncertainty on correct answers is measured."""
        sets = {"safe": self.safe, **{name: examples for name, (examples, _) in self.capability.items()}}
        return {name: [e for e in examples if e.comply] for name, examples in sets.items()}

    @property
    def sets(self) -> dict[str, Asked]:
        """Returns every set of prompts by name, unsafe first. The set's name is the `kind` of its answers."""
        plain = {"unsafe": (self.unsafe, self.judge), "safe": (self.safe, self.judge), **self.capability}
        by = self.decoder
        sets = {name: Asked(direct([replace(e, kind=name) for e in of]), judge, None, by) for name, (of, judge) in plain.items()}
        attacked = {one.name: Asked(one.known, self.judge, one, by) for one in self.attacks}
        return {"unsafe": sets.pop("unsafe"), **attacked, **sets}


@dataclass(frozen=True)
class Findings:
    """All tables of an audit. A table is empty where its subject is absent: no change, no landscape (`points`, `basins`), no `--mechanisms`
    (`placed`, `shapes`, `null`, `rows`), no control (`against`).

    It is empty too where it could not be measured; `missing` (part, of, reason) then says why. `against`: effects minus the control's.
    `beside`: the judge compared with people and with a second judge.
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
    prints: pd.DataFrame
    back: pd.DataFrame
    restored: pd.DataFrame
    hidden: pd.DataFrame
    points: pd.DataFrame
    basins: pd.DataFrame
    placed: pd.DataFrame
    shapes: pd.DataFrame
    null: pd.DataFrame
    rows: pd.DataFrame
    beside: Review
    missing: pd.DataFrame = field(default_factory=lambda: shaped("missing", pd.DataFrame()))


def measured(pipeline: Pipeline, found: Audited, asked: Question, settings: landscapes.Landscape | None) -> Findings:
    """Measures everything; what the store has is read from it. A part that fails is left out and reported, except for the verdicts.

    Errors: fewer than four prompts of a class; prompts or reference answers beyond the window; answers that cannot be generated or judged.
    """
    check(found.models, asked, settings)
    lacking = Lacking(pipeline.reporter.tell)
    _unlike(found, lacking)
    within, odd = Within(pipeline, asked, lacking), _odd(found, asked, lacking)
    moved = [change for change in found.compared if change.weighed]
    for model in found.models:
        answers.generated(pipeline, model, asked.sets, asked.decoding)
        within.read(model)
        if odd and model in hidden.asked(found):
            with lacking.part(hidden.PART, model.name):
                hidden.kept(pipeline, model, odd)
        if asked.mechanisms:
            within.read_mechanisms(model, [change for change in moved if change.after == model])
    pipeline.release()
    for model in found.models:
        within.turned_to(model)
    # answers are judged once the models are freed, since a judge may need their memory
    generated = answers.verdicts_of(pipeline, found.models, asked.sets, asked.decoding)
    lacking.page_stands = True
    beside = Review((asked.judges.name, ""), None, None, None)
    with lacking.part("second judge, labelled answers", ", ".join(m.name for m in found.models)):
        beside = _reviewed(pipeline, generated, asked.judges)
    whole = pd.concat([generated, *within.picked], ignore_index=True)
    paired = alike(moved, [e.prompt for e in (*asked.safe, *asked.unsafe)])
    parts = {**within.tables, **_changed(pipeline, moved, paired, within), "back": _back(pipeline, found, lacking)}
    if asked.why and found.last and found.last.weighed:
        parts["restored"] = _restored(pipeline, found.last, asked, generated, within)
    if odd:
        with lacking.part(hidden.PART, found.changes[-1].after.name):
            parts["hidden"] = hidden.measured(pipeline, found, asked.safe, asked.unsafe, odd)
    if settings is not None:
        centre, tuned = around(found)
        of = f"{centre.name} and on the way to {tuned.name}" if tuned else centre.name
        if lacking.stopped:
            lacking.left_out("landscape", of, INTERRUPTED)
        else:
            with lacking.part("landscape", of):
                made = landscapes.landscape(pipeline, centre, list(asked.unsafe), asked.judge, settings, asked.known, tuned)
                parts |= {"points": made.points, "basins": made.summary}
    pipeline.release()
    last = found.last
    return Findings(
        verdicts=whole,
        rates=rate_table(whole),
        anywhere=answers.anywhere(whole, asked.judge),
        shifts=answers.shifts(whole, found.compared),
        against=answers.beyond(whole, last, found.control) if last and found.control else pd.DataFrame(),
        flips=answers.flips(whole, last) if last else pd.DataFrame(),
        beside=beside,
        missing=lacking.table,
        **{name: shaped(name, parts.get(name, pd.DataFrame())) for name in MEASURED},
    )


def _unlike(found: Audited, lacking: Lacking) -> None:
    """Report what the architecture and unlike shapes leave out. Errors: a model that cannot be opened, before anything runs."""
    sites = skeleton(found.models[0].checkpoint)
    for kind, part in inside.USES.items():
        if 0 < sites.lacks(kind) < sites.layers:  # a kind that no layer has is reported where it is used
            lacking.left_out(part, ", ".join(m.name for m in found.models), f"{kind} in {sites.lacking[kind]}")
    for change in found.compared:
        if change.apart:
            lacking.left_out("the change of weights, and what moved inside", change.name, change.apart)


def _odd(found: Audited, asked: Question, lacking: Lacking) -> dict[str, list[Example]]:
    """Returns the odd prompts of `hidden.py` by kind; empty with too few benign tunes to compare with."""
    for model in hidden.asked(found)[:1]:
        with lacking.part(hidden.PART, found.changes[-1].after.name):
            return asked.odd if asked.odd is not None else hidden.odd(model, [*asked.safe, *asked.unsafe])
    return {}


def _reviewed(pipeline: Pipeline, generated: pd.DataFrame, judges: Judges) -> Review:
    """Compares the judge of the safe and unsafe prompts with people and with a second judge, model by model."""
    own = generated[generated.kind.isin(OWN)].reset_index(drop=True)
    return review(own, rate_table(own), (judges.name, judges.judge), judges.people, judges.second, pipeline.ask)


def check(models: Sequence[Model], asked: Question, settings: landscapes.Landscape | None = None) -> None:
    """Checks before anything runs. Errors: fewer than four prompts of a class; no room in a context window for an answer, a reference or
    options."""
    enough(asked.safe, asked.unsafe)
    references = dict(asked.referenced)
    if all(e.comply for e in asked.unsafe):  # tau is computed over reference answers where every prompt of a class has one
        references["unsafe"] = list(asked.unsafe)
    encoded = mechanisms.coded(asked.unsafe) if asked.mechanisms else {}
    if "unsafe" in references:
        references |= {kind: [a.example for a in attempts] for kind, attempts in encoded.items()}
    for model in models:
        room = ContextWindow(model)
        for kind, one in asked.sets.items():
            tokens = one.decoding(asked.decoding).max_new_tokens
            less = "give a smaller --max-new-tokens" if tokens > one.judge.ROOM else "leave out that set"
            room.new(kind, one.attempts, tokens, less)
        if settings is not None:
            room.new("unsafe", direct(asked.unsafe[: settings.prompts]), settings.tokens, "leave out --landscape")
        for kind, attempts in encoded.items():
            room.new(kind, attempts, 1, "leave out --mechanisms")
        for kind, examples in references.items():
            room.reference(kind, examples)
        for questions in asked.choices.values():
            room.choices(questions)


class Within:
    """Probes inside each model, one model at a time. A part that fails is missing from its table."""

    def __init__(self, pipeline: Pipeline, asked: Question, lacking: Lacking) -> None:
        self._bench, self._asked, self.lacking = pipeline, asked, lacking
        self.safe, self.prompts = len(asked.safe), fingerprint([*asked.safe, *asked.unsafe])
        self.sets = mechanisms.sets_of(asked.safe, asked.unsafe) if asked.mechanisms else {}
        self.picked: list[pd.DataFrame] = []
        self._kept: set[str] = set()
        self._ends: dict[str, inside.Ends] = {}
        self.directions: dict[str, refusal_direction.RefusalDirections] = {}
        self._found: dict[str, dict[str, pd.DataFrame]] = {
            name: {} for name in ("separation", "sensitivity", "directions", "placed", "shapes")
        }
        self._unsure: list[pd.DataFrame] = []
        self._rows: list[pd.DataFrame] = []

    def read(self, model: Model) -> None:
        """Runs the probes that need the loaded model."""
        pipeline, asked, part, name = self._bench, self._asked, self.lacking.part, model.name
        pipeline.reporter.tell(f"{name}: measuring inside")
        with part("separation inside", name):
            self._found["separation"][name] = inside.separation(pipeline, model, asked.safe, asked.unsafe)
        with part("sensitivity", name):
            encoded = [{kind: self.sets[kind] for kind in mechanisms.CODED}] if self.sets else []
            sensed = [inside.sensed(pipeline, model, sets) for sets in ({"safe": asked.safe, "unsafe": asked.unsafe}, *encoded)]
            self._found["sensitivity"][name] = pd.concat(sensed, ignore_index=True)
        for kind, examples in asked.referenced.items():
            if examples:
                with part(f"uncertainty on correct answers ({kind})", name):
                    self._unsure.append(named({name: inside.unsure(pipeline, model, kind, examples)}))
        for kind, questions in asked.choices.items():
            with part(f"multiple choice ({kind})", name):
                self.picked.append(inside.chosen(pipeline, model, kind, questions))
        with part("activations at the prompts' ends", name):
            inside.kept_ends(pipeline, model, asked.safe, asked.unsafe)
            self._kept.add(name)

    def read_mechanisms(self, model: Model, made: Sequence[Change]) -> None:
        """Runs the probes of `--mechanisms` that need the loaded model. `made`: the changes that lead to this model."""
        pipeline, sets, part, name = self._bench, self.sets, self.lacking.part, model.name
        with part("placement of encoded prompts", name):
            self._found["placed"][name] = mechanisms.placed(pipeline, model, sets)
        with part("shape of the clusters", name):
            self._found["shapes"][name] = mechanisms.shapes(pipeline, model, sets)
        for change in made:
            with part("row space of the change", change.name):
                self._rows.append(mechanisms.rows(pipeline, change, sets).assign(change=change.name))

    def turned_to(self, model: Model) -> None:
        """Computes the model's refusal direction from its kept activations."""
        if model.name not in self._kept:
            return
        with self.lacking.part("refusal direction", model.name):
            self._ends[model.name] = inside.ends(self._bench, model, self._asked.safe, self._asked.unsafe)
            self.directions[model.name] = inside.directions(self._ends[model.name], self.safe, self.prompts)
            self._found["directions"][model.name] = refusal_direction.summary(self.directions[model.name])

    def ends(self, model: Model) -> inside.Ends:
        """Returns the model's kept activations. Errors: they could not be measured."""
        return _had(self._ends, model.name, "activations")

    def rotation(self, change: Change) -> pd.DataFrame:
        """Measures how far the refusal direction turned. Errors: it could not be measured in one of the models."""
        sides = (change.before, change.after)
        found = [_had(self.directions, m.name, "refusal direction") for m in sides]
        return changes.rotation(self._bench, change, found, [self.ends(m) for m in sides], self.safe)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns the tables of these probes, by their names in `Findings`."""
        more = {"uncertainty": self._unsure, "rows": self._rows}
        return {**{name: named(one) for name, one in self._found.items()}, **{name: _together(tables) for name, tables in more.items()}}


def _together(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _had(found: Mapping[str, T], name: str, what: str) -> T:
    if name not in found:
        raise TiterError(f"it needs the {what} of {name}, which could not be measured", next_step="see the reason given for that part.")
    return found[name]


def _changed(pipeline: Pipeline, moved: Sequence[Change], paired: Sequence[Change], within: Within) -> dict[str, pd.DataFrame]:
    """Measures each change; a part that fails is left out. Drift and turning are measured only for `paired` changes, whose models read
    the same tokens."""
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in ("gains", "layers", "sizes", "prints", "null", "drift", "rotation")}
    part = within.lacking.part
    for change in moved:
        if within.lacking.stopped:
            within.lacking.left_out(CHANGE, change.name, INTERRUPTED)
            continue
        pipeline.reporter.tell(f"{change.name}: weights")
        sites = skeleton(change.before.checkpoint)
        with part("where the change acts", change.name):
            gains, layers = changes.acting(pipeline, change, sites, within.ends(change.after), within.safe, within.prompts)
            found["gains"].append(gains)
            found["layers"].append(layers)
        with part("size of the change", change.name):
            found["sizes"].append(changes.sizes(pipeline, change, sites))
        with part("fingerprint of an edit", change.name):
            found["prints"].append(prints.of_change(pipeline, change, sites, within.directions.get(change.before.name)))
        if within.sets:
            with part("null space of the change", change.name):
                found["null"].append(mechanisms.null(pipeline, change, sites).assign(change=change.name))
        if change not in paired:
            continue
        with part("drift", change.name):
            found["drift"].append(changes.drift(change, within.ends(change.before), within.ends(change.after), within.safe))
        with part(TURNING, change.name):
            found["rotation"].append(within.rotation(change))
    return {name: _together(tables) for name, tables in found.items()}


def _back(pipeline: Pipeline, found: Audited, lacking: Lacking) -> pd.DataFrame:
    """Measures how far the last of two changes goes back along the one before it; empty unless there are two changes of weights."""
    if len(found.changes) > 1 and not lacking.stopped and all(change.weighed for change in found.changes):
        with lacking.part("whether it goes back", found.changes[-1].name):
            return changes.gone_back(pipeline, *found.changes)
    return pd.DataFrame()


def _restored(pipeline: Pipeline, change: Change, asked: Question, verdicts: pd.DataFrame, within: Within) -> pd.DataFrame:
    """Measures which part of the change lost the refusals; empty if too few were lost."""
    lacking, (one, attempts) = within.lacking, restoring.most_lost(asked.sets, verdicts, change)
    few = f"only {len(attempts)} refusals were lost, and {restoring.LEAST} are needed" if len(attempts) < restoring.LEAST else ""
    few = few or restoring.unasked(verdicts, change)
    if few or lacking.stopped:
        if attempts:
            lacking.left_out(restoring.WHY, change.name, few or INTERRUPTED)
        return pd.DataFrame()
    pipeline.reporter.tell(f"{change.name}: parts put back, on {len(attempts)} lost refusals")
    with lacking.part(restoring.WHY, change.name):
        moved = restoring.changed(change, skeleton(change.before.checkpoint))
        if moved.left:
            lacking.left_out(
                restoring.WHY,
                change.name,
                f"{', '.join(moved.left)} were not put back: their rows stand for different tokens in the two models, "
                "or embedding and head are one shared tensor in only one of them",
            )
        refusal = within.directions.get(change.before.name)
        return restoring.restored(pipeline, change, one, asked.decoding.max_new_tokens, attempts, moved, refusal)
    return pd.DataFrame()


def around(found: Audited) -> tuple[Model, Model | None]:
    """Returns the landscape's centre and the model that it also moves towards (None: none): the models before and after the last change;
    of a single model, that model."""
    last = found.last
    return (last.before if last else found.models[0]), (last.after if last and last.weighed else None)
