"""One seed of a study at work: its models made when first asked for, asked and measured, each result kept once. L7."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import pandas as pd

from titer.data.draws import seed_of
from titer.data.world import World
from titer.models.lm import LM, load
from titer.recipes.node import Node
from titer.studies.engine.declare import BASE, Given, Measure, Need, Question, Study
from titer.studies.engine.found import Found
from titer.studies.judged import named
from titer.workbench import Model, Workbench, attempts_key


@dataclass
class Lab:
    """One seed. `name` is the study's: part of the keys of what is measured, never of a stage's."""

    bench: Workbench
    study: Study
    name: str
    scale: Any
    seed: int
    given: Given | None = None
    keep_weights: bool = True
    base: int = 0
    bases: int = 1  # of each world in this run
    _models: dict[str, Model] = field(default_factory=dict)
    _reference: tuple[str, LM] | None = None

    @cached_property
    def source(self) -> Any:
        return self.study.source(self.scale, self.seed, self.given)

    @property
    def world(self) -> World:
        return self.source  # type: ignore[no-any-return]

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """The recipe by name, parents first. A further base differs in its initial weights: the same data in the same order."""
        nodes = self.study.nodes(self.scale, self.source)
        if self.base:
            seed = seed_of(self.seed, "base", self.base)
            nodes = [node if node.parent else node._replace(stage=node.stage.model_copy(update={"seed": seed})) for node in nodes]
        return {node.name: node for node in nodes}

    @property
    def unit(self) -> tuple[int, int]:
        return self.seed, self.base

    @property
    def names(self) -> list[str]:
        """Every model: the one that is given, then the recipe's."""
        return [*([BASE] if self.given else []), *self.nodes]

    def called(self, name: str) -> str:
        """A model's name in tables; a given base's own, told from the recipe's."""
        if self.given is None or name != BASE:
            return name
        return f"{self.given.base.name}, the base" if self.given.base.name in self.nodes else self.given.base.name

    @cached_property
    def questions(self) -> list[Question]:
        return [one._replace(attempts=named(one.attempts, one.name)) for one in self.study.questions(self)]

    @cached_property
    def measures(self) -> dict[str, Measure]:
        return {one.name: one for one in self.study.measures(self)}

    def model(self, name: str) -> Model:
        """A model of the recipe, trained or found; its parents before it."""
        if self.given and name == BASE:
            return self.given.base
        if name not in self._models:
            node = self.nodes[name]
            parent = self.model(node.parent) if node.parent else None
            reads = {role: self.model(other) for role, other in node.reads.items()}
            shown = name if self.given else f"{name}, seed {self.seed}" + (f", base {self.base}" if self.base else "")
            self._models[name] = self.bench.model(node.stage, parent, shown, getattr(self.source, "tokenizer", None), reads)
        return self._models[name]

    def key(self, name: str) -> str:
        """A model's content key, without making it."""
        if self.given and name == BASE:
            return self.given.base.key
        node = self.nodes[name]
        return node.stage.key(self.key(node.parent) if node.parent else "", {role: self.key(other) for role, other in node.reads.items()})

    def stands(self, name: str) -> bool:
        return self.bench.store.has("stages", self.key(name))

    def depth(self, name: str) -> int:
        """How many models are made one after the other before this one."""
        if self.given and name == BASE:
            return 0
        node = self.nodes[name]
        before = [*([node.parent] if node.parent else []), *node.reads.values()]
        return 1 + max(map(self.depth, before)) if before else 0

    def reference(self, model: Model) -> LM:
        """A model that others are compared with, kept loaded while it is asked for again."""
        if self._reference is None or self._reference[0] != model.key:
            self._reference = (model.key, load(model.checkpoint))
        return self._reference[1]

    def verdicts(self, name: str) -> pd.DataFrame:
        """Every judged answer of a model, with the columns of the judge."""
        mine = [one for one in self.questions if one.of is None or one.of(name)]
        usual = self.study.decoding(self.scale, self.source)
        tables = []
        for (decoding, judge), ones in groupby(mine, key=lambda one: (one.decoding or usual, one.judge or self.study.JUDGE)):
            asked = [attempt for one in ones for attempt in one.attempts]
            tables.append(self.bench.verdicts(self.model(name), asked, judge, decoding, self.study.BATCH))
        return pd.concat(tables, ignore_index=True).assign(model=self.called(name))

    def rates(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        return self.study.rates(verdicts).assign(model=verdicts.model.iloc[0])

    def measured(self, one: Measure, over: tuple[str, ...]) -> pd.DataFrame:
        """A measure's rows of some models, kept under what they depend on."""
        models = [self.model(name) for name in over]
        inputs = {
            "study": [self.name, one.name, self.study.VERSION, one.version],
            "models": [model.key for model in models],
            "sets": {kind: attempts_key(attempts) for kind, attempts in one.sets.items()},
        }
        table = self.bench.table("tables", inputs, lambda: one.make(self, *models))
        return table if "model" in table else table.assign(model=self.called(over[-1]))

    def piece(self, name: str, only: Collection[str]) -> None:
        """Make a model and everything that speaks of it alone or beside models before it.

        On a real model the weights of one from which no other begins go then, unless they are to be kept.
        """
        self.model(name)
        self.verdicts(name)
        for one in self.measures.values():
            if one.name in only:
                for over in (o for o in one.over if o[-1] == name and all(self.depth(m) < self.depth(name) for m in o[:-1])):
                    self.measured(one, over)
        if self.given and name != BASE and all(name != node.parent for node in self.nodes.values()):
            self.bench.measured(self.model(name), self.keep_weights)

    def found(self, only: Collection[str], models: Collection[str]) -> Found:
        """All that the seed says: answers and measures of these models."""
        verdicts = {name: self.verdicts(name) for name in models}
        tables = {"rates": pd.concat([self.rates(v) for v in verdicts.values()], ignore_index=True)}
        for one in self.measures.values():
            rows = [self.measured(one, over) for over in one.over if set(over) <= set(models)] if one.name in only else []
            if rows:
                tables[one.name] = pd.concat(rows, ignore_index=True)
        unit = {"seed": self.seed} | ({"base": self.base} if self.bases > 1 else {})
        tables = {name: table.assign(**unit) for name, table in tables.items()}
        whole = pd.concat(verdicts.values(), ignore_index=True).assign(**unit)
        found = Found(self.seed, self.scale, tables, whole, {self.called(name): self.key(name) for name in models})
        return replace(found, source=self.source, base=self.base, faults=faults(found, self.study.needs(self.scale)))


def faults(found: Found, needs: Collection[Need]) -> Mapping[str, str]:
    """Of each model what it should do and does not, the worst set of each need."""
    told: dict[str, str] = {}
    for need in needs:
        if not (found.tables["rates"].model == need.model).any():
            continue
        share, asked = min((found.rate(need.model, one, need.outcome), one) for one in need.asked)
        if not share >= need.least:
            told[need.model] = f"{need.model}: {share:.1%} of {asked} {need.outcome} ({need.least:.0%} needed)"
    return told
