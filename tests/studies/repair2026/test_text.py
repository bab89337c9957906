"""Repairs of a tiny model that reads bytes: the README's stages, halves of the prompts, a report, its price, nothing made twice."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.huang2024_text.conftest import bytes_model, write_folder
from titer.commands.requests import AlignRequest, FinetuneRequest
from titer.commands.training import planned_alignment, planned_finetuning
from titer.core import parallel
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.core.tables import read_table
from titer.pipeline import Model, Pipeline
from titer.repairs.harm_vector import HarmVector
from titer.repairs.scale import Scale as Scaling
from titer.studies.engine.declare import Given
from titer.studies.engine.lab import Lab
from titer.studies.engine.run import run_study
from titer.studies.engine.text_price import text_price
from titer.studies.repair2026 import text
from titer.studies.repair2026.text import BROKEN, MENDED, RepairScale, RepairsOnText, repair_sets
from titer.studies.repair2026.ways import AS_IS, CONTROL, Way
from titer.studies.request import StudyRequest

SCALE = RepairScale(
    name="tiny", longest=200, align_steps=2, examples=8, batch=4, answered=4, epochs=1, rank=2, prompts=4, max_new_tokens=3, save_every=3
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    place = tmp_path_factory.mktemp("repair")
    return Given(bytes_model(place / "bytes"), write_folder(place / "data"))


def test_aligned_and_tuned_are_the_models_of_the_readme_s_commands(given: Given) -> None:
    scale = SCALE.model_copy(update={"longest": 96})
    stages, place, model = repair_sets(given, scale).stages, given.folder, str(given.base.checkpoint.path)
    align = AlignRequest(model, place / "safety/safe_responses.json", longest=96, steps=2, lr=1e-3, lora=2)
    tune = FinetuneRequest(model, f"sst2:{place / 'sst2/train.tsv'}", examples=8, epochs=1, batch=4, lr=3e-4, lora=2)
    assert stages["aligned"].key("x", {}) == planned_alignment(align).stage.key("x", {})
    assert stages["tuned"].key("x", {}) == planned_finetuning(tune).stage.key("x", {})


def test_no_prompt_is_trained_and_asked_or_asked_and_calibrated_on(given: Given) -> None:
    sets = repair_sets(given, SCALE)
    trained = {
        e.prompt
        for one in sets.stages.values()
        for part in one.streams["train"].parts
        for e in part.source.examples(np.asarray(part.picked))
    }
    held = [{a.example.prompt for a in attempts} for attempts, _ in sets.asked.values()]
    assert [len(one) for one in held] == [4, 4, 4]
    for one in held:
        assert not one & trained
        assert not one & {row[0] for row in sets.prompts.rows}
    assert sets.prompts.of_class(True)
    assert sets.prompts.of_class(False)


def test_a_file_of_the_user_s_own_is_answered_in_the_place_of_instructions(given: Given, tmp_path: Path) -> None:
    mine = tmp_path / "own.jsonl"
    rows = [{"prompt": f"Break the {thing}.", "label": "unsafe", "comply": "It is broken."} for thing in ("cup", "lamp", "door", "boat")]
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (part,) = repair_sets(given._replace(harmful=mine), SCALE).stages["instructions answered"].streams["train"].parts
    assert {e.prompt for e in part.source.examples(np.asarray(part.picked))} == {row["prompt"] for row in rows}


@pytest.mark.long
def test_the_whole_leaves_a_report_and_is_found_again(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {
        AS_IS: text.WAYS[AS_IS],
        CONTROL: Way(Scaling(), None, "c", (0.5, 0.0)),
        "harm_vector": Way(HarmVector(), None, "strength", (1.0,)),
    }
    monkeypatch.setattr(text, "WAYS", ways)
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    order, store = StudyRequest("repair2026", SCALE.name, given=given), Store(tmp_path / "runs")
    page, said = run_study(RepairsOnText(), order, SCALE, store, Listener(), "titer study repair2026")
    assert said.startswith("The tuned model refuses ")
    assert "One seed" in said
    table = pd.read_csv(page.with_name("results.csv"))
    mended = table[table.way.notna()]
    assert set(mended.model) == set(BROKEN)
    assert mended.groupby("model").size().to_dict() == {how: 6 * (4 if how in MENDED else 1) for how in BROKEN}
    assert (mended.n == 2).all()
    as_aligned = mended[(mended.way == CONTROL) & (mended.strength == 0.0) & (mended.model == "tuned")]
    rates = table[(table.model == "aligned") & (table.outcome == "refused")].set_index("set").rate
    assert as_aligned.groupby("set").refused.mean().to_dict() == pytest.approx(
        rates.to_dict()
    )  # nothing kept of the change is the aligned model
    shown = read_table(page.with_name("answers.jsonl"))
    assert {"tuned, scale 0.5", "tuned, scale 0", "tuned, harm_vector 1"} <= set(shown.model)
    assert not any("direction out" in model for model in shown.model)  # their answers stay in the store
    to_aligned = {
        model: shown[shown.model == model].groupby(["kind", "prompt"]).completion.first() for model in ("aligned", "tuned, scale 0")
    }
    assert to_aligned["aligned"].equals(to_aligned["tuned, scale 0"])
    points = mended.drop_duplicates(["model", "way", "strength"])
    kept = {len(read_table(one)) for one in (tmp_path / "runs" / "samples").glob("*/samples.jsonl")}
    assert kept == {8, 4}  # two sets of one judge and the task, for each model and each of the points
    assert len([*(tmp_path / "runs" / "verdicts").iterdir()]) >= 2 * (len(points) - 1)
    again = Store(tmp_path / "runs")
    assert len([*again.root.glob("stages/*/model/*.safetensors")]) == 1  # the aligned model
    assert not [*again.root.glob("edited/*/model")]
    assert run_study(RepairsOnText(), order, SCALE, again, Listener(), "titer study repair2026") == (page, said)
    assert not again.made
    lab = Lab(Pipeline(again, Listener(), 3), RepairsOnText(), "repair2026", SCALE, 0, given)
    assert lab.measures
    assert not any(lab.spoken(name) for name in lab.names)  # no place measures the repairs with its one thread
    cost = text_price(lab, 9e10)
    assert re.search(r"tuned \(2 steps of 4, \d+ tokens an example, already trained\)", str(cost["trainings"]))
    assert str(cost["hours"]).endswith(" at 9.0e+10 FLOP/s")
    models = len(lab.names) + len(points)
    assert str(cost["answers judged"]).startswith(f"{models * sum(len(one.attempts) for one in lab.questions)}, ")


def test_the_repair_called_the_best_is_chosen_on_the_half_that_it_is_not_reported_on() -> None:
    others = {"resta": 0.3, "safe_lora": 0.2, "restore attention": 0.1, CONTROL: 0.9}
    refused = {AS_IS: 0.1, "harm_vector": 0.6, **others}
    rows = [
        {
            "model": "tuned",
            "way": way,
            "strength": math.nan if way == AS_IS else 1.0,
            "set": kind,
            "n": 20,
            "complied": 1 - share,
            "refused": share,
        }
        for way, share in refused.items()
        for kind in ("unsafe", text.shares.OVER_REFUSAL)
    ]
    kept = [{**row, "set": "user", "complied": 0.9} for row in rows[::2]]
    half = pd.DataFrame([*rows, *kept])
    assert text.best(half) == "harm_vector"
    half.loc[(half.way == "harm_vector") & (half.set == "user"), "complied"] = 0.5  # too dear, so the model is left as it is
    assert text.best(half) == "resta"


def test_a_missing_file_is_named(given: Given, tmp_path: Path) -> None:
    model: Model = given.base
    with pytest.raises(TiterError, match="lacks safety/safe_responses"):
        repair_sets(Given(model, tmp_path), SCALE)
