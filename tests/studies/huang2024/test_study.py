"""The whole study at a tiny scale: what it leaves, a second call, the answer first, its price, wrong names."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.huang2024.conftest import TINY, lab_under, relax
from titer import pipeline
from titer.commands.training_cost import passes
from titer.core import parallel
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.methods.vaccine import Vaccine as VaccineMethod
from titer.models.lm import load
from titer.recipes.huang2024 import NANO, SELECTION_SEED, Scale
from titer.studies.engine.price import price
from titer.studies.engine.run import gathered, paged, run_study
from titer.studies.huang2024.attack import budget_of
from titer.studies.huang2024.parts import GROUPS, PARTS
from titer.studies.huang2024.study import Vaccine
from titer.studies.huang2024.tables import TABLES
from titer.studies.request import StudyRequest

FEW = ("curves", "table1")
COMMAND = "titer study huang2024 --scale tiny"
SMALL = TINY.model_copy(update={"ratios": (0.05,), "table_ratios": (0.05,), "keep": (4,), "align_seeds": 1})


def run(root: Path, store: Store, scale: Scale = SMALL, seeds: Sequence[int] = (0,), parts: tuple[str, ...] = FEW) -> tuple[Path, str]:
    """The study's page and its answer."""
    return run_study(Vaccine(), StudyRequest("huang2024", scale.name, seeds, parts, bases=1), scale, store, Listener(), COMMAND)


@dataclass(frozen=True)
class Study:
    """A finished study, run twice over; `loaded`: the models that the second call loaded."""

    root: Path
    page: Path
    answers: tuple[str, str]
    made: int
    loaded: list[str]

    def file(self, name: str) -> str:
        return (self.page.parent / name).read_text(encoding="utf-8")

    @property
    def results(self) -> pd.DataFrame:
        return pd.read_csv(self.page.parent / "results.csv", low_memory=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        relax(patch)
        patch.setattr("titer.studies.huang2024.choice.COST", 9.0)
        patch.setattr(parallel, "processes", lambda: 1)
        place, first = run(root, Store(root))
        loaded, store = [], Store(root)
        patch.setattr(pipeline, "load", lambda checkpoint, **how: loaded.append(checkpoint.label) or load(checkpoint, **how))
        _, again = run(root, store)
        return Study(root, place, (first, again), len(store.made), loaded)


def test_it_leaves_a_page_its_claims_and_every_judged_step(study: Study) -> None:
    assert study.page == study.root / "huang2024-tiny" / "report.html"
    told = json.loads(study.file("claims.json"))["claims"]
    assert len({one["name"] for one in told}) == len(told)
    assert all(one["provisional"] for one in told)
    found = study.results
    assert {"attacks", TABLES["table1"][0], "before the attack"} <= set(found.table)
    rows = found[(found.table == "attacks") & (found.measure == "harm")]
    assert {"non-aligned", "sft", "sft, equal loss", "noise", "vaccine", "lisa"} <= set(rows.defence)
    assert set(rows.step) == {0, 4}
    assert set(rows.seed) == {0}, "the selection seed's attacks are no results"


def test_a_second_call_makes_nothing_loads_nothing_and_says_the_same(study: Study) -> None:
    assert study.made == 0
    assert study.loaded == []
    assert study.answers[0] == study.answers[1]


def test_the_report_has_the_answer_before_all_else(study: Study) -> None:
    text = html.unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<head>.*?</head>", "", study.file("report.html"), flags=re.S))
    answer = study.answers[0]
    assert "comparisons" in answer
    assert answer in text
    others = ("Rho was chosen", json.loads(study.file("claims.json"))["claims"][0]["statement"], TABLES["table1"][0], "synthetic world")
    assert text.index(answer) < min(text.index(word) for word in others)
    assert COMMAND in text
    assert str(SELECTION_SEED) in text


def test_rho_is_chosen_on_the_selection_seed_and_its_trials_are_shown(study: Study) -> None:
    assert f"Rho was chosen on seed {SELECTION_SEED}, which no verdict uses" in study.file("report.html")
    found = study.results
    trials = found[found.table == f"choice of rho, seed {SELECTION_SEED}"]
    assert sorted(trials.rho.dropna().unique()) == [1.0, 5.0]


def test_samples_of_alignments_and_of_the_tables_attack_are_shown(study: Study) -> None:
    text = study.file("report.html")
    assert "vaccine, rate 0.0001, p = 0.05, n = 100, 4 steps" in text
    assert "SFT, alignment seed 2" not in text, "one alignment seed was asked for"


@pytest.mark.usefixtures("one_process")
def test_a_base_that_did_not_learn_ends_in_a_report_without_claims(study: Study) -> None:
    """No precondition lifted on the study's seed: this is what the tiny scale's model honestly gives."""
    told = Listener()
    lab = lab_under(study.root, scale=SMALL, reporter=told)
    lab.parts = ("table6",)
    (found,), _ = gathered([lab], "huang2024")
    assert list(found.keys) == ["base"]
    assert any(line.startswith("seed 0, base 0: base: ") for line in told.told)
    shown = paged(Vaccine(), [found], SMALL, [])
    assert shown.answer == "The base model did not learn its task, so no claim is drawn."
    assert (list(shown.figures), dict(shown.tables)) == ([], {})


@pytest.mark.usefixtures("one_process")
def test_a_selection_base_that_did_not_learn_ends_the_study(study: Study) -> None:
    with pytest.raises(TiterError, match=f"seed {SELECTION_SEED}, on which sizes are chosen: base: "):
        run(study.root, Store(study.root), SMALL.model_copy(update={"name": "untaught"}), parts=("table6",))


def test_the_selection_seed_is_no_seed_of_the_study(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match=f"seed {SELECTION_SEED}, so no verdict may use it"):
        run(tmp_path, Store(tmp_path), seeds=range(99, 102))
    assert not list(tmp_path.iterdir())


def test_groups_are_of_known_parts() -> None:
    assert set(GROUPS["core"]) < set(PARTS)
    assert set(TABLES) <= set(PARTS)


def test_the_price_of_table_6_is_its_alignments_and_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed: the radii aligned, each attacked twice. The choosing seed: SFT too."""
    monkeypatch.setattr(Vaccine, "SCALES", {"nano": SMALL})
    table, words = price(StudyRequest("huang2024", seeds=range(2), only=("table6",), bases=1, flops=1e12), Store(tmp_path / "runs"))
    assert re.search(r"memory: about 0\.[678] GiB a piece, \d\.\d GiB on the \d+ places of this machine", words)
    most = re.search(r"(\d+) places about (\S+) hours; more do not help", words)
    assert most
    whole, longest = table.tflop.sum(), table.groupby(["seed", "base"]).tflop.sum().max()
    assert 1 < int(most[1]) <= whole / (longest / 10) + 1
    assert float(most[2]) == pytest.approx(0, abs=0.01)
    assert table.memory.between(0.6e9, 0.9e9).all()  # a worker of such sizes was seen to hold 0.61 to 0.93 GB
    rhos = len(SMALL.rhos)
    counted = {(seed, kind): len(own) for (seed, kind), own in table.groupby(["seed", "kind"])}
    assert counted[SELECTION_SEED, "align"] == 1 + rhos
    assert counted[SELECTION_SEED, "finetune"] == 2 * (1 + rhos)
    for seed in (0, 1):
        assert (counted[seed, "pretrain"], counted[seed, "align"], counted[seed, "finetune"]) == (1, rhos, 2 * rhos)
    perturbed = table[table.model.str.startswith("Vaccine")].tflop.iloc[0] / table[table.model == "SFT"].tflop.iloc[0]
    assert perturbed == pytest.approx(5 / 3), "a forward pass and a backward to activations more"
    assert (passes(VaccineMethod(every=10)), passes(VaccineMethod(noise="norm"))) == (3.2, 3.0), "at one step in ten; none"
    assert "hours" in words
    assert not (tmp_path / "runs").exists()


def test_a_budget_goes_on_to_the_last_judged_step(tmp_path: Path) -> None:
    assert budget_of(lab_under(tmp_path, scale=NANO)).steps == max(NANO.keep)
