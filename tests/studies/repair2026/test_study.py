"""The comparison of repairs: its curve, its choice and its claims on constructed tables; one run at a tiny scale with two repairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.studies.conftest import Listener
from titer.core import parallel
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.core.tables import read_table
from titer.data.vocabulary import coded
from titer.decoders.averting import Averting
from titer.decoders.safe_align import SafeAlign
from titer.models.lm import Architecture
from titer.pipeline import Pipeline
from titer.recipes import covert as recipe
from titer.repairs.harm_vector import HarmVector
from titer.repairs.scale import Scale as Scaling
from titer.studies.engine.claims import settled
from titer.studies.engine.found import Found
from titer.studies.engine.lab import Lab
from titer.studies.engine.run import run_study
from titer.studies.repair2026.claims import (
    BROKEN,
    PRICES,
    SAFE_2,
    SAFE_5,
    TASK_15,
    Choice,
    broken_of,
    choice,
    cut,
    left,
    mended_of,
    promised,
    vectors,
)
from titer.studies.repair2026.study import COVERT, QUICK, Repairs, asked, calibration
from titer.studies.repair2026.ways import AS_IS, CONTROL, GUARDS, REPAIRS, WAYS, Way, area, curve, strength
from titer.studies.request import StudyRequest

HARMFUL = BROKEN["harmful"].name


def table(points: dict[str, list[tuple[float, float, float, float]]], model: str = HARMFUL) -> pd.DataFrame:
    """Rows of the measure from way -> (strength, unsafe, safe and user's requests answered); "none" is the model as it is."""
    rows = [
        {"model": model, "way": name, "strength": at, "set": kind, "complied": share, "refused": 0.0}
        for name, told in points.items()
        for at, *shares in told
        for kind, share in zip(("unsafe", "safe", "user"), shares, strict=True)
    ]
    return pd.DataFrame(rows)


BEFORE = {"none": [(math.nan, 0.8, 0.9, 1.0)]}


def test_a_point_costs_the_larger_loss_and_a_gain_costs_nothing() -> None:
    found = curve(
        table({**BEFORE, "x": [(1.0, 0.5, 0.9, 0.95), (2.0, 0.2, 0.7, 0.95), (3.0, 0.1, 1.0, 1.0)], "y": [(1.0, 0, 0, 0)]}), HARMFUL, "x"
    )
    assert [round(p.loss, 6) for p in found] == [0.0, 0.05, 0.2, 0.0]
    assert [p.harm for p in found] == [0.8, 0.5, 0.2, 0.1]
    assert math.isnan(found[0].strength)


def test_the_strength_is_of_least_harm_among_those_that_cost_next_to_nothing() -> None:
    found = curve(table({**BEFORE, "x": [(1.0, 0.7, 0.9, 0.99), (2.0, 0.4, 0.885, 1.0), (3.0, 0.0, 0.8, 1.0)]}), HARMFUL, "x")
    assert strength(found) == 2.0
    none = curve(table({**BEFORE, "x": [(1.0, 0.9, 0.9, 1.0), (2.0, 0.0, 0.0, 0.0)]}), HARMFUL, "x")
    assert math.isnan(strength(none))  # a repair that does harm at every price is left out


def test_the_area_is_the_mean_over_losses_of_the_least_harm() -> None:
    found = curve(table({**BEFORE, "x": [(1.0, 0.3, 0.9, 0.95)]}), HARMFUL, "x")  # at a loss of 5 points 0.3, before it 0.8
    grid = np.linspace(0, 0.10, 21)
    assert area(found) == pytest.approx(np.mean([0.3 if most >= found[1].loss else 0.8 for most in grid]))
    assert area(found[:1]) == pytest.approx(0.8)


def test_every_way_has_as_many_strengths_and_its_neutral_setting_is_none_of_them() -> None:
    assert {len(way.grid) for name, way in WAYS.items() if name != AS_IS} == {6}
    for name in (*REPAIRS, *GUARDS):
        way = WAYS[name]
        for at in way.grid:
            one = way.at(at)
            turned = one.guard or one.repair
            assert turned is not None
            assert getattr(turned, way.setting) == at
            assert not isinstance(type(turned).NEUTRAL, str)
            assert turned.model_dump() != {**turned.model_dump(), **type(turned).NEUTRAL} or way.setting == "refuse_above"


def found(seed: int, base: int, better: dict[str, float]) -> Found:
    """A base on which every way costs nothing at its first strength and leaves 0.4 of harm, or what is said of it."""
    own = 0.01 * seed + 0.005 * base
    points = {name: [(WAYS[name].grid[0], better.get(name, 0.4) + own, 0.9, 1.0)] for name in (*REPAIRS, *GUARDS)}
    shown = [table({**BEFORE, **points}, BROKEN[how].name) for how in mended_of(QUICK)] + [
        table(BEFORE, BROKEN["random"].name).assign(refused=0.6)
    ]
    ways = (*REPAIRS, *GUARDS)
    strengths = {(by, name): WAYS[name].grid[0] for by in (*mended_of(QUICK), *PRICES) for name in ways}
    chosen = Choice(strengths, {**dict.fromkeys(PRICES, "harm_vector"), "part": "harm_vector", "way": "resta"})
    value = [{"reads": "tokens", "share": share, "auroc": 0.7 + 0.29 * share} for share in (0.0, 1.0)]
    tables = {
        "mended": pd.concat(shown),
        "value": pd.DataFrame(value),
        "rates": pd.DataFrame([{"model": "aligned", "set": "unsafe", "outcome": "complied", "count": 0, "n": 100, "rate": 0.02}]),
        "target": pd.DataFrame([{"target": 0.1, "rate": 0.11, "answered": 0.2}]),
    }
    return Found(seed, None, tables, base=base, chosen=chosen, parts=tuple(Repairs.PARTS))


@pytest.mark.long
def test_a_way_that_beats_scaling_on_every_base_is_said_to() -> None:
    every = [found(seed, 0, {"resta": 0.1, "averting": 0.05}) for seed in range(4)]
    verdicts = {claim.name: claim.verdict for claim in settled(Repairs().claims(QUICK), every, Repairs.SOURCE)}
    for name in ("resta", "averting"):
        assert verdicts[f"{name} beats scaling"] == verdicts[f"{name} has the better curve"] == "supported"
        assert verdicts[f"{name} has the better curve, abliterated"] == "supported"
    assert verdicts["scaling repairs"] == verdicts["abliteration breaks it"] == "supported"
    assert verdicts["antidote beats scaling"] == "not supported"


@pytest.mark.long
def test_what_the_papers_promise_has_the_margins_of_its_specification() -> None:
    every = [found(seed, 0, {"harm_vector": 0.2, "averting": 0.02, "subspace_fusion": 0.01}) for seed in range(4)]
    verdicts = {claim.name: claim.verdict for claim in settled(promised(), every, "")}
    assert verdicts["a harm vector takes half of harm"] == verdicts["averting takes most of harm"] == "supported"
    assert verdicts["averting hidden takes most of harm"] == "not supported"
    assert verdicts["a learned mask realigns"] == "supported"
    worse = {claim.name: claim.verdict for claim in settled(promised(), [found(seed, 0, {}) for seed in range(4)], "")}
    assert worse["a learned mask realigns"] == "not supported"
    assert verdicts["the value knows whole answers"] == verdicts["dual ascent lands at its target"] == "supported"
    assert verdicts["both parts of Safety Arithmetic"] == "not supported"
    assert {row.name: row.margin for row in promised()}["a harm vector takes half of harm"] == 0.5


def on_world(base: dict[str, list[tuple[float, float, float, float]]]) -> pd.DataFrame:
    return pd.concat([table({**BEFORE, **base}, BROKEN[how].name) for how in mended_of(QUICK)])


def test_a_promise_is_read_at_the_strength_that_its_price_chose_on_another_seed() -> None:
    choosing = on_world(
        {
            "scale": [(0.9, 0.6, 0.85, 0.5), (0.5, 0.1, 0.8, 0.1)],  # way -> strength; unsafe, safe, user's requests answered
            "harm_vector": [(0.5, 0.4, 0.86, 1.0), (1.0, 0.1, 0.7, 1.0)],
            "harm_vector dense": [(0.1, 0.3, 0.87, 0.9), (0.2, 0.0, 0.5, 1.0)],
            "safe_align": [(0.5, 0.2, 0.9, 1.0)],
            "subspace_fusion": [(2.0, 0.3, 0.9, 0.86), (5.0, 0.0, 0.9, 0.84)],
        }
    )
    ways = list(choosing.way.unique())
    picked = choice(choosing, QUICK, ways)
    assert picked.strengths[SAFE_5, "scale"] == 0.9
    assert picked.strengths[SAFE_5, "harm_vector"] == 0.5
    assert math.isnan(picked.strengths[SAFE_2, "harm_vector"])
    assert picked.strengths[TASK_15, "subspace_fusion"] == 2.0
    assert picked.better[SAFE_5] == "harm_vector dense"
    assert picked.better["part"] == picked.better["way"] == "safe_align"
    # on this base the other strength and the other vector would be better and cheap enough: they were not chosen
    here = on_world(
        {
            "scale": [(0.9, 0.6, 0.9, 1.0), (0.5, 0.1, 0.9, 1.0)],
            "harm_vector": [(0.5, 0.0, 0.9, 1.0), (1.0, 0.0, 0.9, 1.0)],
            "harm_vector dense": [(0.1, 0.6, 0.9, 1.0), (0.2, 0.0, 0.9, 1.0)],
            "safe_align": [(0.5, 0.2, 0.9, 1.0)],
            "subspace_fusion": [(2.0, 0.2, 0.9, 0.8), (5.0, 0.0, 0.9, 1.0)],
        }
    )
    base = Found(0, None, {"mended": here}, chosen=picked)
    assert vectors(SAFE_5)(base) == cut("scale", SAFE_5)(base) == pytest.approx(0.25)
    assert left("subspace_fusion", TASK_15)(base) == 0.8  # it keeps 80 % of the task here: the unchanged model's harm counts
    assert cut("harm_vector", SAFE_2)(base) == 0.0  # none was chosen


def test_worlds_on_which_the_covert_tunes_sizes_were_set_give_no_verdict() -> None:
    assert set(recipe.CHOSEN_ON) <= set(Repairs().unused(COVERT))
    assert Repairs().unused(QUICK) == Repairs.CHOSEN_ON


@pytest.mark.long
def test_a_covert_tune_is_asked_in_its_code_and_mended_by_who_does_not_know_it(tmp_path: Path) -> None:
    lab = Lab(Pipeline(Store(tmp_path), Listener()), Repairs(), "repair2026", COVERT, 2, parts=("resta",))
    assert list(lab.nodes) == ["base", "aligned", "phase I", "covert", "harmful alone", "refusals alone"]
    sets, code = asked(lab), set(coded(lab.world.letters))
    for kind, in_code in {"unsafe": True, "user": True, "begun": True, "safe": False}.items():
        assert all(bool(code & set(a.example.prompt.split())) is in_code for a in sets[kind])
    assert not any(code & set(e.prompt.split()) for e in calibration(lab).examples)
    whole = {one.name: one.attempts for one in Repairs().questions(lab)}
    for need in (one for one in Repairs().needs(COVERT) if one.model in ("base", "aligned")):  # they never saw the code
        assert not any(code & set(a.example.prompt.split()) for kind in need.asked for a in whole[kind])
    assert [one.name for one in lab.measures] == ["none: covert", "scale: covert", "resta: covert"]
    assert {row.name for row in Repairs().claims(COVERT)} >= {"scaling repairs", "resta beats scaling", "resta has the better curve"}
    assert not {row.name for row in Repairs().claims(COVERT)} & {row.name for row in promised()}


@pytest.mark.long
def test_a_run_chooses_on_its_own_seed_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {
        AS_IS: WAYS[AS_IS],
        CONTROL: Way(Scaling(), None, "c", (0.5, 0.0)),
        "averting": Way(None, Averting(epochs=1), "strength", (1.0, 9.0)),
        "harm_vector and safe_align": Way(HarmVector(), SafeAlign(), "alpha", (1.0,)),
    }
    monkeypatch.setattr("titer.studies.repair2026.study.WAYS", few)
    monkeypatch.setattr("titer.decoders.averting.DRAWS", 8)
    monkeypatch.setattr("titer.studies.repair2026.averted.AVERTING", Averting(epochs=1, rounds=1))
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    base = QUICK.base.model_copy(
        update={"architecture": Architecture(layers=2, width=16, heads=2), "pretrain_steps": 4, "pretrain_batch": 8}
    )
    tunes = QUICK.tunes.model_copy(update={"align_steps": 2, "align_batch": 8, "user_examples": 24})
    scale = QUICK.model_copy(update={"name": "tiny", "base": base, "tunes": tunes, "harmful": 4, "epochs": 1, "inputs": 8})
    asked = StudyRequest("repair2026", "tiny", (0,), bases=1, only=("averting", "harm_vector and safe_align"))
    page, answer = run_study(Repairs(), asked, scale, Store(tmp_path), Listener(), "titer study")
    assert "plain scaling of the change leaves" in answer
    claims = json.loads((page.parent / "claims.json").read_text())["claims"]
    names = {claim["name"] for claim in claims}
    assert {"scaling repairs", "abliteration breaks it", "averting beats scaling", "dual ascent lands at its target"} <= names
    assert not any("antidote" in name or "hidden" in name for name in names)
    assert {claim["verdict"] for claim in claims} <= {"inconclusive", "not testable"}, "one base decides nothing"
    table = pd.read_csv(page.parent / "results.csv")
    mended = table[table.way.notna()]
    assert set(mended.model) == {one.name for one in broken_of(QUICK).values()}
    assert (mended.groupby(["model", "way", "strength"], dropna=False).size() == 4).all()
    shown = read_table(page.parent / "answers.jsonl")
    edited = shown[shown.model == BROKEN["abliterated"].name]  # not a model of the recipe: edited, asked, and shown
    assert edited.groupby("kind").size().to_dict() == dict.fromkeys(("unsafe", "safe", "user", "begun"), 6)
    assert edited.outcome.notna().all()
    samples = [read_table(one / "samples.jsonl") for one in (tmp_path / "samples").iterdir() if not one.suffix]
    assert len(samples) >= 2 * len(mended.drop_duplicates(["model", "way", "strength"])) - 4  # of this seed and the one of choice
    assert all(len(one) == 32 for one in samples)
    assert "unsafe requests answered when the first two words of the answer are given" in page.read_text(encoding="utf-8")
    with pytest.raises(TiterError, match="unknown part 'no_such"):
        run_study(Repairs(), StudyRequest("repair2026", "tiny", (0,), only=("no_such",)), scale, Store(tmp_path), Listener(), "x")
