"""A stranger adds a probe by adding one file, from outside the package: exactly what docs/add_a_probe.md shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import ARCHITECTURES, TINY
from tests.pages import blocks, shown
from tests.probes import test_contract as contract
from tests.probes.made import lively, requests
from titer import cli
from titer.core.plugins import module
from titer.data.example import Example
from titer.data.world import World


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the page's other blocks look for it here
    return shown("add_a_probe", tmp_path / "stream_size.py", 35)


def test_the_file_passes_the_contract(file: Path) -> None:
    contract.test_a_probe_is_a_function_named_after_its_file(str(file))
    contract.test_a_probe_neither_trains_nor_judges(str(file))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_stream_to_which_nothing_is_added_has_its_embedding_s_norm(file: Path, world: World, name: str) -> None:
    lm, examples = ARCHITECTURES[name](world), requests(world, "unsafe")
    with torch.no_grad():
        for key, parameter in lm.model.named_parameters():
            if any(part in key for part in ("o_proj", "down_proj", "attention.dense", "dense_4h_to_h")):
                parameter.zero_()
    ends = [lm.tokenizer(e.prompt)["input_ids"][-1] for e in examples]
    expected = lm.model.get_input_embeddings().weight[ends].norm(dim=1).tolist()
    table = module("probes", str(file)).stream_size(lm, examples)
    assert table.layer.tolist() == [1] * 6 + [2] * 6
    assert table.input.tolist() == [*range(6)] * 2
    assert table.norm.tolist() == pytest.approx(expected * 2, rel=1e-5)


@pytest.mark.parametrize("name", ["neox", "llama"])
def test_it_agrees_with_the_hidden_states_that_transformers_gives_whatever_stands_beside(file: Path, world: World, name: str) -> None:
    lm = lively(world, name)
    probe, examples = module("probes", str(file)), [*requests(world, "safe", 3), Example("a b", True, "unsafe", "a test")]
    table = probe.stream_size(lm, examples)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in lm.model.modules())
    for number, example in enumerate(examples):
        ids = torch.tensor([lm.tokenizer(example.prompt)["input_ids"]])
        with torch.no_grad():  # the last hidden state stands behind the final norm, and is no layer's
            expected = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, -1].norm()
        mine = table[(table.layer == 1) & (table.input == number)]
        assert mine.norm.tolist() == pytest.approx([float(expected)], rel=1e-5)
    assert table.harmful.tolist() == [False, False, False, True] * 2
    turned = probe.stream_size(lm, examples[::-1]).sort_values(["layer", "input"], ascending=[True, False])
    np.testing.assert_allclose(turned.norm, table.norm, rtol=1e-5)


def test_python_takes_it(file: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = lively(world, "llama")
    lm.save(tmp_path / "MODEL")
    (tmp_path / "prompts.csv").write_text("prompt,label\na b,safe\nb c,unsafe\nc d e,unsafe\n", encoding="utf-8")
    names: dict[str, Any] = {}
    exec(blocks("add_a_probe")[1], names)  # noqa: S102  the page's own
    assert names["table"].harmful.tolist() == [False, True, True] * 2
    assert "harmful" in capsys.readouterr().out
    assert {e.prompt for e in names["data"].of_class(True)} == {"b c", "c d e"}
    expected = names["probe"].stream_size(lm, names["data"].of_class(True)).norm
    np.testing.assert_allclose(names["table"][names["table"].harmful].norm, expected, rtol=1e-5)


@pytest.mark.long
def test_a_study_takes_it(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    study = shown("add_a_study", tmp_path / "forgetting.py", 60)
    tiny = f"demo.Scale.model_validate_json({TINY.model_copy(update={'name': 'tiny'}).model_dump_json()!r})"
    code = study.read_text(encoding="utf-8").replace("import Need,", "import Measure, Need,").replace('"quick": QUICK', f'"tiny": {tiny}')
    code = code.replace("QUICK =", 'from titer.core.plugins import module\n\nprobe = module("probes", "./stream_size.py")\nQUICK =')
    code = code.replace("0.95, first=True", "-1.0").replace('"refused", 0.9)', '"refused", -1.0)')
    study.write_text(code.rstrip("\n") + "\n\n" + blocks("add_a_probe")[2], encoding="utf-8")
    monkeypatch.setattr(
        sys, "argv", ["titer", "study", str(study), "--scale", "tiny", "--seeds", "1", "--bases", "1", "--only", "size", "--json"]
    )
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    made = json.loads(capsys.readouterr().out)
    results = pd.read_csv(Path(made["report"]).with_name("results.csv"))
    sizes = results[results.table == "size"]
    assert set(sizes.model) == {"aligned", "user"}
    assert len(sizes) == 2 * 2 * TINY.inputs  # models, layers, inputs
    assert (sizes.norm > 0).all()
