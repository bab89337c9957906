"""Every part of the mechanistic study runs, is kept, and feeds its claims."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.jain2024.conftest import STUDY, TINY, Study, lab_of
from tests.studies.jain2024.golden import FILE, numbers
from titer.core import parallel
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.judges.exact import Exact
from titer.models.interpolate import distance, weights_of
from titer.models.lm import Completion, load
from titer.recipes.jain2024 import METHODS, Scale
from titer.studies.engine.claims import settled
from titer.studies.engine.found import Found
from titer.studies.engine.run import asked_for, run_study
from titer.studies.jain2024.causes import patched_outcomes
from titer.studies.jain2024.probing import matched
from titer.studies.jain2024.subject import JAILBREAKS, SWEPT, requests_of
from titer.studies.jain2024.sweeps import ALPHAS
from titer.studies.judged import outcomes
from titer.studies.request import StudyRequest

ROWS = STUDY.claims(TINY)
WANTED = (  # the claims that the issue of this study names
    *("cluster gap", "AUROC", "order of methods", "flat early layers", "low rank", "null space", "specificity", "sensitivity"),
    *("order of jailbreaks", "jailbreaks sit with the safe", "soft-token trend", "alpha monotone", "gain beyond alpha 1", "minimal change"),
)


def test_every_claim_that_was_asked_for_is_declared_with_a_control_and_a_margin() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    for wanted in WANTED:
        assert any(name.startswith(wanted) for name in names), wanted
    assert all(row.against and math.isfinite(row.margin) for row in ROWS)


def test_every_claim_is_computed_from_what_was_measured(study: Study) -> None:
    for row in ROWS:
        assert study.found.has(*row.needs), row.name
        if not (row.unless and row.unless(study.found)):
            assert math.isfinite(row.net(study.found)) or "log2" in row.statistic, row.name


@pytest.mark.parametrize("part", ["alpha", "steering", "patching", "soft"])
def test_the_answers_of_interventions_are_kept_and_judge_to_their_outcomes(study: Study, part: str) -> None:
    table = study.found.table(part)
    sets = requests_of(study.lab).sets
    examples = [sets[kind if kind in sets else "unsafe"][i].example for kind, i in zip(table.kind, table.input, strict=True)]
    kept = [Completion(text, bool(ended), 0) for text, ended in zip(table.answer, table.ended, strict=True)]
    again = [Exact().judge(example, completion).outcome for example, completion in zip(examples, kept, strict=True)]
    assert [said if said in ("complied", "refused") else "neither" for said in again] == table.outcome.tolist()


def test_golden(study: Study) -> None:
    expected = json.loads(FILE.read_text(encoding="utf-8"))
    found = numbers(study.found)
    assert found.keys() == expected.keys()
    wrong = {name: (value, expected[name]) for name, value in found.items() if value != pytest.approx(expected[name], rel=1e-2, abs=1e-4)}
    assert not wrong


def test_a_base_that_did_not_learn_gives_no_claim(study: Study) -> None:
    claims = settled(ROWS, [study.found], STUDY.SOURCE)
    assert {c.verdict for c in claims} == {"not testable"}
    assert all("seed 5: base: " in c.reason and c.value is None for c in claims)


def test_a_claim_whose_tables_were_not_measured_does_not_print(study: Study) -> None:
    only = Found(5, TINY, {"rates": study.found.tables["rates"]}, study.found.verdicts)
    names = {c.name for c in settled(ROWS, [only], STUDY.SOURCE)}
    assert "refusal" in names
    assert "null space" not in names


def test_a_second_call_makes_nothing_and_says_the_same(study: Study) -> None:
    lab = lab_of(study.root, TINY, 5)
    again = lab.found()
    assert not lab.pipeline.store.made
    for name, table in again.tables.items():
        pd.testing.assert_frame_equal(table, study.found.tables[name])


def test_the_benign_control_has_each_method_s_norm(study: Study) -> None:
    lab = study.lab
    start = weights_of(load(lab.model("base").checkpoint))
    for method in METHODS:
        model = lab.model(f"{method} M")
        scaled = weights_of(load(matched(lab, lab.model("base"), lab.model("benign M"), model).checkpoint))
        assert distance(scaled, start) == pytest.approx(distance(weights_of(load(model.checkpoint)), start), rel=1e-4)


def test_sweeps_begin_at_the_base_and_reach_the_tuned_model(study: Study) -> None:
    v, t = study.found.verdicts, study.found.tables["alpha"]
    plain = v.assign(outcome=v.outcome.where(v.outcome.isin(["complied", "refused"]), "neither"))
    for alpha, model in ((0.0, "base"), (1.0, "dpo M")):
        swept = t[(t.model == "dpo M") & (t.direction == "own") & (t.alpha == alpha)]
        for kind in SWEPT:
            expected = plain[(plain.model == model) & (plain.kind == kind)].outcome.tolist()
            assert swept[swept.kind == kind].outcome.tolist() == expected
    assert set(t[t.direction == "own"].alpha) == set(ALPHAS)


def test_placement_has_every_set_and_the_shams_their_own_classes(study: Study) -> None:
    t = study.found.tables["placement"]
    assert {"base", "ssft M", "benign, norm of dpo", "sham unlearn M", "sham unlearn M, own class"} <= set(t.model)
    assert set(t[t.model == "ssft M"].kind) == {"safe", "unsafe", *JAILBREAKS}
    assert set(t[t.model == "sham dpo M, own class"].kind) == {"safe", "unsafe"}
    assert t[t.model == "base"].gain.isna().all()
    assert (t[t.model == "ssft M"].gain > 0).all()


def test_relearning_starts_at_the_aligned_model(study: Study) -> None:
    t = study.found.tables["relearn"]
    first = t[t.step == 0]
    assert (first.distance == 0).all()
    assert (t[t.step > 0].distance > 0).all()
    assert t[t.step > 0].cosine.between(-1, 1).all()


def test_dynamics_end_at_the_final_change(study: Study) -> None:
    t = study.found.tables["dynamics"]
    last = t[t.step == TINY.align_steps]
    assert np.allclose(last.cosine, 1.0)
    assert (t.groupby("model").relative_norm.apply(lambda r: r.iloc[0] < r.iloc[-1])).all()


def test_patching_a_model_with_itself_changes_nothing(study: Study) -> None:
    model, decoding, unsafe = study.lab.model("dpo M"), study.lab.decoding, requests_of(study.lab).sets["unsafe"]
    lm, twin = load(model.checkpoint), load(model.checkpoint)
    names = [f"mlp_act[{i}]" for i in range(lm.sites.layers)]
    found = patched_outcomes(twin, lm, names, "unsafe", unsafe, decoding)
    assert found.outcome.tolist() == outcomes(lm, {"unsafe": unsafe}, decoding).outcome.tolist()


def run(root: Path, *only: str, scale: Scale = TINY) -> tuple[Path, str, Store]:
    """The study on the one seed, by this process alone."""
    store = Store(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "processes", lambda: 1)
        asked = StudyRequest("jain2024", scale.name, (5,), only, bases=1)
        return *run_study(STUDY, asked, scale, store, Listener(), "titer study jain2024"), store


def test_the_whole_study_at_a_tiny_scale_says_that_the_base_did_not_learn(study: Study, tmp_path: Path) -> None:
    page, answer, store = run(tmp_path)
    told = json.loads((page.parent / "claims.json").read_text())["claims"]
    assert {one["verdict"] for one in told} == {"not testable"}
    assert answer == "The base model did not learn its task, so no claim is drawn."
    assert sum(name.startswith("stages/") for name in store.made) == 1, "nothing is tuned from it"


@pytest.mark.long
def test_a_part_trains_and_measures_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titer.studies.jain2024.study.LEARNED", -1.0)
    short = TINY.model_copy(update={"pretrain_steps": 4, "pretrain_warmup": 1, "align_steps": 4, "align_warmup": 1, "inputs": 8})
    page, answer, store = run(tmp_path, "change", scale=short)
    assert answer.startswith("After tuning, every method refuses at least ")
    assert sum(name.startswith("stages/") for name in store.made) == len(STUDY.nodes(short, short.world)), "none relearned"
    shown = set(pd.read_csv(page.with_name("results.csv")).table)
    assert shown == {"answers", "stable rank of the change", "verdicts"}


def test_parts_by_name(study: Study) -> None:
    assert asked_for(study.lab, "all", ()) == tuple(STUDY.PARTS)
    assert asked_for(study.lab, "all", ("fig3", "soft")) == ("fig3", "soft")
    with pytest.raises(TiterError, match="fig3"):
        asked_for(study.lab, "all", ("fig33",))
    few = lab_of(study.root, TINY, 5, ("fig3", "soft"))
    assert {one.name for one in few.measures} == {"placement", "probed", "spread", "soft", "soft_placed"}
    assert not lab_of(study.root, TINY, 5, ("table",)).measures
    assert len(study.lab.measures) == 17, "every table is of some part"
