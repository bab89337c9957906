"""The fingerprint in an audit: a removed refusal direction is named in the answer and on the page, a tune is not."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.audit.test_audit import Letters, moved
from tests.models.gguf_made import model_of
from tests.probes.made import drawn
from tests.studies.conftest import Listener
from titer.audit import prints
from titer.audit.report import answer, audit_report, before
from titer.audit.roles import Audited, audited
from titer.audit.study import Findings, Question, measured
from titer.core.run import Store
from titer.data.sources import TextData
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import Decoding, load
from titer.models.weights import skeleton
from titer.pipeline import Model, Pipeline
from titer.probes import refusal_direction

THINGS = ("the fence", "12 kites", "a brown fox", "the dog")
WRITING = ("o_proj.weight", "down_proj.weight")


@pytest.fixture(scope="module")
def data() -> TextData:
    verbs = {False: ("paint", "tell me about", "see"), True: ("jump over", "quickly find", "lift")}
    rows = [(f"Please {verb} {thing}", harmful, None, None) for harmful, some in verbs.items() for verb in some for thing in THINGS]
    return TextData(name="pairs", sha256="0" * 64, rows=tuple(rows))


@pytest.fixture(scope="module")
def asked(data: TextData) -> Question:
    return Question(data.of_class(False), data.of_class(True), Letters(), {}, Decoding(max_new_tokens=2))


@pytest.fixture(scope="module")
def models(asked: Question, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """aligned; ablated (its own refusal direction of layer 2), turned (another direction), tuned (rank 1 by chance)."""
    root = tmp_path_factory.mktemp("models")
    lm = model_of(width=64, num_hidden_layers=3, seed=1)
    lm.save(root / "aligned")
    lm = load(open_checkpoint(root / "aligned"))
    own = refusal_direction.measured(lm, asked.safe, asked.unsafe).whole[1]
    directions = {"ablated": own, "turned": drawn(64, seed=3)}
    for name in ("ablated", "turned", "tuned"):
        lm.save(root / name)
        file = next((root / name).glob("*.safetensors"))
        tensors = load_file(file)
        for i, key in enumerate(sorted(k for k in tensors if k.endswith(WRITING))):
            if name == "tuned":
                change = torch.outer(drawn(64, seed=i), drawn(tensors[key].shape[1], seed=20 + i))
                tensors[key] = tensors[key] + 0.1 * change * tensors[key].norm() / change.norm()
            else:
                r = torch.nn.functional.normalize(directions[name], dim=0)
                tensors[key] = tensors[key] - torch.outer(r, r @ tensors[key])
        save_file(tensors, file, metadata={"format": "pt"})
    return {name: open_checkpoint(root / name) for name in ("aligned", "ablated", "turned", "tuned")}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(Store(tmp_path_factory.mktemp("runs")), Listener())


def found(models: dict[str, Checkpoint], name: str, control: str = "") -> Audited:
    return audited([models["aligned"], models[name]], *([models[control]] if control else []))


@pytest.fixture(scope="module")
def ablated(pipeline: Pipeline, models: dict[str, Checkpoint], asked: Question) -> Findings:
    return measured(pipeline, found(models, "ablated", "tuned"), asked, None)


@pytest.mark.long
def test_the_answer_and_the_page_name_a_removed_refusal_direction(
    pipeline: Pipeline, models: dict[str, Checkpoint], asked: Question, data: TextData, ablated: Findings, tmp_path: Path
) -> None:
    of = found(models, "ablated", "tuned")
    page, said = audit_report(of, asked, ablated, data, {}, "titer audit", tmp_path / "audit")
    assert "One direction was removed from 6 of 6 residual-writing matrices (by 100%; rank 1 holds 100% of their change" in said
    assert "; it is the refusal direction of layer 2 (|cos| 1.00, by chance at most 0." in said
    fell = pd.DataFrame([{**moved("unsafe", "refused", -0.3, -0.4, -0.2), "change": "aligned → ablated"}])
    (told,) = before(of, asked, replace(ablated, shifts=fell), [])[-1].commands
    assert told[0].startswith("Refusals fell, and a direction was edited out of the weights: use aligned in place of ablated.")
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert "The fingerprint of an edit" in text
    assert "6 of 6" in text
    own = prints.summary(ablated.prints).set_index("change")
    assert own.edited.to_dict() == {"aligned → ablated": 6, "aligned → tuned": 0}
    assert own.share["aligned → tuned"] > 0.999  # rank 1, and no edit
    made = len(pipeline.store.made)
    again = measured(pipeline, of, asked, None)
    assert len(pipeline.store.made) == made
    pd.testing.assert_frame_equal(again.prints, ablated.prints)


@pytest.mark.long
def test_another_direction_is_not_called_the_refusal_direction(pipeline: Pipeline, models: dict[str, Checkpoint], asked: Question) -> None:
    of = found(models, "turned")
    assert of.last
    table = prints.of_change(pipeline, of.last, skeleton(models["turned"]), None)
    assert "One direction was removed from 6 of 6"[1:] in prints.sentence(table, of.last, None)
    assert "refusal" not in prints.sentence(table, of.last, None)
    assert "|cos| with the refusal" not in str(prints.section(table)[0].table)
    f = measured(pipeline, of, asked, None)
    assert "it is the refusal direction" not in answer(of, f)


@pytest.mark.long
def test_a_tune_or_a_control_with_as_many_edits_gives_no_sentence(models: dict[str, Checkpoint], ablated: Findings) -> None:
    of = found(models, "ablated", "tuned")
    assert of.last
    assert of.control
    assert prints.sentence(ablated.prints, of.control, None) == ""
    assert prints.sentence(ablated.prints, of.last, of.last) == ""
    assert prints.sentence(ablated.prints[:0], of.last, None) == ""
    assert prints.section(ablated.prints[:0]) == []
    named = replace(of.control, after=Model("x", "y", of.control.after.checkpoint))
    assert prints.sentence(ablated.prints, named, None) == ""


def test_directions_of_their_own_are_told_as_such(models: dict[str, Checkpoint], ablated: Findings) -> None:
    of = found(models, "ablated")
    assert of.last
    apart = ablated.prints.assign(common=0.4, common_random=0.5, refusal=0.1)
    said = prints.sentence(apart, of.last, None)
    assert said.startswith("a different direction was removed from each of 6 of 6 residual-writing matrices")
    assert "refusal" not in said
