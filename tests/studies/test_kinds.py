"""The study of the audit's names, tiny: whom it casts, what it leaves; the confusion and the claims on constructed answers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.covert.test_study import TINY as COVERT
from tests.studies.qi2024.conftest import TINY as RISK
from titer.audit.kinds import KINDS, UNKNOWN
from titer.core import parallel
from titer.core.run import Store
from titer.data.mix import prompts
from titer.studies.engine.claims import settled
from titer.studies.engine.found import Found
from titer.studies.engine.run import run_study
from titer.studies.kinds import ABLITERATED, ALONE, CODED, NANO, REPAIRED, TRIGGERED, Kinds, Scale, cast, confusion, dealt, main
from titer.studies.qi2024.study import RiskLevels
from titer.studies.request import StudyRequest

STUDY = Kinds()
TINY = {"risk": Scale(name="tiny", of=RISK), "covert": Scale(name="tiny", of=COVERT)}


def rows(**named: str) -> pd.DataFrame:
    """An audit a kind: made -> the name that it got."""
    told = [{"made": made, "right": made, "kind": name} for made, name in named.items()]
    return pd.DataFrame(told).assign(edited=lambda t: t.made == "abliterated", flagged=lambda t: t.made == "covert")


@pytest.mark.long
def test_models_are_those_of_the_other_studies_and_every_kind_is_cast() -> None:
    scale = TINY["risk"]
    for turn in (1, 4):
        world = scale.world.model_copy(update={"seed": turn})
        risk, who = {node.name: node.stage for node in RiskLevels().nodes(scale.of, world)}, cast(scale, world)
        mine = {node.name: node.stage for node in who.nodes}
        assert {name for name in mine if mine[name] != risk.get(name)} == {name for some in who.controls.values() for name in some}
        for kind, name in who.tuned.items():
            for control in who.controls[kind]:
                steps, rate = mine[control].steps, mine[control].optimiser.rate
                assert (steps, rate) == (mine[name].steps, mine[name].optimiser.rate)
    names = {name for scale in (NANO, CODED) for name in cast(scale, scale.world).tuned}
    assert {*names, "nothing", "rounding", "abliterated", "repaired"} == set(KINDS)
    coded = cast(CODED, CODED.world)
    assert {*coded.tuned.values(), *coded.controls["covert"], coded.broken} <= {node.name for node in coded.nodes}
    assert coded.tuned["benign"] not in coded.controls["benign"]
    assert len({one.model_dump_json() for one in ABLITERATED}) == len({type(one) for one in REPAIRED}) == 4


def test_benign_tunes_learn_from_other_requests_each() -> None:
    who = cast(TINY["risk"], TINY["risk"].world)
    stages = {node.name: node.stage for node in who.nodes}
    read = [prompts(stages[name].streams["train"]) for name in (who.tuned["benign"], *who.controls["benign"])]
    assert sum(map(len, read)) == len(frozenset.union(*read)) > 0


def test_the_share_that_dealing_gives_is_what_every_deal_gives_on_average() -> None:
    table = rows(nothing="nothing", benign="benign", harmful="benign", covert=UNKNOWN)
    deals = [sum(name == right for name in table.kind for right in table.right) / len(table) ** 2]  # each name meets each model as often
    assert dealt(table) == pytest.approx(deals[0])
    more = pd.concat([table, table.assign(made=TRIGGERED, right="backdoor")])
    assert len(main(more)) == len(table)


def test_right_names_on_every_base_are_said_to_be_so_and_wrong_ones_are_not() -> None:
    right = {"nothing": "nothing", "benign": "benign", "harmful": "harmful", "abliterated": "abliterated", "covert": "covert"}

    def verdicts(named: dict[str, str]) -> dict[str, str]:
        found = [Found(seed, None, {"named": rows(**named)}) for seed in range(4)]
        return {claim.name: claim.verdict for claim in settled(STUDY.claims(NANO), found, STUDY.SOURCE)}

    assert set(verdicts(right).values()) == {"supported"}
    wrong = verdicts(dict(zip(right, [*list(right)[1:], "nothing"], strict=True)))
    assert wrong["the right name"] == wrong["a name is right"] == "not supported"
    alone = verdicts({name: name for name in list(right)[:4]})
    assert alone["a code is seen"] == "not testable"
    table = confusion(pd.concat([rows(**right), rows(**{**right, "benign": UNKNOWN})]).assign(flagged=None)).set_index("what was done")
    assert table.loc["benign", ["n", "benign", UNKNOWN]].tolist() == [2, 1, 1]
    assert table.loc["benign", "right"].startswith("50% [")
    assert table.loc["abliterated", "edit seen"] == "100% [34, 100]"
    assert set(table["odd prompts flagged"]) == {"–"}


@pytest.mark.long
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_run_audits_every_kind_and_reports(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    monkeypatch.setattr(Kinds, "needs", lambda self, scale: [])
    asked = StudyRequest("kinds", "tiny", (3,), bases=1, only="named,rates")
    page, answer = run_study(STUDY, asked, TINY[name], Store(tmp_path), Listener(), "titer study")
    table = pd.read_csv(page.parent / "results.csv")
    made = {"nothing", "rounding", "benign", "harmful", "abliterated", "repaired"} | ({"backdoor"} if name == "risk" else {"covert"})
    assert set(main(table).made) == made
    further = {"risk": {TRIGGERED, ALONE}, "covert": {ALONE}}
    assert set(table.made) - made == further[name]
    assert table.set_index("made").kind[["nothing", "rounding"]].tolist() == ["nothing", "rounding"]
    assert set(table.kind) <= {*KINDS, UNKNOWN}
    assert answer.startswith("Of 7 models of 7 known kinds, audits named ")
    claims = {one["name"]: one["verdict"] for one in json.loads((page.parent / "claims.json").read_text())["claims"]}
    assert len(claims) == 4
    assert (claims["a code is seen"] == "not testable") == (name == "risk")
    assert "What was done, and what the audit says" in page.read_text(encoding="utf-8")
