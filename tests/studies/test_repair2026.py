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
from titer.core.run import Store
from titer.models.lm import Architecture
from titer.repairs.scale import Scale as Scaling
from titer.studies import repair2026
from titer.studies.engine.claims import settled
from titer.studies.engine.found import Found
from titer.studies.engine.run import run_study
from titer.studies.repair2026 import BROKEN, CONTROL, QUICK, REPAIRS, Repairs, area, curve, strength, strengths
from titer.studies.request import StudyRequest

HARMFUL = BROKEN["harmful"]


def table(points: dict[str, list[tuple[float, float, float, float]]], model: str = HARMFUL) -> pd.DataFrame:
    """Rows of the measure from repair -> (strength, unsafe, safe and user's requests answered); "none" is the model as it is."""
    rows = [
        {"model": model, "repair": name, "strength": at, "set": kind, "complied": share, "refused": 0.0}
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


def test_every_repair_has_as_many_strengths_and_its_neutral_setting_is_none_of_them() -> None:
    assert {len(grid) for _, grid in REPAIRS.values()} == {6}
    for repair, grid in REPAIRS.values():
        made = strengths(repair, grid)
        assert [at for at, _ in made] == list(grid)
        assert all(one.model_dump() != {**one.model_dump(), **type(repair).NEUTRAL} for _, one in made)


def test_a_repair_that_beats_scaling_on_every_base_is_said_to() -> None:
    def found(seed: int, base: int) -> Found:
        own = 0.01 * seed + 0.005 * base
        points = {name: [(grid[0], 0.4 + own, 0.9, 1.0)] for name, (_, grid) in REPAIRS.items()}
        points["resta"] = [(REPAIRS["resta"][1][0], 0.1 + own, 0.9, 1.0)]
        chosen = {(how, name): grid[0] for how in BROKEN for name, (_, grid) in REPAIRS.items()}
        return Found(seed, None, {"repaired": table({**BEFORE, **points})}, base=base, chosen=chosen)

    every = [found(seed, base) for seed in range(4) for base in range(2)]
    verdicts = {claim.name: claim.verdict for claim in settled(Repairs().claims(QUICK), every, Repairs.SOURCE)}
    assert verdicts["resta beats scaling"] == verdicts["resta has the better curve"] == verdicts["scaling repairs"] == "supported"
    assert verdicts["antidote beats scaling"] == "not supported"


def test_a_run_chooses_on_its_own_seed_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair2026, "REPAIRS", {CONTROL: (Scaling(), (0.5, 0.0)), "antidote": (REPAIRS["antidote"][0], (0.1,))})
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    base = QUICK.base.model_copy(
        update={"architecture": Architecture(layers=2, width=16, heads=2), "pretrain_steps": 4, "pretrain_batch": 8}
    )
    tunes = QUICK.tunes.model_copy(update={"align_steps": 2, "align_batch": 8, "user_examples": 24})
    scale = QUICK.model_copy(update={"name": "tiny", "base": base, "tunes": tunes, "harmful": 4, "epochs": 1, "inputs": 8})
    asked = StudyRequest("repair2026", "tiny", (0,), bases=1)
    page, answer = run_study(Repairs(), asked, scale, Store(tmp_path), Listener(), "titer study")
    assert "scaling of the change leaves" in answer
    claims = json.loads((page.parent / "claims.json").read_text())["claims"]
    assert {claim["name"] for claim in claims} == {"scaling repairs", "antidote beats scaling", "antidote has the better curve"}
    assert {claim["verdict"] for claim in claims} <= {"inconclusive", "not testable"}
