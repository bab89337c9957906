"""Every part of the mechanistic study runs, is kept, and feeds its claims."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.jain2024.conftest import TINY, Study
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.models.interpolate import distance, weights_of
from titer.models.lm import load
from titer.recipes.jain2024 import METHODS
from titer.studies.claims import settled
from titer.studies.jain2024.claims_behaviour import behaviour
from titer.studies.jain2024.claims_clusters import clusters
from titer.studies.jain2024.claims_mechanism import mechanism
from titer.studies.jain2024.gather import PARTS, measured
from titer.studies.jain2024.probing import matched
from titer.studies.jain2024.study import parts_of, run_jain
from titer.studies.jain2024.subject import JAILBREAKS, SWEPT
from titer.studies.jain2024.sweeps import ALPHAS

DECLARED = [*behaviour(), *clusters(), *mechanism()]
WANTED = (  # the claims that the issue of this study names
    *("cluster gap", "AUROC", "order of methods", "flat early layers", "low rank", "null space", "specificity", "sensitivity"),
    *("order of jailbreaks", "jailbreaks sit with the safe", "soft-token trend", "alpha monotone", "gain beyond alpha 1", "minimal change"),
)


def test_every_claim_that_was_asked_for_is_declared_with_a_control_and_a_margin() -> None:
    names = [one.stated.name for one in DECLARED]
    assert len(names) == len(set(names))
    for wanted in WANTED:
        assert any(name.startswith(wanted) for name in names), wanted
    assert all(one.stated.control and math.isfinite(one.stated.margin) for one in DECLARED)


def test_every_claim_is_computed_from_what_was_measured(study: Study) -> None:
    e = study.evidence
    for one in DECLARED:
        assert e.has(*one.needs), one.stated.name
        found = one.value(e)
        if found is not None:
            assert found.effect.value == found.effect.value or "log2" in one.stated.statistic, one.stated.name


def test_a_base_that_did_not_learn_gives_no_claim(study: Study) -> None:
    claims = settled(DECLARED, [study.evidence])
    assert {c.verdict for c in claims} == {"not testable"}
    assert all("did not learn the task" in c.reason and c.value is None for c in claims)


def test_a_claim_whose_tables_were_not_measured_does_not_print(study: Study) -> None:
    only = {"verdicts": study.evidence.tables["verdicts"]}
    names = {c.name for c in settled(DECLARED, [type(study.evidence)(5, only)])}
    assert "refusal" in names
    assert "null space" not in names


def test_a_second_call_makes_nothing_and_says_the_same(study: Study) -> None:
    before = len(study.subject.bench.store.made)
    again = measured(study.subject, PARTS)
    assert len(study.subject.bench.store.made) == before
    for name, table in again.items():
        pd.testing.assert_frame_equal(table, study.evidence.tables[name])


def test_the_benign_control_has_each_method_s_norm(study: Study) -> None:
    s = study.subject
    start = weights_of(load(s.models["base"].checkpoint))
    for method in METHODS:
        tuned = weights_of(load(s.models[f"{method} M"].checkpoint))
        scaled = weights_of(load(matched(s, method).checkpoint))
        assert distance(scaled, start) == pytest.approx(distance(tuned, start), rel=1e-4)


def test_sweeps_begin_at_the_base_and_reach_the_tuned_model(study: Study) -> None:
    v, t = study.evidence.tables["verdicts"], study.evidence.tables["alpha"]
    plain = v.assign(outcome=v.outcome.where(v.outcome.isin(["complied", "refused"]), "neither"))
    for alpha, model in ((0.0, "base"), (1.0, "dpo M")):
        swept = t[(t.model == "dpo M") & (t.direction == "own") & (t.alpha == alpha)]
        for kind in SWEPT:
            expected = plain[(plain.model == model) & (plain.kind == kind)].outcome.tolist()
            assert swept[swept.kind == kind].outcome.tolist() == expected
    assert set(t[t.direction == "own"].alpha) == set(ALPHAS)


def test_placement_has_every_set_and_the_shams_their_own_classes(study: Study) -> None:
    t = study.evidence.tables["placement"]
    assert {"base", "ssft M", "benign, norm of dpo", "sham unlearn M", "sham unlearn M, own class"} <= set(t.model)
    assert set(t[t.model == "ssft M"].kind) == {"safe", "unsafe", *JAILBREAKS}
    assert set(t[t.model == "sham dpo M, own class"].kind) == {"safe", "unsafe"}
    assert t[t.model == "base"].gain.isna().all()
    assert (t[t.model == "ssft M"].gain > 0).all()


def test_relearning_starts_at_the_aligned_model(study: Study) -> None:
    t = study.evidence.tables["relearn"]
    first = t[t.step == 0]
    assert (first.distance == 0).all()
    assert (t[t.step > 0].distance > 0).all()
    assert t[t.step > 0].cosine.between(-1, 1).all()


def test_dynamics_end_at_the_final_change(study: Study) -> None:
    t = study.evidence.tables["dynamics"]
    last = t[t.step == TINY.align_steps]
    assert np.allclose(last.cosine, 1.0)
    assert (t.groupby("model").relative_norm.apply(lambda r: r.iloc[0] < r.iloc[-1])).all()


def test_patching_a_model_with_itself_changes_nothing(study: Study) -> None:
    from titer.studies.jain2024.causes import patched_outcomes
    from titer.studies.judged import outcomes

    s = study.subject
    lm, twin = load(s.models["dpo M"].checkpoint), load(s.models["dpo M"].checkpoint)
    names = [f"mlp_act[{i}]" for i in range(lm.sites.layers)]
    found = patched_outcomes(s, twin, lm, names, "unsafe", s.sets["unsafe"])
    assert found.outcome.tolist() == outcomes(lm, {"unsafe": s.sets["unsafe"]}, s.decoding).outcome.tolist()


def test_the_whole_study_at_a_tiny_scale_says_that_the_base_did_not_learn(study: Study) -> None:
    page, answer, claims = run_jain(Store(study.root), Listener(), TINY, [5], PARTS, "titer study jain2024")
    assert page.exists()
    assert (page.parent / "claims.json").read_text().strip() == '{\n "claims": []\n}'
    assert answer == "The base model did not learn its task, so no claim is drawn."
    assert not claims


def test_parts_by_name() -> None:
    assert parts_of("") == tuple(PARTS)
    assert parts_of("fig3, soft") == ("fig3", "soft")
    with pytest.raises(TiterError, match="fig3"):
        parts_of("fig33")
