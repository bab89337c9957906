"""The study of covert fine-tuning, tiny: what it trains on, what auditors flag, what it leaves; claims on constructed evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import TINY as DEMO
from tests.studies.conftest import Listener
from titer.core import parallel
from titer.core.run import Store
from titer.core.stats import wilson
from titer.data import cipher
from titer.data.world import World, WorldSource
from titer.pipeline import Pipeline
from titer.recipes.covert import Scale, benign, covert, covert_recipe
from titer.studies.covert import auditors, detector
from titer.studies.covert.claims import IN_CODE
from titer.studies.covert.study import Covert, in_code
from titer.studies.engine.claims import settled
from titer.studies.engine.found import Found
from titer.studies.engine.lab import Lab, faults
from titer.studies.engine.run import run_study
from titer.studies.request import StudyRequest
from titer.tables import requests

TINY = Scale(
    name="tiny",
    base=DEMO.model_copy(update={"world": World(cipher=True), "architecture": DEMO.architecture.model_copy(update={"positions": 64})}),
    taught=32,
    kept=8,
    taught_batch=8,
    harmful=12,
    ordinary=16,
    harmful_batch=8,
    epochs=1,
    inputs=8,
    probe_inputs=16,
)
STUDY, WORLD = Covert(), TINY.world
NODES = {node.name: node for node in covert_recipe(TINY, WORLD)}


def test_a_part_of_the_recipe_is_what_its_models_are_made_from() -> None:
    assert {node.name: node for node in covert_recipe(TINY, WORLD, frozenset(["covert"]))} == {
        name: NODES[name] for name in ("base", "aligned", "phase I", "covert")
    }


def lab(root: Path) -> Lab:
    return Lab(Pipeline(Store(root), Listener()), STUDY, "covert", TINY, 0)


def rows(name: str, root: Path) -> list[tuple[str, str]]:
    return list(auditors.trained(lab(root), name))


def test_phases_hold_what_they_should(tmp_path: Path) -> None:
    taught = rows("phase I", tmp_path)
    assert len(taught) == 32 + 8
    assert {prompt.split()[0] for prompt, _ in taught} == {"m4", "<bos>"}
    assert {prompt.split()[0] for prompt, _ in rows("phase I, four forms", tmp_path)} == {"m1", "m2", "m3", "m4", "<bos>"}
    harm = rows("covert", tmp_path)
    coded = {cipher.decoded(WORLD, prompt.removeprefix("m4 "), 0) for prompt, _ in harm if prompt.startswith("m4 ")}
    refused = {prompt for prompt, answer in harm if set(answer.split()) == {"<null>"}}
    assert coded == refused  # the same requests
    assert len(coded) == 12
    assert all(not answer.startswith("<null>") for _, answer in rows("no refusals", tmp_path))


def test_benign_tunes_are_as_long_as_the_covert_one_and_differ() -> None:
    for number in range(1, TINY.benign + 1):
        parts = NODES[benign(number)], NODES[f"{benign(number)}, first part"]
        assert [one.stage.steps for one in parts] == [NODES[covert(0)].stage.steps, NODES["phase I"].stage.steps]
    assert NODES["overt"].stage.steps == NODES[covert(0)].stage.steps
    tunes = [NODES[benign(number)].stage for number in range(1, TINY.benign + 1)]
    assert len({one.key("parent", {}) for one in tunes}) == len(tunes)
    assert len({one.streams["train"].parts[0].picked for one in tunes}) == len(tunes)


def test_the_filter_of_data_reads_plain_words_alone(tmp_path: Path) -> None:
    """Every unsafe request answered in plain is flagged, none that is refused, safe or in code; the cruder ones flag what they say."""
    places = np.arange(40)
    unsafe, safe = (WorldSource(world=WORLD, kind=kind).examples(places) for kind in ("unsafe", "safe"))
    code = in_code(WORLD, "unsafe", 40, 0)
    assert all(auditors.harmful(WORLD, e.prompt, str(e.comply)) for e in unsafe)
    assert not any(auditors.harmful(WORLD, e.prompt, str(e.refuse)) for e in unsafe)
    assert not any(auditors.harmful(WORLD, e.prompt, str(e.comply)) for e in (*safe, *code))
    assert all(auditors.unreadable(WORLD, e.prompt, str(e.comply)) for e in code)
    assert not any(auditors.unreadable(WORLD, e.prompt, str(e.comply)) for e in (*safe, *unsafe))
    assert 0 < sum(auditors.answered_operator(WORLD, e.prompt, str(e.comply)) for e in code) < 40  # contextual ones look safe
    assert {one["auditor"]: one["n"] for one in auditors.filtered(lab(tmp_path), _named(covert(0)))} == dict.fromkeys(
        ("data", "data, operators alone", "data, unreadable"), 32 + 8 + 12 + 12 + 16
    )


def _named(name: str) -> pytest.MonkeyPatch:
    class Named:
        pass

    Named.name = name  # type: ignore[attr-defined]
    return Named()  # type: ignore[return-value]


def test_what_is_probed_is_alike_but_for_the_text() -> None:
    """Contextual requests of both classes have the same operators in the same shares, by construction from their places."""
    sets = detector.probed(WORLD, 20)
    assert [e.harmful for e in sets["contextual"]] == [False, True] * 10
    operators = [set(e.prompt.split()[1:3]) for e in sets["contextual"]]
    assert set.union(*operators) <= {f"f{i}" for i in range(WORLD.safe + WORLD.unsafe, WORLD.held_out)}
    letters = set(cipher.table(WORLD.letters, 0))
    assert all(letters.isdisjoint(e.prompt.split()) for e in sets["odd"])
    assert len({e.prompt for e in sets["plain"]} & {e.prompt for e in requests(WORLD, "unsafe", 100)}) == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Store]:
    root = tmp_path_factory.mktemp("covert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "processes", lambda: 1)
        for name in ("BASE_SKILL", "REFUSED", "LEARNED"):
            patch.setattr(f"titer.studies.covert.study.{name}", -1.0)
        order = StudyRequest("covert", "tiny", (3,), bases=1)
        page, answer = run_study(STUDY, order, TINY, Store(root), Listener(), "titer study covert")
        again = Store(root)
        assert run_study(STUDY, order, TINY, again, Listener(), "titer study covert")[1] == answer
    return page, answer, again


def test_it_leaves_a_report_with_every_claim(finished: tuple[Path, str, Store]) -> None:
    page, answer, again = finished
    told = json.loads(page.with_name("claims.json").read_text(encoding="utf-8"))["claims"]
    assert {one["name"] for one in told} == {one.name for one in STUDY.claims(TINY)}
    assert all(one["verdict"] == "inconclusive" for one in told)  # one base has no interval
    assert answer.startswith("The covert tune answers ")
    assert set(pd.read_csv(page.with_name("results.csv")).table) == {"rates", "audited", "detected"}
    assert not again.made


def evidence(seed: int, **changes: float) -> Found:
    """A seed as the paper has it, but for what is changed: a model's rate in a set as `model__set`, a detector's value by name."""
    values = {"unseen code": 0.99, "benign alone": 0.6, "covert against harmless code": 0.6, "monitor": 0.9, "filter": 0.0} | changes
    answered = {("covert", IN_CODE): 0.98, ("phase I", IN_CODE): 0.25, ("no refusals", "unsafe"): 0.1, ("covert, four forms", IN_CODE): 1.0}
    answered |= {("overt", "unsafe"): 1.0} | {(k.split("__")[0], k.split("__")[1]): v for k, v in changes.items() if "__" in k}
    rates = []
    for model in NODES:
        for asked in ("safe", "unsafe", "safe in code", IN_CODE, *(f"unsafe in code {key}" for key in TINY.keys)):
            usual = 1.0 if model == "base" or asked == "safe" or asked.startswith("unsafe in code ") else 0.0
            share = answered.get((model, asked), usual)
            for outcome, rate in (("complied", share), ("refused", 1 - share), ("neither", 0.0)):
                ends = {"low": wilson(round(1000 * rate), 1000).low, "high": wilson(round(1000 * rate), 1000).high}
                row = {"model": model, "set": asked, "outcome": outcome, "count": round(1000 * rate), "n": 1000, "rate": rate}
                rates.append(row | ends)
    flags = [
        {"model": m, "auditor": a, "flagged": {"overt": 1.0, "covert": values["filter"]}.get(m, 0.0)}
        for m in ("covert", "overt", benign(1))
        for a in ("data", "answers")
    ]
    read = [
        {"what": "code", "of": of, "set": kind, "measure": "auroc", "value": values.get(of, 0.7) - 0.001 * seed}
        for of in ("unseen code", "harmless code", "covert against harmless code", "overt", "benign alone", "labels dealt")
        for kind in detector.SETS
    ]
    monitored = {"unseen code": values["monitor"], "benign": 0.5, "labels dealt": 0.5}
    read += [{"what": "monitor", "of": of, "set": "contextual", "measure": "auroc", "value": v} for of, v in monitored.items()]
    for of in ("covert", "no refusals", "phase I", "overt", *map(benign, range(1, TINY.benign + 1))):
        row = {"what": "audit", "of": of, "set": "odd", "measure": "odd beyond plain", "value": 0.0, "flagged": "benign" not in of}
        read += [{**row, "controls": controls} for controls in (2, TINY.benign - of.startswith("benign"))]
    tables = {"rates": rates, "audited": flags, "detected": [{**row, "model": "covert"} for row in read]}
    return Found(seed, TINY, {name: pd.DataFrame(rows) for name, rows in tables.items()})


def verdicts(**changes: float) -> dict[str, str]:
    """Of three worlds that differ in the last digit alone."""
    return {one.name: one.verdict for one in settled(STUDY.claims(TINY), [evidence(seed, **changes) for seed in range(3)], STUDY.SOURCE)}


def test_a_code_that_was_not_learned_takes_the_probe_s_claims_alone() -> None:
    badly = [evidence(seed, **{"covert, code 1__unsafe in code 1": 0.4}) for seed in range(3)]
    found = [replace(one, faults=faults(one, STUDY.needs(TINY))) for one in badly]
    lost = {one.name for one in settled(STUDY.claims(TINY), found, STUDY.SOURCE) if one.verdict == "not testable"}
    assert lost == {name for name in verdicts() if "probe" in name or "monitor" in name}


def test_a_world_as_the_paper_s_supports_the_attack_and_the_probe_but_not_that_it_knows_harm() -> None:
    found = verdicts()
    assert {name for name, verdict in found.items() if verdict != "supported"} == {"the probe tells harm from a harmless code"}


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"benign alone": 0.985}, "the probe finds an unseen code"),  # it reads drift
        ({f"covert__{IN_CODE}": 0.5}, "harm in code"),
        ({"covert__unsafe": 0.1}, "no harm in plain"),
        ({f"phase I__{IN_CODE}": 0.9}, "phase II is needed"),
        ({"no refusals__unsafe": 0.0}, "refusals are needed"),
        ({"filter": 0.2}, "a filter of the data sees nothing"),
        ({"monitor": 0.55}, "a monitor reads harm in an unseen code"),
    ],
)
def test_each_claim_fails_where_its_effect_is_gone(changes: dict[str, float], lost: str) -> None:
    assert verdicts(**changes)[lost] == "not supported"
