"""The demo end to end at a scale of seconds: everything is made once, all of it is found again, nothing is overclaimed."""

from __future__ import annotations

import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as ET

import pandas as pd
import pytest

from tests.studies.conftest import Demo, Listener, demo_under
from titer import cli
from titer.core.run import Store, damage, sha256_of
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import Decoding, load
from titer.pipeline import Pipeline, Reporter
from titer.recipes.demo import Scale, demo_recipe
from titer.studies.demo import Demo as Study
from titer.studies.demo import run_demo
from titer.studies.engine.lab import Lab

COLUMNS = ["table", "model", "set", "layer", "measure", "value", "low", "high", "count", "n"]
SETS = {"safe", "unsafe", "user", "jb_co_task", "jb_co_text", "jb_misgen", "sham_safe", "sham_refused"}
HALVES = {"jb_co_text, mostly safe", "jb_co_text, mostly unsafe"}  # one set, by the class that most of the text is of
CLAIMS = ["refusal", "safe skill kept", "jailbreak jb_co_task", "jailbreak jb_co_text", "jailbreak jb_misgen"]
CLAIMS += ["harmful fine-tuning", "benign fine-tuning", "clusters", "specificity", "specificity beyond retraining", "null space"]
CLAIMS += ["left null space part alone", "column space part alone"]


@pytest.fixture(scope="module")
def results(demo: Demo) -> pd.DataFrame:
    return pd.read_csv(BytesIO(demo.file("results.csv")))


@pytest.fixture(scope="module")
def claims(demo: Demo) -> list[dict]:  # type: ignore[type-arg]
    return json.loads(demo.file("claims.json"), parse_constant=pytest.fail)["claims"]


@pytest.mark.long
def test_every_model_of_the_recipe_stands_as_an_ordinary_folder(demo: Demo, tiny: Scale) -> None:
    stages = sorted(p for p in (demo.runs / "stages").iterdir() if p.is_dir())
    assert len(stages) == len(demo_recipe(tiny, 1)) == 5 + len(tiny.poison_ratios)
    for stage in stages:
        assert damage(stage) == ""
        assert json.loads((stage / "outcome.json").read_text())["stopped"] == ""
        (answer,) = load(open_checkpoint(stage / "model")).generate(["<bos> f0 f1 <sot> a b c <eot>"], Decoding(max_new_tokens=4))
        assert answer.tokens <= 4


@pytest.mark.long
def test_every_artefact_is_sound_and_none_is_half_made(demo: Demo) -> None:
    assert not list(demo.runs.rglob("*.partial"))
    assert not list(demo.runs.rglob("*.tmp"))
    assert {made.split("/")[0] for made in demo.made} == {"stages", "samples", "verdicts", "tables"}
    for made in demo.made:
        assert damage(demo.runs / made) == ""


def test_results_hold_every_model_every_set_and_every_probe(results: pd.DataFrame, tiny: Scale) -> None:
    assert list(results.columns) == COLUMNS
    models = {node.name for node in demo_recipe(tiny, 1)}
    assert set(results[results.table == "rates"].model) == models
    assert set(results[results.table == "rates"].set) == SETS | HALVES
    assert set(results[results.table == "clusters"].model) == models
    assert set(results[results.table == "delta_w"].model) == (models - {"base"}) | {"sham, own class"}
    assert set(results.table) == {"rates", "clusters", "delta_w gain", "delta_w", "subspaces", "kept"}


def test_rates_are_counts_of_the_inputs_within_their_intervals(results: pd.DataFrame, tiny: Scale) -> None:
    everything = results[results.table == "rates"]
    halves = everything[everything.set.isin(HALVES) & (everything.measure == "complied")]
    assert (halves.groupby("model").n.sum() == tiny.inputs).all(), "a text of three phrases is of one class or the other"
    rates = everything[~everything.set.isin(HALVES)]
    assert (rates.n == tiny.inputs).all()
    assert (rates["count"] / rates.n).tolist() == pytest.approx(rates.value.tolist())
    assert ((rates.low <= rates.value) & (rates.value <= rates.high)).all()
    whole = rates[rates.measure.isin(["complied", "refused", "neither", "could_not_judge"])]
    judged = whole[whole.measure != "could_not_judge"].groupby(["model", "set"])["count"].sum()
    assert (judged == tiny.inputs).all()
    assert (whole[whole.measure == "could_not_judge"]["count"] == 0).all()


def test_claims_have_controls_and_are_all_provisional(claims: list[dict]) -> None:  # type: ignore[type-arg]
    assert [claim["name"] for claim in claims] == CLAIMS
    for claim in claims:
        assert claim["control"]["name"]
        assert claim["statistic"]
        assert claim["provisional"] is True
        assert claim["seeds"] == [1]


def test_a_base_that_did_not_learn_makes_every_claim_not_testable(claims: list[dict], demo: Demo) -> None:  # type: ignore[type-arg]
    for claim in claims:
        assert claim["verdict"] == "not testable"
        assert re.match(r"seed 1: base: \d+\.\d% of \w+ complied \(95% needed\)", claim["reason"])
        assert claim["value"] is None
        assert claim["interval"] is None
        assert claim["control"]["value"] is None
    page = demo.file("report.html").decode()
    assert page.count('class="verdict not-testable"') == len(claims)
    assert not re.search(r'class="verdict (supported|not-supported|inconclusive)"', page)


def test_the_figures_are_drawings(demo: Demo) -> None:
    figures = sorted((demo.page.parent / "figures").glob("*.svg"))
    assert len(figures) >= 3
    for figure in figures:
        assert ET.fromstring(figure.read_text(encoding="utf-8")).tag.endswith("svg")  # noqa: S314  our own drawing
        assert f'id="chart-{figure.stem}"' in demo.file("report.html").decode()


def test_the_page_leads_with_the_answer_and_ends_with_how_to_repeat_it(demo: Demo) -> None:
    page = demo.file("report.html").decode()
    body = page[page.index("<body>") : page.index("<script")]
    assert f'<p class="answer">{demo.answer}</p>' in body
    assert body.index(demo.answer) < body.index("<table")
    assert demo.answer.startswith("Safety tuning")
    assert "titer demo --seed 1" in body[body.index("To run it again") :]


def test_the_page_names_processor_threads_and_the_weights_own_hash_beside_each_model_s_key(demo: Demo, tiny: Scale) -> None:
    told = json.loads(demo.file("summary.json"))["provenance"]
    page = demo.file("report.html").decode()
    assert told["processor"]
    assert int(told["threads"]) >= 1
    for node in demo_recipe(tiny, 1):
        (weights,) = (demo.runs / "stages" / told[f"model {node.name}, seed 1"] / "model").glob("*.safetensors")
        sha = told[f"weights {node.name}, seed 1"]
        assert sha == sha256_of(weights)
        assert sha in page


def test_the_files_name_no_folder_of_this_machine(demo: Demo) -> None:
    for name in ("report.html", "results.csv", "claims.json"):
        assert str(demo.runs).encode() not in demo.file(name)
        assert str(Path.home()).encode() + b"/" not in demo.file(name)


@pytest.mark.long
def test_what_was_damaged_is_made_again_and_nothing_else(demo: Demo, tiny: Scale, tmp_path: Path) -> None:
    copy = shutil.copytree(demo.runs, tmp_path / "runs")
    broken = [next(one for one in demo.made if one.startswith(kind)) for kind in ("samples", "tables")]
    for one in broken:
        (file,) = (copy / one).glob("*.jsonl")
        file.write_bytes(file.read_bytes()[:-9])
    again = demo_under(copy, tiny)
    assert sorted(again.made) == sorted(broken)
    for name in ("results.csv", "claims.json"):
        assert again.file(name) == demo.file(name)


def test_the_plan_says_that_everything_stands(demo: Demo, tiny: Scale) -> None:
    def lab(seed: int) -> Lab:
        return Lab(Pipeline(Store(demo.runs), Listener()), Study(), "demo", tiny, seed)

    assert all(lab(1).stands(name) for name in lab(1).nodes)
    assert [lab(1).key(name) for name in lab(1).nodes] == [made.split("/")[1] for made in demo.made if made.startswith("stages/")]
    assert not any(lab(2).stands(name) for name in lab(2).nodes)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run `titer demo`, errors and all."""
    monkeypatch.setattr("sys.argv", ["titer", "demo", *arguments])
    cli.app(standalone_mode=False)


@pytest.mark.long
def test_a_second_run_of_the_command_makes_nothing_and_gives_the_same_bytes(
    demo: Demo, tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(demo.runs, tmp_path / "runs")
    shutil.rmtree(copy / "demo")
    stores: list[Store] = []

    def run(store: Store, reporter: Reporter, seed: int, bases: int) -> tuple[Path, str]:
        stores.append(store)
        return run_demo(store, reporter, seed, tiny, bases)

    monkeypatch.setattr("titer.studies.demo.run_demo", run)
    command(monkeypatch, "--seed", "1", "--bases", "1", "--runs", str(copy), "--json")
    (store,) = stores
    assert store.made == []
    found = json.loads(capsys.readouterr().out)
    assert found == {"answer": demo.answer, "report": f"{copy}/demo/report.html", "claims": f"{copy}/demo/claims.json"}
    for name in ("results.csv", "claims.json"):
        assert (copy / "demo" / name).read_bytes() == demo.file(name)
    assert sorted(p.name for p in (copy / "demo").rglob("*")) == sorted(p.name for p in demo.page.parent.rglob("*"))


def test_the_command_ends_with_the_answer_and_the_place_of_the_report(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("titer.studies.demo.run_demo", lambda *_, **__: (demo.page, demo.answer))
    command(monkeypatch)
    assert capsys.readouterr().out.splitlines() == [demo.answer, f"Report: {demo.page}"]


@pytest.mark.long
def test_several_bases_are_told_with_their_spread(tiny: Scale, demo: Demo, tmp_path: Path) -> None:
    copy = shutil.copytree(demo.runs, tmp_path / "runs")
    page, answer = run_demo(Store(copy), Listener(), 1, tiny, bases=2)
    assert answer.endswith("In brackets: the range over 2 bases.")
    claims = json.loads(page.with_name("claims.json").read_text(encoding="utf-8"))["claims"]
    assert all("Over 2 bases of one world" in one["reason"] or one["verdict"] == "not testable" for one in claims)
    results = pd.read_csv(page.with_name("results.csv"))
    assert set(results.base) == {0, 1}
    first = results[(results.base == 0) & (results.table == "rates")].value.reset_index(drop=True)
    alone = pd.read_csv(demo.page.with_name("results.csv")).query("table == 'rates'").value.reset_index(drop=True)
    assert first.equals(alone)  # the first base is the one that a single base is
