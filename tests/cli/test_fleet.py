"""Many tunes at once: a row and a section each, common work once, what fails told beside the others, the gate for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.conftest import Titer
from tests.conftest import llama
from titer.audit.kinds import KINDS, UNKNOWN
from titer.audit.roles import each
from titer.core.errors import TiterError
from titer.data.world import World

Wrong = Callable[..., str]
ASKED = ("--data", "d.csv", "--max-new-tokens", "2")


@pytest.fixture
def fleet(here: Path, world: World) -> tuple[str, ...]:
    """BASE ALIGNED T1 T2, two of the tunes with one folder name."""
    for seed, name in enumerate(("base", "aligned", "one/final", "two/final")):
        llama(world, seed).save(here / name)
    return ("base", "aligned", "one/final", "two/final")


def test_which_models_are_compared() -> None:
    assert each(["a"]) == [["a"]]
    assert each(["b", "a", "t"]) == [["b", "a", "t"]]
    assert each(["b", "a", "t", "u"]) == [["b", "a", "t"], ["b", "a", "u"]]
    assert each(["a", "t", "u"], base=False) == [["a", "t"], ["a", "u"]]
    assert each(["a", "t"], base=False) == [["a", "t"]]
    with pytest.raises(TiterError, match="--no-base with 1 model"):
        each(["a"], base=False)


@pytest.mark.long
def test_every_tune_has_a_row_a_section_and_a_page(titer: Titer, fleet: tuple[str, ...], here: Path) -> None:
    (here / "broken").mkdir()
    found = titer("audit", *fleet, "broken", *ASKED, "--json")
    assert found.status == 1  # a tune could not be measured: the others were
    rows = found.json["tunes"]
    assert {row["tune"] for row in rows[:2]} == {"one/final", "two/final"}
    assert rows[2]["tune"] == "broken"
    assert [row["looks like"] in {*KINDS, UNKNOWN} for row in rows] == [True, True, False]
    assert rows[2]["what broke"].startswith("not measured: ")
    assert "3 tunes" in json.loads((Path(found.json["report"]).parent / "summary.json").read_text())["title"]
    assert "1 could not be measured" in found.json["answer"]
    page = Path(found.json["report"]).read_text(encoding="utf-8").split("<script type")[0]
    for name in ("one/final", "two/final", "broken"):
        assert f"<h2>{name}</h2>" in page
    assert page.count("own page has every chart") == 2
    own = [place.parent / place.name for place in (here / "runs").glob("audit-*/report.html")]
    assert len(own) == 3
    results = pd.read_csv(Path(found.json["report"]).parent / "results.csv")
    rates = results[(results.table == "rates") & (results.measure == "refused")]
    assert sorted(rates[rates.set == "unsafe"].model) == ["aligned", "base", "one/final", "two/final"]  # none twice
    for kind, each_model in (("samples", 3), ("activations", 1)):  # three sets of prompts
        assert len([p for p in (here / "runs" / kind).iterdir() if p.is_dir()]) == 4 * each_model


@pytest.mark.long
def test_a_tune_in_the_fleet_has_the_numbers_that_it_has_alone(titer: Titer, fleet: tuple[str, ...], here: Path) -> None:
    many = titer("audit", *fleet[1:], "--no-base", *ASKED, "--json").json
    alone = titer("audit", "aligned", "two/final", *ASKED, "--json").json
    assert [row["kind"] in {*KINDS, UNKNOWN} for row in alone["kind"]] == [True]
    pages = {name: pd.read_csv(Path(one["report"]).parent / "results.csv") for name, one in (("many", many), ("alone", alone))}
    shift = {name: table[(table.table == "shift") & table.change.str.contains("→")] for name, table in pages.items()}
    mine = shift["many"][shift["many"].model == "two/final"]
    assert mine.value.tolist() == shift["alone"].value.tolist()
    assert mine.low.tolist() == shift["alone"].low.tolist()


@pytest.mark.long
def test_tunes_measured_by_processes_give_the_same_page_from_one_store(
    titer: Titer, wrong: Wrong, fleet: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("titer.core.parallel.processes", lambda: 2)
    (here / "broken").mkdir()
    there = titer("audit", *fleet, "broken", *ASKED, "--no-why", "--on", "processes", "--runs", "there", "--json")
    assert there.status == 1
    made = {place.parent for place in (here / "there").glob("*/*/DONE")}
    monkeypatch.setattr("titer.pipeline.Pipeline.lm", None)  # everything stands: no model is opened again
    again = titer("audit", *fleet, "broken", *ASKED, "--no-why", "--runs", "there", "--json")
    assert {place.parent for place in (here / "there").glob("*/*/DONE")} == made
    assert again.json["tunes"] == there.json["tunes"]
    assert "here, processes, ray" in wrong("audit", *fleet, *ASKED, "--on", "elsewhere")


@pytest.mark.long
def test_the_gate_is_for_every_tune(titer: Titer, fleet: tuple[str, ...], here: Path) -> None:
    limits = ("--fail-if", "unsafe_refused drops > 90", "--fail-if", "turned_layers > 99")
    found = titer("audit", *fleet, *ASKED, *limits, "--json")
    assert {(one["tune"], one["limit"]) for one in found.json["gate"]} == {
        (tune, limit) for tune in ("one/final", "two/final") for limit in limits[1::2]
    }
    missing = titer("audit", *fleet, "nowhere", *ASKED, *limits, "--junit", "g.xml", "--json")
    assert missing.status == 4  # what was not measured passes nothing
    assert [one["decided"] for one in missing.json["gate"] if one["tune"] == "nowhere"] == ["cannot resolve"] * 2
    assert 'classname="nowhere"' in (here / "g.xml").read_text()


def test_what_all_share_is_wrong_for_all(wrong: Wrong, fleet: tuple[str, ...], titer: Titer) -> None:
    assert "nowhere.csv" in wrong("audit", *fleet, "--data", "nowhere.csv")
    assert "nobody" in wrong("audit", "nobody", *fleet[1:], *ASKED)
    cost = titer("audit", *fleet, "nowhere", *ASKED, "--dry-run", "--json").json
    assert cost["models"].startswith("4, ")
    assert "nowhere is not measured" in cost
