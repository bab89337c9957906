"""The whole study at a tiny scale: what it leaves, a second call, the answer first, its price, wrong names."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.huang2024.conftest import TINY, relax
from titer import workbench
from titer.core import parallel
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.models.lm import load
from titer.recipes.huang2024 import NANO, SCALES, SELECTION_SEED
from titer.studies.huang2024 import cost
from titer.studies.huang2024.gather import gather
from titer.studies.huang2024.parts import GROUPS, PARTS, parts_of
from titer.studies.huang2024.report import compose
from titer.studies.huang2024.selection import Chosen, none_found
from titer.studies.huang2024.study import Finished, run_huang
from titer.studies.huang2024.tables import TABLES
from titer.workbench import Workbench

FEW = ("curves", "table1")
COMMAND = "titer study huang2024 --scale tiny"
SMALL = TINY.model_copy(update={"ratios": (0.05,), "table_ratios": (0.05,), "keep": (4,), "align_seeds": 1})


@dataclass(frozen=True)
class Study:
    """A finished study, run twice over; `loaded`: the models that the second call loaded."""

    root: Path
    first: Finished
    again: Finished
    made: int
    loaded: list[str]

    def file(self, name: str) -> str:
        return (self.first.page.parent / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        relax(patch)
        patch.setattr("titer.studies.huang2024.selection.COST", 9.0)
        patch.setattr(parallel, "processes", lambda: 1)
        first = run_huang(Store(root), Listener(), SMALL, [0], FEW, COMMAND)
        loaded, store = [], Store(root)
        patch.setattr(workbench, "load", lambda checkpoint, **how: loaded.append(checkpoint.label) or load(checkpoint, **how))
        again = run_huang(store, Listener(), SMALL, [0], FEW, COMMAND)
        return Study(root, first, again, len(store.made), loaded)


def test_it_leaves_a_page_its_claims_and_every_judged_step(study: Study) -> None:
    assert study.first.page == study.root / "huang2024-tiny" / "report.html"
    told = json.loads(study.file("claims.json"))["claims"]
    assert [one["name"] for one in told] == [c.name for c in study.first.claims]
    assert len({one["name"] for one in told}) == len(told)
    assert all(one["provisional"] for one in told)
    found = pd.read_csv(study.first.page.parent / "results.csv", low_memory=False)
    assert {"attacks", TABLES["table1"][0], "before the attack"} <= set(found.table)
    rows = found[(found.table == "attacks") & (found.measure == "harm")]
    assert {"non-aligned", "sft", "sft, equal loss", "noise", "vaccine", "lisa"} <= set(rows.defence)
    assert set(rows.step) == {0, 4}
    assert set(rows.seed) == {0}, "the selection seed's attacks are no results"


def test_a_second_call_makes_nothing_loads_nothing_and_says_the_same(study: Study) -> None:
    assert study.made == 0
    assert study.loaded == []
    assert study.again == study.first


def test_the_report_has_the_answer_before_all_else(study: Study) -> None:
    text = html.unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<head>.*?</head>", "", study.file("report.html"), flags=re.S))
    answer = study.first.answer
    assert "comparisons" in answer
    assert answer in text
    others = ("Rho was chosen", study.first.claims[0].statement, TABLES["table1"][0], "synthetic world")
    assert text.index(answer) < min(text.index(word) for word in others)
    assert COMMAND in text
    assert str(SELECTION_SEED) in text


def test_rho_is_chosen_on_the_selection_seed_and_its_trials_are_shown(study: Study) -> None:
    assert f"Rho was chosen on seed {SELECTION_SEED}, which no verdict uses" in study.file("report.html")
    found = pd.read_csv(study.first.page.parent / "results.csv", low_memory=False)
    trials = found[found.table == f"choice of rho, seed {SELECTION_SEED}"]
    assert sorted(trials.rho.dropna().unique()) == [1.0, 5.0]


@pytest.mark.usefixtures("one_process")
def test_a_base_that_did_not_learn_ends_in_a_report_without_claims(study: Study) -> None:
    """No precondition lifted: this is what the tiny scale's model honestly gives."""
    told = Listener()
    chosen = Chosen(1.0, pd.DataFrame({"rho": [1.0], "harm": [0.0], "allowed": [True]}), none_found(), none_found())
    e, models = gather(Workbench(Store(study.root), told), SMALL, 0, ("table6",), chosen)
    assert e.attacks.empty
    assert list(models) == ["base, seed 0"]
    assert any(line.startswith("seed 0: the base model did not learn the task") for line in told.told)
    report = compose([e], [], {0: models}, SMALL, chosen, COMMAND)
    assert report.answer == "The base model did not learn its task, so no claim is drawn."
    assert (list(report.figures), dict(report.tables)) == ([], {})


@pytest.mark.usefixtures("one_process")
def test_a_selection_base_that_did_not_learn_ends_the_study(study: Study) -> None:
    with pytest.raises(TiterError, match=f"seed {SELECTION_SEED}, which chooses rho: the base model did not learn"):
        run_huang(Store(study.root), Listener(), SMALL.model_copy(update={"name": "untaught"}), [0], ("table6",), COMMAND)


def test_the_selection_seed_is_no_seed_of_the_study(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match=f"seed {SELECTION_SEED} chooses rho"):
        run_huang(Store(tmp_path), Listener(), SMALL, range(99, 102), FEW, COMMAND)
    assert not list(tmp_path.iterdir())


def test_parts_are_a_group_or_what_is_named() -> None:
    assert parts_of("all", "") == tuple(PARTS)
    assert set(parts_of("core", "")) == set(GROUPS["core"]) < set(PARTS)
    assert parts_of("all", " table6, fig4 ,") == ("table6", "fig4")
    with pytest.raises(TiterError, match=r"unknown part 'tabel6'.*did you mean 'table6'"):
        parts_of("all", "tabel6")
    with pytest.raises(TiterError, match=r"unknown part of the study 'cor'.*did you mean 'core'"):
        parts_of("cor", "")


@pytest.mark.parametrize("name", SCALES)
def test_every_part_that_trains_is_priced(name: str) -> None:
    table = cost.cost(SCALES[name], 3, parts_of("all", ""))
    assert (table.tflop > 0).all()
    assert {"base models", "choice of rho", *GROUPS["core"], "family", "search"} <= set(table.part)
    assert "hours of training" in cost.summary(table, 1e12)
    assert "hours" not in cost.summary(table, None)


def test_the_price_of_table_6_is_its_alignments_and_attacks() -> None:
    """Four radii beside the chosen one, each attacked at two ratios; per seed, the selection seed's apart."""
    one, three = (cost.cost(NANO, seeds, ("table6",)).set_index("part") for seeds in (1, 3))
    assert (one.alignments["table6"], one.attacks["table6"]) == (4, 10)
    assert one.steps["table6"] == 4 * 400 + 10 * 200
    assert three.tflop["table6"] == pytest.approx(3 * one.tflop["table6"])
    assert three.tflop["choice of rho"] == one.tflop["choice of rho"]
    assert three.steps["base models"] == 2 * one.steps["base models"]
