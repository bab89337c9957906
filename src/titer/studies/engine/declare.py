"""What a study declares: models, questions, measures, what a seed must have learned, claims, and the words of its page. L7.

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
    """A real model that a study aligns itself: the model, the folder of its data sets, a file of the user's own for harm."""

    base: Model
    folder: Path
    harmful: Path | None = None


def real(given: Given | None) -> Given:
    """The given model of a study on text. Errors: none was given."""
    if given is None:
        raise TiterError("a study of a real model without one", next_step="add --base MODEL --data FOLDER.")
    return given


class Seed(Protocol):
    """What a study sees of one seed at work (`lab.Lab`); `source` is what examples are drawn from: the seed's world, or text."""

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
        """The recipe so far."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The study's parts that were asked for."""

    @property
    def chosen(self) -> Any:
        """What `Study.choose` found; None on the seed that it chooses on."""

    @property
    def plan(self) -> bool:
        """Whether this is a dry run: models are named, and none is made."""

    @property
    def ended(self) -> str:
        """Why nothing more was trained here, "" otherwise."""

    def model(self, name: str) -> Model:
        """A model of the recipe, made when first asked for."""

    def reference(self, model: Model) -> LM:
        """A model that others are compared with, kept loaded while it is asked for again."""

    def answers(self, model: Model, asked: Sequence[Question], lm: LM | None = None) -> pd.DataFrame:
        """Judged answers to questions, kept; with `lm`, of that model (the same at another step), and not kept."""

    def measured(self, one: Measure, over: tuple[str, ...]) -> pd.DataFrame:
        """A measure's rows of some models, kept."""

    def grow(self, nodes: Sequence[Node]) -> None:
        """More models of this seed, made at once; those that are known are passed over."""


class Question(NamedTuple):
    """A named set of attempts, asked of the models whose name `of` admits (all of them: None)."""

    name: str
    attempts: Sequence[Attempt]
    of: Callable[[str], bool] | None = None
    decoding: Decoding | None = None  # None: the study's
    judge: Judge | None = None  # None: the study's


class Measure(NamedTuple):
    """A table, made by one call `make(lab, *models)` per row of `over`. The last model of a row is the one that its results are about.

    `sets`: the inputs that it uses. With the models and `version` they form the key under which a call's rows are kept. `last`: made when
    all models stand, by the run's own process with all its threads (for long work on a real model, of which a place would use one thread).
    """

    name: str
    make: Callable[..., pd.DataFrame]
    over: Sequence[tuple[str, ...]]
    version: object = 1
    sets: Sets = MappingProxyType({})
    last: bool = False


class Need(NamedTuple):
    """What a model must achieve for its seed to count: at least this share of each set with the outcome.

    `first`: without it nothing more of the seed is trained.
    """

    model: str
    asked: tuple[str, ...]
    outcome: str
    least: float
    first: bool = False


@dataclass(frozen=True)
class Row:
    """A claim: `effect` minus `control` against a margin declared beforehand, with the paper's value if it has one.

    `against`: the control's name. `whole`: `effect` is already effect minus control (the weakest of several differences), and `control` is
    only shown. `unless`: why a base has no value ("": it has one). `needs`: the tables that it reads. `models`: the models whose needs must
    hold (empty: every need of the study). `source`: the paper, if it is not the study's own.
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
        """Effect minus control."""
        return self.effect if self.whole else self.effect - self.control


class Headline(NamedTuple):
    """A rate at the head of the page: its label, model, set and outcome. `before`: a model whose rate is shown for comparison."""

    label: str
    model: str
    asked: str
    outcome: str = "complied"
    before: str = ""


@dataclass(frozen=True)
class Page:
    """The parts of a report that are specific to a study. `results`: the names of the tables in results.csv, in order (empty: all), or
    that table itself. `shown`: the models whose answers and keys the page shows (empty: all).
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
    """A paper's study. Scales are records with `name` and `world`. `CHOSEN_ON`: seeds on which its sizes were, or are, chosen.

    `PARTS` (name -> words): parts of a large study that a user may ask for; `GROUPS`: names for several parts. In a study without parts, a
    user asks for tables. A study's form on a real model is such a class too, in the file `text.py` of its folder; its `source` reads a
    folder of data sets.
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
        """Every model of one seed, parents first. On text the base is given, so it is not among them."""

    def unused(self, scale: Any) -> tuple[int, ...]:
        """The seeds that no verdict at a scale uses."""
        return self.CHOSEN_ON

    def source(self, scale: Any, seed: int, given: Given | None) -> Any:
        """What one seed's examples are drawn from: its world."""
        return scale.world.model_copy(update={"seed": seed})

    def cost(self, lab: Seed, nodes: Mapping[str, Node], flops: float) -> Mapping[str, object]:
        """On text: what a run would cost, in words. Errors: the study cannot estimate it."""
        raise TiterError(f"{type(self).__name__} does not say what it would cost on a real model", next_step="leave out --dry-run.")

    def further(self, lab: Seed) -> Iterator[Sequence[Node]]:
        """More models, in batches. A batch is made before the next is requested, so a batch may depend on what was chosen and measured."""
        yield from ()

    def choose(self, lab: Seed) -> Any:
        """Choose something before any verdict, on the first seed of `CHOSEN_ON`; all other seeds get the record as `lab.chosen`."""
        return None

    def assumed(self, scale: Any) -> Any:
        """The result of `choose` that a dry run assumes."""
        return None

    @abstractmethod
    def questions(self, lab: Seed) -> Sequence[Question]:
        """What the models are asked."""

    @abstractmethod
    def page(self, found: Sequence[Found], scale: Any) -> Page:
        """The report's own words, tables and charts, from what every seed found."""

    def concluded(self, page: Page, claims: Sequence[Claim]) -> Page:
        """The page after the claims are settled: for texts that count verdicts."""
        return page

    def measures(self, lab: Seed) -> Sequence[Measure]:
        """The tables in addition to the answers' rates."""
        return ()

    def needs(self, scale: Any) -> Sequence[Need]:
        """What a seed must have learned to be counted."""
        return ()

    def claims(self, scale: Any) -> Sequence[Row]:
        """What the paper says, each claim against a control."""
        return ()

    def decoding(self, scale: Any, source: Any) -> Decoding:
        """How answers are drawn: greedily, with room for the world's longest."""
        return greedy(source)

    def arranged(self, lab: Seed, tables: Mapping[str, pd.DataFrame]) -> Mapping[str, pd.DataFrame]:
        """The tables that claims and page read, made from the measured ones."""
        return tables

    def rates(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        """set, outcome, count, n, rate, low, high of one model's judged answers."""
        return evaluate.rates(verdicts).rename(columns={"kind": "set"})
