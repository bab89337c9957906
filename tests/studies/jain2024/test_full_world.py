"""The study on the full world (two grammars, two outputs, texts of several lengths) with the stream-norm model: the mechanics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.studies.conftest import Listener
from tests.studies.jain2024.conftest import STUDY, lab_of
from titer.core.run import Store
from titer.data.worlds import WORLDS
from titer.models.lm import Architecture
from titer.pipeline import Pipeline
from titer.recipes.jain2024 import SCALES, Scale, jain_recipe
from titer.studies.engine.price import price
from titer.studies.jain2024.subject import JAILBREAKS, requests_of
from titer.studies.request import StudyRequest

SEED = 2
FEW = ("table", "fig3", "fig6", "soft", "patching")
SMALL = Scale(
    name="full",
    world=WORLDS["cpu"],
    architecture=Architecture(layers=2, width=16, heads=2, positions=96, norm="stream"),
    pretrain_steps=4,
    pretrain_batch=8,
    pretrain_warmup=1,
    align_steps=3,
    align_batch=4,
    align_warmup=1,
    pool=16,
    window=54,
    relearn_steps=2,
    relearn_batch=4,
    inputs=8,
)


@pytest.mark.long
def test_every_part_takes_the_full_world(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, SMALL, SEED, FEW)
    found = lab.found()
    assert set(JAILBREAKS) <= set(found.verdicts.kind)
    assert np.isfinite(found.tables["placement"].tau).all()
    assert (found.tables["sensitivity"].g > 0).all()
    assert set(found.tables["soft"].n) == {1, 2, 4, 8}
    lengths = {len(a.example.prompt.split()) for a in requests_of(lab).sets["unsafe"]}
    assert len(lengths) > 1, "texts of one length would not test the groups of the patching"
    assert len(found.tables["patching"]) > 0


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_is_priced_and_fits_its_model_s_window(name: str, tmp_path: Path) -> None:
    scale = SCALES[name]
    table, told = price(StudyRequest("jain2024", name, range(1), bases=1, flops=1e14), Store(tmp_path))
    assert list(table.model[:-3]) == [node.name for node in STUDY.nodes(scale, scale.world)]
    assert all(name.endswith("relearned") for name in table.model[-3:])
    assert (table.tflop > 0).all()
    assert "hours" in told
    w = scale.world
    widest = w.slots + 3 + (1 + w.slots // 2) * (w.longest + 1) + 8  # eight soft tokens
    assert scale.architecture.positions >= widest
    assert scale.window <= (w.window or widest)


def test_the_paper_s_scale_has_the_paper_s_numbers() -> None:
    """Sections 2 to 4 of the specification."""
    s = SCALES["paper"]
    assert (s.architecture.layers, s.architecture.width, s.architecture.heads, s.architecture.norm) == (6, 192, 6, "stream")
    assert (s.pretrain_steps, s.pretrain_batch, s.pretrain_rate, s.pretrain_warmup) == (100_000, 512, 1e-3, 20_000)
    assert (s.align_steps, s.align_batch, s.align_warmup, s.medium_rate, s.small_rate, s.window) == (10_000, 512, 2_000, 1e-4, 1e-5, 159)
    base = jain_recipe(s, 0)[0].stage.optimiser
    assert base.rate_at(80_000, 100_000) == pytest.approx(1e-5)
    assert base.rate_at(99_999, 100_000) == pytest.approx(1e-5)
    assert base.rate_at(9_999, 100_000) == pytest.approx(5e-4)


@pytest.mark.parametrize("name", ["small", "paper"])
def test_stage_a_and_dpo_step_at_the_paper_s_layout(name: str, tmp_path: Path) -> None:
    tiny = Architecture(layers=2, width=16, heads=2, positions=192, norm="stream")
    few = {"pretrain_steps": 2, "pretrain_batch": 4, "align_steps": 2, "align_batch": 4, "pool": 6, "precision": "no", "architecture": tiny}
    scale = SCALES[name].model_copy(update=few)
    pipeline = Pipeline(Store(tmp_path), Listener(), 100)
    nodes = {node.name: node.stage for node in jain_recipe(scale, SEED)}
    base = pipeline.model(nodes["base"], None, "base", scale.world.model_copy(update={"seed": SEED}).tokenizer)
    tuned = pipeline.model(nodes["dpo M"], base, "dpo M")
    lines = (tuned.checkpoint.path.parent / "metrics.jsonl").read_text().splitlines()
    assert float(json.loads(lines[0])["loss"]) == pytest.approx(np.log(2), abs=1e-5)
    batch = nodes["base"].streams["train"].batch(0, 64, pipeline.lm(base).tokenizer)
    assert batch.input_ids.shape[1] <= 160
