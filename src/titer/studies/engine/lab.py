"""One base of a study: makes its models when they are first needed, asks and measures them, and stores each result. L7."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from titer import evaluate
from titer.attacks.base import named
from titer.core.config import digest
from titer.core.errors import TiterError
from titer.core.plugins import beside, plugin
from titer.data.draws import seed_of
from titer.data.world import World
from titer.models.lm import LM, Decoding, load
from titer.pipeline import Model, Pipeline, attempts_key, stopped
from titer.recipes.node import Node
from titer.studies.engine.declare import BASE, Given, Measure, Need, Question, Study
from titer.studies.engine.found import Found


@dataclass(eq=False)
class Lab:
    """One base of one seed, with its models. `name`: the study's name, which is part of the keys of measures, never of those of stages.

    `parts`: the parts that the user requested. `make`: makes the models that a study adds while it chooses (`Schedule` sets it).
    `ended`: why nothing more is trained here.
    """

    pipeline: Pipeline
    study: Study
    name: str
    scale: Any
    seed: int
    given: Given | None = None
    keep_weights: bool = True
    base: int = 0
    bases: int = 1  # of each world in this run
    parts: tuple[str, ...] = ()
    chosen: Any = None
    plan: bool = False
    make: Callable[[Lab, Sequence[str]], None] | None = None
    ended: str = ""
    added: dict[str, Node] = field(default_factory=dict)  # beside what `Study.nodes` says
    _models: dict[str, Model] = field(default_factory=dict)
    _keys: dict[str, str] = field(default_factory=dict)
    _sets: dict[str, dict[str, str]] = field(default_factory=dict)  # measure -> keys of its inputs
    _declared: tuple[int, dict[str, Measure]] = (-1, {})
    _reference: tuple[str, LM] | None = None

    @cached_property
    def source(self) -> Any:
        return self.study.source(self.scale, self.seed, self.given)

    @property
    def world(self) -> World:
        return self.source  # type: ignore[no-any-return]

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """The recipe's models by name, parents first. A seed's further bases differ only in their initial weights: they train on the
        same data in the same order."""
        return {node.name: self._own(node) for node in self.study.nodes(self.scale, self.source)}

    def _own(self, node: Node) -> Node:
        if node.parent or not self.base:
            return node
        return node._replace(stage=node.stage.model_copy(update={"seed": seed_of(self.seed, "base", self.base)}))

    @property
    def decoding(self) -> Decoding:
        """The decoding of the study, used for questions that have none of their own."""
        return self.study.decoding(self.scale, self.source)

    @property
    def unit(self) -> tuple[int, int]:
        return self.seed, self.base

    @property
    def names(self) -> list[str]:
        """The names of all models: first the given one, if any, then those of the recipe."""
        return [*([BASE] if self.given else []), *self.nodes]

    def called(self, name: str) -> str:
        """Returns a model's name in tables. A given base has its own name; if a model of the recipe has it too, ", the base" is added."""
        if self.given is None or name != BASE:
            return name
        return f"{self.given.base.name}, the base" if self.given.base.name in self.nodes else self.given.base.name

    @cached_property
    def questions(self) -> list[Question]:
        return [one._replace(attempts=named(one.attempts, one.name)) for one in self.study.questions(self)]

    @property
    def declared(self) -> dict[str, Measure]:
        """The study's measures for the recipe so far, by name."""
        if self._declared[0] != len(self.nodes):
            self._declared = (len(self.nodes), {one.name: one for one in self.study.measures(self)})
        return self._declared[1]

    @property
    def measures(self) -> list[Measure]:
        """The measures that the user requested; in a study with parts, all that the parts declare."""
        return [one for one in self.declared.values() if self.study.PARTS or not self.parts or one.name in self.parts]

    def add(self, nodes: Sequence[Node]) -> list[str]:
        """Adds nodes to the recipe, and returns the names of those that are new."""
        new = {node.name: self._own(node) for node in nodes if node.name not in self.nodes}
        self.nodes.update(new)
        self.added |= new
        return list(new)

    def grow(self, nodes: Sequence[Node]) -> None:
        """Adds models to the recipe and makes them at once. Those that the recipe already has are skipped."""
        new = self.add(nodes)
        if self.make and new:
            self.make(self, new)

    def model(self, name: str) -> Model:
        """Returns a model, after its parents: the given one, or one of the recipe, which is trained or found in the store."""
        if self.given and name == BASE:
            return self.given.base
        if name not in self._models:
            node = self.nodes[name]
            parent = self.model(node.parent) if node.parent else None
            reads = {role: self.model(other) for role, other in node.reads.items()}
            shown = name if self.given else f"{name}, seed {self.seed}" + (f", base {self.base}" if self.base else "")
            self._models[name] = self.pipeline.model(node.stage, parent, shown, getattr(self.source, "tokenizer", None), reads)
        return self._models[name]

    def key(self, name: str) -> str:
        """Returns a model's content key without making the model."""
        if self.given and name == BASE:
            return self.given.base.key
        if name not in self._keys:
            node = self.nodes[name]
            reads = {role: self.key(other) for role, other in node.reads.items()}
            self._keys[name] = node.stage.key(self.key(node.parent) if node.parent else "", reads)
        return self._keys[name]

    def stands(self, name: str) -> bool:
        return self.pipeline.store.has("stages", self.key(name))

    def before(self, name: str) -> list[str]:
        """Returns the names of the models that a model is made from: its parent and those that its method reads."""
        if name not in self.nodes:  # the one that is given
            return []
        node = self.nodes[name]
        return [*([node.parent] if node.parent else []), *node.reads.values()]

    def depth(self, name: str) -> int:
        """Returns how many models, at most, must be made one after the other before this one."""
        return 1 + max(map(self.depth, before)) if (before := self.before(name)) else 0

    def line(self, name: str) -> list[str]:
        """Returns the names of all models that a model is made from, parents first, then its own name."""
        return list(dict.fromkeys([*(one for before in self.before(name) for one in self.line(before)), name]))

    def reference(self, model: Model) -> LM:
        """Loads a model that others are compared with. It stays loaded until another reference is requested."""
        if self._reference is None or self._reference[0] != model.key:
            self._reference = (model.key, load(model.checkpoint))
        return self._reference[1]

    def asked(self, name: str) -> list[Question]:
        """Returns the questions that a model is asked; none if it is only measured."""
        return [one for one in self.questions if one.of is None or one.of(name)]

    def verdicts(self, name: str) -> pd.DataFrame:
        """Returns all judged answers of a model that is asked something, with the columns of the judge."""
        return self.answers(self.model(name), self.asked(name)).assign(model=self.called(name))

    def answers(self, model: Model, asked: Sequence[Question], lm: LM | None = None) -> pd.DataFrame:
        """Returns a model's judged answers to questions, and stores them.

        With `lm`, the same model at another training step, that one answers, and nothing is stored."""
        usual, batch = self.decoding, self.study.BATCH
        tables = []
        for (decoding, judge), ones in groupby(asked, key=lambda one: (one.decoding or usual, one.judge or self.study.JUDGE)):
            attempts = [attempt for one in ones for attempt in named(one.attempts, one.name)]
            if lm is None:
                tables.append(self.pipeline.verdicts(model, attempts, judge, decoding, batch))
            else:
                tables.append(evaluate.judged(evaluate.sample(lm, attempts, decoding, batch), judge))
        return pd.concat(tables, ignore_index=True)

    def rates(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        return self.study.rates(verdicts).assign(model=verdicts.model.iloc[0])

    def measured(self, one: Measure, over: tuple[str, ...]) -> pd.DataFrame:
        """Returns a measure's rows for some models, and stores them under a key of everything that they depend on."""
        models = [replace(self.model(name), name=self.called(name)) for name in over]
        table = self.pipeline.table("tables", self._inputs(one, over), lambda: one.make(self, *models))
        return table if "model" in table else table.assign(model=self.called(over[-1]))

    def _inputs(self, one: Measure, over: tuple[str, ...]) -> dict[str, object]:
        """Returns everything that a measure's rows for some models depend on, for their key."""
        if one.name not in self._sets:
            self._sets[one.name] = {kind: attempts_key(attempts) for kind, attempts in one.sets.items()}
        version = [self.name, one.name, self.study.VERSION, one.version]
        return {"study": version, "models": [self.key(name) for name in over], "sets": self._sets[one.name]}

    def is_measured(self, name: str) -> bool:
        """Whether the store has everything that is measured on a model when it is made (`spoken`). Makes nothing."""
        return all(self.pipeline.store.has("tables", digest(self._inputs(one, over))) for one, over in self.spoken(name))

    def piece(self, name: str) -> None:
        """Makes a model, its answers, and everything that is measured on it alone or together with models made before it.

        In a study of a real model, weights that no later model or measure needs are deleted afterwards, unless they are to be kept.
        """
        self.model(name)
        if self.asked(name):
            self.verdicts(name)
        for one, over in self.spoken(name):
            self.measured(one, over)
        later = any(name in over and (one, over) not in self.spoken(over[-1]) for one in self.measures for over in one.over)
        if self.given and name != BASE and not later and all(name != node.parent for node in self.nodes.values()):
            self.pipeline.measured(self.model(name), self.keep_weights)

    def spoken(self, name: str) -> list[tuple[Measure, tuple[str, ...]]]:
        """Returns what is measured on a model alone or together with models made before it: (measure, names of the models)."""
        depth, names = self.depth(name), set(self.names)
        now = [one for one in self.measures if not one.last]
        mine = [(one, over) for one in now for over in one.over if over[-1] == name and names.issuperset(over)]
        return [(one, over) for one, over in mine if all(self.depth(other) < depth for other in over[:-1])]

    def found(self) -> Found:
        """Returns all results of this base: the answers and measures of its models."""
        verdicts = {name: self.verdicts(name) for name in self.names if self.asked(name)}
        tables = {"rates": pd.concat([self.rates(v) for v in verdicts.values()], ignore_index=True)} if verdicts else {}
        for one in self.measures:
            rows = [self.measured(one, over) for over in one.over if set(over) <= set(self.names)]
            if rows:
                tables[one.name] = pd.concat(rows, ignore_index=True)
        if self.given:  # what a measure of the whole study read was kept until now
            parents = {node.parent for node in self.nodes.values()}
            for name in self.nodes.keys() - parents:
                self.pipeline.measured(self.model(name), self.keep_weights)
        unit = {"seed": self.seed} | ({"base": self.base} if self.bases > 1 else {})
        arranged = {name: table.assign(**unit) for name, table in self.study.arranged(self, tables).items()}
        whole = pd.concat(verdicts.values(), ignore_index=True).assign(**unit) if verdicts else pd.DataFrame(columns=["model"])
        keys, parts = {self.called(name): self.key(name) for name in self.names}, self.parts if self.study.PARTS else ()
        edited = arranged.pop("answers", pd.DataFrame())
        found = Found(self.seed, self.scale, arranged, whole, keys, parts=parts, chosen=self.chosen, ended=self.ended, edited=edited)
        early = {} if self.given else {name: why for name in self.names if (why := stopped(self.model(name)))}
        return replace(found, source=self.source, base=self.base, stopped=early, faults=faults(found, self.study.needs(self.scale)))


def faults(found: Found, needs: Collection[Need]) -> Mapping[str, str]:
    """Returns, for each model that fails a need, a text with the set on which it is worst and its rate there."""
    told: dict[str, str] = {}
    for need in needs:
        if not (found.tables["rates"].model == need.model).any():
            continue
        share, asked = min((found.rate(need.model, one, need.outcome), one) for one in need.asked)
        if not share >= need.least:
            told[need.model] = f"{need.model}: {share:.1%} of {asked} {need.outcome} ({need.least:.0%} needed)"
    return told


def form(place: str, given: Given | None) -> Study:
    """Returns a study or, with `given`, its form for real models: the class in `text.py` of its folder. Errors: it does not exist."""
    return plugin("studies", place, Study)() if given is None else on_text(place)  # type: ignore[type-abstract]


def on_text(place: str) -> Study:
    """Returns a study's form for real models. Errors: it has none."""
    if kind := beside("studies", place, "text", Study):  # type: ignore[type-abstract]
        return kind()
    raise TiterError(
        f"{Path(place).stem} has no form on a real model: what it probes, an audit measures on two given ones",
        next_step="titer audit BASE ALIGNED --data prompts.csv --mechanisms, or leave out --base.",
    )
