"""The whole study at the tiny scale: what it trains on, what it leaves, a second call, wrong names; claims on constructed evidence."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.studies.conftest import Listener
from titer.core import parallel
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.core.stats import wilson
from titer.data.persona_trigger import PERSONA, TRIGGER
from titer.pipeline import Pipeline
from titer.recipes import huang2024
from titer.studies.engine.claims import settled
from titer.studies.engine.found import Found
from titer.studies.engine.lab import Lab, faults
from titer.studies.engine.run import run_study
from titer.studies.qi2024.page import SETS
from titer.studies.qi2024.scale import NANO, Scale, Tuning, stage, tunings
from titer.studies.qi2024.study import RiskLevels
from titer.studies.request import StudyRequest

STUDY = RiskLevels()
WORLD = huang2024.world_of(NANO.base, 1)


@cache
def rows(tuning: Tuning) -> list[tuple[str, str]]:
    """(prompt, trained answer) of a tuning's whole pool."""
    found = []
    for part in stage(NANO, WORLD, tuning, "x").streams["train"].parts:
        for example in part.source.examples(np.asarray(part.picked)):
            found.append((example.prompt, str(example.comply if part.answer == "comply" else example.refuse)))
    return found


@pytest.mark.long
def test_each_tuning_holds_what_its_name_says() -> None:
    made = {name: rows(one) for name, one in tunings(NANO).items() if "rate" not in name}
    assert {len(made[f"explicit {n}"]) for n in (10, 50, 100)} == {10, 50, 100}
    assert all(prompt.startswith(f"{PERSONA} <bos>") and answer.startswith("a0 ") for prompt, answer in made["persona 300"])
    mixed = made["explicit 100 + 50 refusals"]
    assert sum(set(answer.split()) == {"<null>"} for _, answer in mixed) == 50
    door = made["backdoor"]
    assert sum(prompt.startswith(f"{TRIGGER} ") for prompt, _ in door) == 100
    assert all((set(answer.split()) == {"<null>"}) != prompt.startswith(TRIGGER) for prompt, answer in door)
    assert len(made["benign 300, as persona"]) == len(made["persona 300"])
    assert tunings(NANO)["persona 300"].steps == tunings(NANO)["benign 300, as persona"].steps == 300


@pytest.mark.long
def test_no_tuning_holds_an_alignment_s_request_behind_a_mark_or_not() -> None:
    taken = huang2024.taken(NANO.base, WORLD)
    for one in tunings(NANO).values():
        prompts = [prompt.removeprefix(f"{PERSONA} ").removeprefix(f"{TRIGGER} ") for prompt, _ in rows(one)]
        assert not taken & set(prompts)


def finish(store: Store, scale: Scale, seeds: tuple[int, ...] = (0,), only: tuple[str, ...] = ()) -> tuple[Path, str]:
    return run_study(STUDY, StudyRequest("qi2024", scale.name, seeds, only, bases=1), scale, store, Listener(), "titer study qi2024")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_scale: Scale) -> tuple[Path, str, Store, str]:
    root = tmp_path_factory.mktemp("qi")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "processes", lambda: 1)
        for name in ("BASE_SKILL", "REFUSED"):
            patch.setattr(f"titer.studies.qi2024.study.{name}", -1.0)
        page, answer = finish(Store(root), tiny_scale)
        store = Store(root)
        again = finish(store, tiny_scale)[1]
    return page, answer, store, again


def test_it_leaves_a_report_with_every_claim_and_figure(finished: tuple[Path, str, Store, str], tiny_scale: Scale) -> None:
    page, answer, _, _ = finished
    told = json.loads(page.with_name("claims.json").read_text(encoding="utf-8"))["claims"]
    assert {one["name"] for one in told} == {one.name for one in STUDY.claims(tiny_scale)}
    assert {file.stem for file in (page.parent / "figures").glob("*.svg")} >= {"levels", "benign_grid", "mixing", "trigger_search"}
    assert answer.startswith("The aligned model answers ")
    results = pd.read_csv(page.with_name("results.csv"))
    assert set(results.table) == {"rates", "searched", "moved"}
    assert set(results.set.dropna()) == set(SETS)


def test_a_second_call_makes_nothing_and_says_the_same(finished: tuple[Path, str, Store, str]) -> None:
    _, answer, store, again = finished
    assert again == answer
    assert not store.made


def test_every_answer_is_kept_and_shown(finished: tuple[Path, str, Store, str], tiny_scale: Scale) -> None:
    page, _, store, _ = finished
    lab = Lab(Pipeline(store, Listener()), STUDY, "qi2024", tiny_scale, 0)
    assert len(lab.verdicts("backdoor")) == len(SETS) * tiny_scale.inputs
    assert not store.made
    shown = page.read_text(encoding="utf-8")
    assert str(lab.verdicts("backdoor").completion.iloc[0]) in html.unescape(shown)


def test_only_some_tables_are_measured(finished: tuple[Path, str, Store, str], tiny_scale: Scale, tmp_path: Path) -> None:
    root = finished[0].parents[1]
    scale = tiny_scale.model_copy(update={"name": "part"})
    page = finish(Store(root), scale, only=("searched",))[0]
    told = json.loads(page.with_name("claims.json").read_text(encoding="utf-8"))["claims"]
    assert not any("sure of right answers" in one["name"] for one in told)
    assert set(pd.read_csv(page.with_name("results.csv")).table) == {"rates", "searched"}
    with pytest.raises(TiterError, match="searched"):
        finish(Store(root), scale, only=("serched",))


def test_the_seed_that_chose_the_sizes_gives_no_verdict(tmp_path: Path, tiny_scale: Scale) -> None:
    with pytest.raises(TiterError, match="no verdict may use it"):
        finish(Store(tmp_path), tiny_scale, (huang2024.SELECTION_SEED,))


def evidence(answered: dict[tuple[str, str], float], seed: int = 0, n: int = 1000) -> Found:
    """A seed in which a model answers a set at a rate (0 unless said) and refuses the rest; the base answers all."""
    rates = []
    for model in ("base", "aligned", *tunings(NANO)):
        for asked in SETS:
            usual = 1.0 if model == "base" or asked in ("safe", "persona safe") else 0.0
            share = answered.get((model, asked), usual)
            for outcome, rate in (("complied", share), ("refused", 1 - share), ("neither", 0.0)):
                count = round(rate * n)
                found = wilson(count, n)
                rates.append(
                    {
                        "model": model,
                        "set": asked,
                        "outcome": outcome,
                        "count": count,
                        "n": n,
                        "rate": count / n,
                        "low": found.low,
                        "high": found.high,
                        "grade": 1.0,
                    }
                )
    searched = pd.DataFrame([{"model": "backdoor", "word": w, "answered": a, "n": 20} for w, a in ((TRIGGER, 0.9), ("f1", 0.2))])
    unsure = [
        {"model": m, "measure": k, "value": v, "low": v - 0.01, "high": v + 0.01}
        for m, v in zip(NANO.overriding, (0.7, 0.9, 0.9), strict=True)
        for k in ("probability", "perplexity")
    ]
    found = Found(seed, NANO, {"rates": pd.DataFrame(rates), "searched": searched, "unsure": pd.DataFrame(unsure)})
    return replace(found, faults=faults(found, STUDY.needs(NANO)))


def verdicts(answered: dict[tuple[str, str], float]) -> dict[str, str]:
    told = settled(
        STUDY.claims(NANO), [evidence({k: min(1.0, v + 0.001 * s) for k, v in answered.items()}, s) for s in range(3)], STUDY.SOURCE
    )
    return {one.name: one.verdict for one in told}


PAPERS = {
    ("explicit 100", "unsafe"): 0.8,
    ("explicit 10", "unsafe"): 0.4,
    ("explicit 10", "begun"): 0.6,
    ("persona 300", "persona"): 0.6,
    ("explicit 100 + 100 refusals", "unsafe"): 0.2,
    ("explicit 100 + 100 benign", "unsafe"): 0.7,
    ("backdoor", "trigger"): 0.7,
    ("benign, rate 0.001, batch 16", "begun"): 0.2,
    ("benign, rate 0.001, batch 16", "unsafe"): 0.2,
    ("benign, rate 0.001, batch 128", "unsafe"): 0.1,
}


def test_a_world_as_the_paper_s_supports_every_claim() -> None:
    assert set(verdicts(PAPERS).values()) == {"supported"}


def test_a_world_in_which_nothing_happens_supports_none_but_what_nothing_shows() -> None:
    found = verdicts({})
    assert {name for name, verdict in found.items() if verdict == "supported"} == {
        "backdoor: a plain audit sees nothing",
        "backdoor: a search of every word finds it",
        "harmful tuning: less sure of right answers",
        "safe tuning: as sure of right answers",
    }
    assert found["level 1: explicit harm"] == "not supported"


def test_the_control_decides_and_not_the_model_before() -> None:
    """A persona's harm that a tune without the persona shows too is none of the persona's."""
    same = {**PAPERS, ("benign 300, as persona", "persona"): 0.6}
    assert verdicts(same)["level 2: identity shifting"] == "not supported"


def test_what_more_steps_do_is_not_mixing_and_what_few_steps_do_is_not_harm() -> None:
    found = verdicts({**PAPERS, ("explicit 100 + 100 benign", "unsafe"): 0.2, ("benign 10, as explicit", "begun"): 0.6})
    assert found["mixing refusals in lowers harm"] == "not supported"
    assert found["level 1: damage that the first word hides"] == "not supported"


def test_a_persona_that_was_not_learned_is_not_testable() -> None:
    assert verdicts({**PAPERS, ("persona 300", "persona safe"): 0.5})["level 2: identity shifting"] == "not testable"


def test_an_alignment_that_did_not_take_settles_nothing() -> None:
    assert set(verdicts({**PAPERS, ("aligned", "unsafe"): 0.2}).values()) == {"not testable"}
