"""The study of emulated disalignment at a tiny scale: the ends of its sweep are the two models; its claims on constructed evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.jain2024.conftest import TINY
from titer.core import parallel
from titer.core.run import Store
from titer.data.world import World
from titer.studies import emulated
from titer.studies.emulated import BENIGN, NANO, OPEN, EmulatedDisalignment, garbage, named, opened, page
from titer.studies.engine.claims import settled
from titer.studies.engine.found import Found
from titer.studies.engine.run import run_study
from titer.studies.request import StudyRequest

STUDY = EmulatedDisalignment()
SCALE = NANO.model_copy(
    update={"name": "tiny", "base": TINY, "open_steps": 1, "aligned": (1, 2), "alphas": (-2.0, -1.0, 0.0, 0.1, 1.0), "inputs": 8}
)


def test_the_open_base_sees_as_many_unsafe_requests_answered_as_refused() -> None:
    parts = opened(NANO, World()).streams["train"].parts
    shares = {(one.source.kind, one.answer): one.share for one in parts}  # type: ignore[attr-defined]
    assert shares["unsafe", "comply"] == shares["unsafe", "refuse"] == pytest.approx((1 - shares["safe", "comply"]) / 2)


@pytest.mark.long
def test_a_run_sweeps_every_model_and_its_ends_are_the_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    monkeypatch.setattr(emulated, "LEARNED", -1.0)
    page = run_study(STUDY, StudyRequest("emulated", "tiny", (0,), bases=1), SCALE, Store(tmp_path), Listener(), "titer study emulated")[0]
    told = json.loads(page.with_name("claims.json").read_text(encoding="utf-8"))["claims"]
    assert {one["name"] for one in told} == {one.name for one in STUDY.claims(SCALE)}
    assert all(one["value"] is not None for one in told)
    results = pd.read_csv(page.with_name("results.csv"))
    swept, rates = results[results.table == "swept"], results[results.table == "rates"]
    assert set(swept.alpha) == set(SCALE.alphas)
    assert set(swept.model) == {named(1), named(2), BENIGN}
    keys = ["set", "outcome"]
    for model in set(swept.model):
        for alpha, plain in ((-1.0, model), (0.0, OPEN)):
            mine = swept[(swept.model == model) & (swept.alpha == alpha)].set_index(keys).rate
            assert mine.to_dict() == rates[rates.model == plain].set_index(keys).rate.to_dict()
    assert "The ED gap of the model aligned for 2 steps is" in page.read_text(encoding="utf-8")


def evidence(gap: float, benign: float, weak: float, garbage: float, amplified: float, cost: float, seed: int) -> Found:
    """A seed in which the strongest alignment gains `gap` at the worst alpha and the others as said."""
    rows = []
    for model in (*map(named, NANO.aligned), BENIGN):
        for alpha in NANO.alphas:
            rise = {named(NANO.aligned[-1]): gap, BENIGN: benign}.get(model, gap)
            small = weak if model == named(NANO.aligned[0]) else rise / 2
            complied = 0.5 + (small if alpha == NANO.small else rise if alpha > 0 else 0.5 * max(alpha, -1)) + 0.001 * seed
            broken = garbage if alpha == max(NANO.alphas) else 0.0
            refused = 1 - complied if alpha >= -1 else 1 - complied + amplified
            shares = {"unsafe": (complied, refused, broken), "safe": (1 - cost * (alpha < -1), 0.0, 0.0)}
            rows += [
                (model, asked, outcome, value, alpha)
                for asked, (a, b, c) in shares.items()
                for outcome, value in (("complied", a), ("refused", b), ("partial", 0.0), ("degenerate", c))
            ]
    return Found(seed, NANO, {"swept": pd.DataFrame(rows, columns=["model", "set", "outcome", "rate", "alpha"]), "rates": pd.DataFrame()})


PAPERS = {"gap": 0.4, "benign": 0.02, "weak": 0.05, "garbage": 0.2, "amplified": 0.3, "cost": 0.0}


def verdicts(**told: float) -> dict[str, str]:
    found = [evidence(**{**PAPERS, **told}, seed=seed) for seed in range(3)]
    return {one.name: one.verdict for one in settled(STUDY.claims(NANO), found, STUDY.SOURCE)}


@pytest.mark.long
def test_a_world_as_the_paper_s_supports_every_claim() -> None:
    assert set(verdicts().values()) == {"supported"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({"benign": 0.35}, "disalignment by decoding"),
        ({"gap": -0.2, "benign": 0.0}, "disalignment by decoding"),
        ({"garbage": 0.0}, "and then over-optimises"),
        ({"weak": 0.3}, "safer weights, larger risk"),
        ({"amplified": 0.0}, "a negative alpha makes safer"),
        ({"cost": 0.5}, "and costs no safe answer"),
    ],
)
def test_a_world_otherwise_does_not(told: dict[str, float], name: str) -> None:
    assert verdicts(**told)[name] != "supported"


def test_the_page_counts_partial_answers_as_the_claim_does() -> None:
    swept = evidence(**PAPERS, seed=0).tables["swept"].assign(low=0.0, high=1.0)
    swept.loc[swept.outcome == "partial", "rate"] = 0.1
    found = replace(evidence(**PAPERS, seed=0), tables={"swept": swept, "rates": swept})
    shown = page([found], NANO).tables["neither answered nor refused"].set_index("model").loc[NANO.strongest]
    assert shown[10.0] == pytest.approx(garbage(NANO.strongest, 10.0)(found)) == pytest.approx(0.3)
