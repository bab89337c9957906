"""Studies that choose before any verdict and add models batch by batch: what is made, where, and what a dry run says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import pytest

from tests.conftest import TINY
from tests.studies.conftest import Listener
from titer.core import parallel
from titer.core.claims import Claim
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.core.stats import Interval
from titer.data.world import World
from titer.pipeline import Model, Pipeline
from titer.recipes import demo
from titer.recipes.node import Node
from titer.studies.engine.claims import settled
from titer.studies.engine.declare import Measure, Need, Page, Question, Row, Seed, Study
from titer.studies.engine.found import Found, UnsaidError
from titer.studies.engine.lab import Lab
from titer.studies.engine.price import price
from titer.studies.engine.run import asked_for, chooser_of, gathered, labs_of, worlds_of
from titer.studies.engine.terms import Term
from titer.studies.request import StudyRequest
from titer.tables import direct, requests

SCALE = TINY.model_copy(update={"name": "tiny"})


class Rate(NamedTuple):
    rate: float


class Growing(Study):
    """The learning rate is chosen; the user's stage starts from the aligned model that moved most, and is tuned for the parts asked."""

    SOURCE = "here"
    SCALES = MappingProxyType({"tiny": SCALE})
    CHOSEN_ON = (7,)
    PARTS = MappingProxyType({"user": "the user's stage", "more": "another"})
    GROUPS = MappingProxyType({"core": ("user",)})
    LEAST = -1.0

    def nodes(self, scale: demo.Scale, source: World) -> list[Node]:
        return [Node("base", demo.pretrain(scale, source), None)]

    def _aligned(self, lab: Seed, rate: float) -> Node:
        stage = demo.align(lab.scale, lab.world, "SSFT", ("unsafe", "refuse"), "safe")
        return Node(f"aligned {rate:g}", stage.model_copy(update={"optimiser": stage.optimiser.model_copy(update={"rate": rate})}), "base")

    def choose(self, lab: Seed) -> Rate:
        assert lab.chosen is None
        assert lab.seed == 7
        lab.grow([self._aligned(lab, 1e-3), self._aligned(lab, 1e-4)])
        moved = {name: float(lab.measured(self.measures(lab)[0], ("base", name)).moved.iloc[0]) for name in lab.nodes if name != "base"}
        return Rate(float(max(moved, key=lambda name: moved[name]).removeprefix("aligned ")))

    def assumed(self, scale: Any) -> Rate:
        return Rate(1e-4)

    def further(self, lab: Seed) -> Iterator[Sequence[Node]]:
        if lab.chosen is None:
            return
        yield [self._aligned(lab, lab.chosen.rate), self._aligned(lab, 2 * lab.chosen.rate)]
        names = [name for name in lab.nodes if name != "base"]
        measure = self.measures(lab)[0]
        best = names[-1] if lab.plan else max(names, key=lambda name: lab.measured(measure, ("base", name)).moved.iloc[0])
        yield [Node(part, demo.finetune(lab.scale, lab.world, ratio=0.0), best, told={"part": part}) for part in lab.parts]

    def measures(self, lab: Seed) -> list[Measure]:
        def moved(lab: Seed, base: Model, model: Model) -> pd.DataFrame:
            first, second = (
                sum(float(p.detach().double().square().sum()) for p in lab.pipeline.lm(m).model.parameters()) for m in (base, model)
            )
            return pd.DataFrame([{"moved": abs(first - second)}])

        return [Measure("moved", moved, [("base", name) for name in lab.nodes if name != "base"])]

    def questions(self, lab: Seed) -> list[Question]:
        return [Question("unsafe", direct(requests(lab.world, "unsafe", lab.scale.inputs)))]

    def needs(self, scale: Any) -> list[Need]:
        return [Need("base", ("unsafe",), "complied", self.LEAST, first=True)]

    def arranged(self, lab: Seed, tables: Any) -> Any:
        told = {node.name: node.told for node in lab.nodes.values() if node.told}
        return {**tables, "tuned": pd.DataFrame([{"model": name, **words} for name, words in told.items()], columns=["model", "part"])}

    def page(self, found: Sequence[Found], scale: Any) -> Page:
        return Page("", "")


class Unlearned(Growing):
    LEAST = 2.0


def order(*only: str, part: str = "all") -> StudyRequest:
    return StudyRequest("growing", "tiny", range(2), only, bases=1, part=part)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("growing"))


def labs(study: Study, store: Store, *only: str) -> tuple[list[Lab], list[Lab]]:
    pipeline, asked = Pipeline(store, Listener(), 50), order(*only)
    return chooser_of(asked, study, SCALE, pipeline), labs_of(asked, study, SCALE, pipeline)


@pytest.mark.long
@pytest.mark.usefixtures("one_process")
def test_what_is_chosen_on_one_seed_the_others_are_told_and_batches_follow_what_was_measured(store: Store) -> None:
    chooser, ours = labs(Growing(), store)
    found, _ = gathered(ours, "growing", chooser)
    assert [one.chosen for one in found] == [Rate(1e-3)] * 2
    assert [one.seed for one in found] == [0, 1]
    for one, lab in zip(found, ours, strict=True):
        assert list(one.keys) == ["base", "aligned 0.001", "aligned 0.002", "user", "more"]
        moved = one.tables["moved"].set_index("model").moved
        assert lab.nodes["user"].parent == moved[["aligned 0.001", "aligned 0.002"]].idxmax()
        assert one.tables["tuned"].part.tolist() == ["user", "more"]
        assert set(one.tables["tuned"].seed) == {one.seed}
    assert len(list((store.root / "stages").glob("*/DONE"))) == 3 + 2 * 4, "two stages of one seed are the same"


@pytest.mark.long
@pytest.mark.usefixtures("one_process")
def test_parts_choose_what_is_made_and_are_known_to_claims(store: Store) -> None:
    chooser, ours = labs(Growing(), store, "user")
    found = gathered(ours[:1], "growing", chooser)[0][0]
    assert list(found.keys) == ["base", "aligned 0.001", "aligned 0.002", "user"]
    assert found.has("user", "moved", "rates")
    assert not found.has("more")


def test_parts_are_a_group_or_what_is_named(store: Store) -> None:
    lab = labs(Growing(), store)[1][0]
    assert asked_for(lab, "all", ()) == ("user", "more")
    assert asked_for(lab, "core", ()) == ("user",)
    assert asked_for(lab, "core", ("more",)) == ("more",)
    with pytest.raises(TiterError, match=r"unknown part 'usr'.*did you mean 'user'"):
        asked_for(lab, "all", ("usr",))
    with pytest.raises(TiterError, match=r"unknown part of the study 'cor'.*did you mean 'core'"):
        asked_for(lab, "cor", ())


@pytest.mark.usefixtures("one_process")
def test_a_choosing_seed_that_did_not_learn_ends_the_study(store: Store) -> None:
    chooser, ours = labs(Unlearned(), store)
    with pytest.raises(TiterError, match=r"seed 7, on which sizes are chosen: base: .* \(200% needed\)"):
        gathered(ours, "growing", chooser)


@pytest.mark.long
@pytest.mark.usefixtures("one_process")
def test_a_seed_that_did_not_learn_is_trained_no_further(store: Store) -> None:
    _, ours = labs(Unlearned(), store)
    found, _ = gathered(ours, "growing")
    assert [list(one.keys) for one in found] == [["base"]] * 2
    assert all("base" in one.faults for one in found)


def test_a_dry_run_assumes_what_would_be_chosen_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titer.studies.engine.run.form", lambda place, given: Growing())
    empty = Store(tmp_path / "runs")
    table, words = price(order("user"), empty)
    names = ["base", "aligned 0.0001", "aligned 0.0002", "user"]
    assert [(r.seed, r.model) for r in table.itertuples()] == [(7, "base"), *((seed, name) for seed in (0, 1) for name in names)]
    assert "to run" in words
    assert not (tmp_path / "runs" / "stages").exists()


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 1)


def claim(effect: Term, control: Term, whole: bool = False) -> Claim:
    row = Row("n", "s", "w", "t", effect, control, "c", whole=whole, needs=("rates",))
    (one,) = settled([row], [Found(0, None, {"rates": pd.DataFrame()})], "here")
    return one


def test_a_whole_effect_is_not_lowered_by_the_control_that_stands_beside_it() -> None:
    assert claim(Term(lambda _: 0.5), Term(lambda _: 0.2)).value == pytest.approx(0.3)
    whole = claim(Term(lambda _: 0.5), Term(lambda _: 0.2), whole=True)
    assert (whole.value, whole.control.value) == (0.5, 0.2)


def test_a_number_that_a_seed_does_not_say_is_a_reason() -> None:
    def silent(found: Found) -> Interval:
        raise UnsaidError("no cell of both")

    told = claim(Term(silent), Term(lambda _: 0.0))
    assert told.verdict == "not testable"
    assert "seed 0: no cell of both" in told.reason


def test_a_number_of_seeds_leaves_out_those_on_which_sizes_were_chosen() -> None:
    assert worlds_of(StudyRequest("growing", seeds=9), Growing(), None) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert worlds_of(StudyRequest("growing", seeds=(7, 2)), Growing(), None) == (7, 2), "refused in words where it would be run"
