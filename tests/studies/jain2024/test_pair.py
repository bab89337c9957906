"""The mechanistic study's probes on two given checkpoints: tables, what they say of known changes, the command line."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import llama
from tests.studies.conftest import Listener
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.sources import TextData, read_text
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.pipeline import Model, Pipeline
from titer.studies.jain2024.pair import MODELS, leet_of, measured, pair_cost, pair_report, sets_of

LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def data() -> TextData:
    rows = [(f"{a} {b} f{int(harmful)}", harmful, None, None) for harmful in (False, True) for a in LETTERS[:4] for b in LETTERS[:3]]
    return TextData(name="pairs", sha256="0" * 64, rows=tuple(rows))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """A tiny Llama, and the same with another first MLP matrix in its last layer."""
    folder = tmp_path_factory.mktemp("pair")
    lm = llama(World(seed=1))
    lm.save(folder / "base")
    lm.save(folder / "aligned")
    file = next((folder / "aligned").glob("*.safetensors"))
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name] + 0.1 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, file, metadata={"format": "pt"})
    return open_checkpoint(folder / "base"), open_checkpoint(folder / "aligned")


def test_sets_are_both_classes_and_the_unsafe_prompts_encoded(data: TextData) -> None:
    sets = sets_of(data, 8)
    assert {kind: len(e) for kind, e in sets.items()} == {"safe": 8, "unsafe": 8, "base64": 8, "leetspeak": 8}
    for coded, plain in zip(sets["base64"], sets["unsafe"], strict=True):
        assert base64.b64decode(coded.prompt).decode() == plain.prompt
    assert leet_of("a list of toes") == "4 l157 0f 7035"


def test_too_few_prompts_are_an_error(data: TextData) -> None:
    with pytest.raises(TiterError, match="at least 4 of each class"):
        sets_of(data, 3)


def test_the_change_is_found_where_it_is(data: TextData, pair: tuple[Checkpoint, Checkpoint], tmp_path: Path) -> None:
    models = [Model(name, c.key, c) for name, c in zip(MODELS, pair, strict=True)]
    found = measured(Pipeline(Store(tmp_path), Listener()), models, sets_of(data, None))
    change = found["change"]
    assert change[change.relative_norm > 0].tensor.tolist() == ["model.layers.1.mlp.up_proj.weight"]
    assert change[change.relative_norm > 0].part.tolist() == ["mlp"]
    assert set(found["null"].layer) == {2}
    placed = found["placement"]
    placed = placed[placed.kind.isin(["safe", "unsafe"])]  # the world's tokenizer knows no word of an encoded prompt
    first, last = (placed[(placed.model == "aligned") & (placed.layer == layer)].gain for layer in (1, 2))
    assert (first == 0).all()
    assert (last > 0).all()
    base, aligned = (placed[(placed.model == m) & (placed.layer == 1)].tau.to_numpy() for m in MODELS)
    assert np.allclose(base, aligned)


def test_the_report_is_written_and_a_second_call_probes_nothing(
    data: TextData, pair: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    page, answer = pair_report(
        Pipeline(store, Listener()), *pair, data, None, "titer study jain2024 --base B --aligned A", tmp_path / "out"
    )
    assert page.exists()
    assert answer.startswith("In the last layer the aligned model separates safe from unsafe prompts")
    assert (tmp_path / "out" / "figures" / "fig3.svg").exists()
    made = len(store.made)
    pair_report(Pipeline(store, Listener()), *pair, data, None, "titer study jain2024 --base B --aligned A", tmp_path / "out")
    assert len(store.made) == made


def test_the_cost_is_told_without_loading_a_model(data: TextData, pair: tuple[Checkpoint, Checkpoint]) -> None:
    found = pair_cost(*pair, data, None)
    assert found["prompts"].startswith("48 (12 safe, 12 unsafe, 12 base64, 12 leetspeak)")
    assert "FLOP" in found["forward and backward"]


def test_a_file_of_verbs_and_objects_is_a_file_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("operator,operand,label\npaint,a chair,safe\nmend,the gate,unsafe\n")
    found = read_text(file)
    assert [row[:2] for row in found.rows] == [("paint : a chair", False), ("mend : the gate", True)]
