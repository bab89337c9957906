"""What a study declares: models, questions, measures, what a seed must have learned, claims, and the text of its page. L7.

A study is one file in `titer/studies` (or any file, by its path) that defines one class derived from `Study`; the file's name is the
study's. The engine makes each model once, loads it once, asks and measures it, then settles the claims and writes the page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import pandas as pd

from titer import evaluate
from titer.attacks.base import Attempt
from titer.core.claims import Claim
from titer.core.errors import TiterError
from titer.data.world import World
from titer.judges.base import Judge
from titer.judges.exact import Exact
from titer.models.lm import LM, Decoding
from titer.pipeline import Model, Pipeline
from titer.recipes.node import Node
from titer.report.html import Figure, Tile
from titer.studies.engine.found import Found
from titer.studies.engine.terms import Term
from titer.studies.judged import greedy

Sets = Mapping[str, Sequence[Attempt]]


BASE = "base"  # a recipe's name for the given model, which is not trained


class Given(NamedTuple):
    """A real model that a study aligns itself: the model, the folder of data sets, and the user's own file of harmful data, if any."""

    base: Model
    folder: Path
    harmful: Path | None = None


def real(given: Given | None) -> Given:
    """Returns `given`, which a study on a real model needs. Errors: it is None."""
    if given is None:
        raise TiterError("a study of a real model without one", next_step="add --base MODEL --data FOLDER.")
    return given


class Seed(Protocol):
    """What a study can use of one seed while it runs; `lab.Lab` implements it.

    `source` is what examples are drawn from: the seed's synthetic world or, for a real model, data sets of text."""

    @property
    def pipeline(self) -> Pipeline: ...

    @property
    def scale(self) -> Any: ...

    @property
    def seed(self) -> int: ...

    @property
    def base(self) -> int: ...

    @property
    def source(self) -> Any: ...

    @property
    def world(self) -> World: ...

    @property
    def given(self) -> Given | None: ...

    @property
    def decoding(self) -> Decoding: ...

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The models of the recipe so far, by name."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The study's parts that were asked for."""

    @property
    def chosen(self) -> Any:
        """The result of `Study.choose`; None on the seed on which the study chooses."""

    @property
    def plan(self) -> bool:
        """Whether this is a dry run, in which models are named but none is made."""

    @property
    def ended(self) -> str:
        """Why nothing more is trained on this seed; "" if training goes on."""

    def model(self, name: str) -> Model:
        """Returns a model of the recipe, which is made when it is first requested."""

    def reference(self, model: Model) -> LM:
        """Loads a model that others are compared with. It stays loaded until another reference is requested."""

    def answers(self, model: Model, asked: Sequence[Question], lm: LM | None = None) -> pd.DataFrame:
        """Returns a model's judged answers to questions, and stores them.

        With `lm`, the same model at another training step, that one answers, and nothing is stored."""

    def measured(self, one: Measure, over: tuple[str, ...]) -> pd.DataFrame:
        """Returns a measure's rows for some models, and stores them."""

    def grow(self, nodes: Sequence[Node]) -> None:
        """Adds models to this seed's recipe and makes them at once. Those that the recipe already has are skipped."""


class Question(NamedTuple):
    """A named set of attempts. It is asked of the models whose name `of` accepts, or of all models if `of` is None."""

    name: str
    attempts: Sequence[Attempt]
    of: Callable[[str], bool] | None = None
    decoding: Decoding | None = None  # None: the study's
    judge: Judge | None = None  # None: the study's


class Measure(NamedTuple):
    """A table of measurements. `over` lists tuples of model names; for each, one call `make(lab, *models)` returns rows of the table.

    The rows are about the last model of their tuple. `sets`: the inputs that the measure uses. With the models and `version` they form the
    key under which a call's rows are stored. `last`: the measure is made once all models exist, by the run's own process with all its
    threads (for long work on a real model, for which a worker process would use one thread).
    """

    name: str
    make: Callable[..., pd.DataFrame]
    over: Sequence[tuple[str, ...]]
    version: object = 1
    sets: Sets = MappingProxyType({})
    last: bool = False


class Need(NamedTuple):
    """What a model must have learned for its seed to count: on each set of `asked`, at least the share `least` has the outcome.

    `first`: if the model fails it, nothing more is trained on this seed.
    """

    model: str
    asked: tuple[str, ...]
    outcome: str
    least: float
    first: bool = False


@dataclass(frozen=True)
class Row:
    """One claim: `effect` minus `control` is compared with a margin that was declared beforehand. `paper`: the paper's value, if any.

    `against`: the control's name. `whole`: `effect` is already effect minus control (the weakest of several differences), and `control` is
    only shown. `unless`: says why a base has no value ("": it has one). `needs`: the tables that the claim reads. `models`: the models
    whose needs must hold (empty: every need of the study). `source`: the paper, if it is not the study's own.
    """

    name: str
    statement: str
    where: str
    statistic: str
    effect: Term
    control: Term
    against: str
    margin: float = 0.0
    paper: str | None = None
    note: Callable[[Found], str] | None = None
    unless: Callable[[Found], str] | None = None
    needs: tuple[str, ...] = ("rates",)
    models: tuple[str, ...] = ()
    source: str = ""
    whole: bool = False

    @property
    def net(self) -> Term:
        """The effect minus the control."""
        return self.effect if self.whole else self.effect - self.control


class Headline(NamedTuple):
    """A rate shown at the top of the page. `asked`: the set of prompts. `before`: another model, whose rate is shown for comparison."""

    label: str
    model: str
    asked: str
    outcome: str = "complied"
    before: str = ""


@dataclass(frozen=True)
class Page:
    """The parts of a report that a study provides itself.

    `results`: the names of the tables in results.csv, in order (empty: all), or that table itself. `shown`: the models whose answers and
    keys the page shows (empty: all).
    """

    answer: str
    about: str
    figures: Sequence[Figure] = ()
    headlines: Sequence[Headline] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    notes: Sequence[str] = ()
    results: tuple[str, ...] | pd.DataFrame = ()
    title: str = ""
    tiles: Sequence[Tile] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)
    shown: tuple[str, ...] = ()


class Study(ABC):
    """The study of a paper; each study is a subclass.

    `SCALES`: records with the fields `name` and `world`. `CHOSEN_ON`: the seeds on which its sizes were, or are, chosen. `PARTS` (name ->
    description): parts of a large study that a user may request; `GROUPS`: names for several parts together. In a study without parts, a
    user requests tables. The form of a study for real models is such a class too, in the file `text.py` of the study's folder; its
    `source` reads a folder of data sets.
    """

    SOURCE: ClassVar[str]
    VERSION: ClassVar[int] = 1
    SCALES: ClassVar[Mapping[str, Any]]
    JUDGE: ClassVar[Judge] = Exact()
    BATCH: ClassVar[int] = 1024  # prompts answered at once
    CHOSEN_ON: ClassVar[tuple[int, ...]] = ()
    PARTS: ClassVar[Mapping[str, str]] = MappingProxyType({})
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})

    @abstractmethod
    def nodes(self, scale: Any, source: Any) -> Sequence[Node]:
        """Returns every model of one seed, parents first. On a real model the base is given, so it is not among them."""

    def unused(self, scale: Any) -> tuple[int, ...]:
        """Returns the seeds that no verdict at this scale may use."""
        return self.CHOSEN_ON

    def source(self, scale: Any, seed: int, given: Given | None) -> Any:
        """Returns what one seed's examples are drawn from; by default its synthetic world."""
        return scale.world.model_copy(update={"seed": seed})

    def edited_models(self, lab: Seed) -> int:
        """Returns how many edited models the measures ask every question, for the cost of a run on a real model."""
        return 0

    def foreseen(self, lab: Seed) -> Mapping[str, object]:
        """Returns what a dry run on a real model also says, by name: settings, the paper's own times, what is to be expected."""
        return {}

    def further(self, lab: Seed) -> Iterator[Sequence[Node]]:
        """Yields further models in batches. Each batch is made before the next is requested, so it may depend on earlier results."""
        yield from ()

    def choose(self, lab: Seed) -> Any:
        """Chooses settings before any verdict, on the first seed of `CHOSEN_ON`. All other seeds get the result as `lab.chosen`."""
        return None

    def assumed(self, scale: Any) -> Any:
        """Returns the result of `choose` that a dry run assumes."""
        return None

    @abstractmethod
    def questions(self, lab: Seed) -> Sequence[Question]:
        """Returns the questions that the models are asked."""

    @abstractmethod
    def page(self, found: Sequence[Found], scale: Any) -> Page:
        """Returns the study's own texts, tables and charts for the report, made from the results of the bases."""

    def concluded(self, page: Page, claims: Sequence[Claim]) -> Page:
        """Returns the page, completed once the claims are settled: for texts that count verdicts. By default it stays as it is."""
        return page

    def measures(self, lab: Seed) -> Sequence[Measure]:
        """Returns the measures: the tables that are made in addition to the rates of the answers."""
        return ()

    def needs(self, scale: Any) -> Sequence[Need]:
        """Returns what a seed's models must have learned for the seed to count."""
        return ()

    def claims(self, scale: Any) -> Sequence[Row]:
        """Returns the paper's claims, each with its control and margin."""
        return ()

    def decoding(self, scale: Any, source: Any) -> Decoding:
        """Returns how answers are generated; by default greedily, with enough tokens for the world's longest answer."""
        return greedy(source)

    def arranged(self, lab: Seed, tables: Mapping[str, pd.DataFrame]) -> Mapping[str, pd.DataFrame]:
        """Returns the tables that the claims and the page read, made from the measured tables.

        A table `answers` has judged answers of edited models (with the columns of verdicts); the report shows them with the others."""
        return tables

    def rates(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        """Counts one model's judged answers: a table with the columns set, outcome, count, n, rate, low and high."""
        return evaluate.rates(verdicts).rename(columns={"kind": "set"})


def promised(study: Study) -> str:
    """Returns the study's scales, parts and claims as text for `titer show STUDY`. Nothing is trained or measured."""
    scales = study.SCALES
    rows = study.claims(next(iter(scales.values())))
    lines = [f"Scales (--scale): {', '.join(scales)}"]
    if study.PARTS:
        lines += ["Parts (--only):", *(f"  {name}: {words}" for name, words in study.PARTS.items())]
    lines += ["", "Claims, each an effect minus a control over bases; supported where the whole interval lies above the margin:"]
    return "\n".join([*lines, *(line for row in rows for line in _claim(row, study.SOURCE))])


def _claim(row: Row, source: str) -> list[str]:
    paper = [f"      in the paper: {row.paper}"] if row.paper else []
    return [
        f"  {row.name} ({', '.join(filter(None, (row.source or source, row.where)))})",
        f"      {row.statement}",
        f"      statistic: {row.statistic}; margin {row.margin:.3g}",
        f"      control: {row.against}",
        *paper,
    ]
