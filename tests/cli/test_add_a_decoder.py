"""A stranger adds a decoder by adding one file, from outside the package: exactly what docs/add_a_decoder.md shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Titer
from tests.conftest import neox
from tests.decoders import contract
from tests.pages import shown
from titer import api
from titer.core.plugins import plugin
from titer.decoders.base import Decoder, Guided

FEW = ("--data", "d.csv", "--max-new-tokens", "3")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return shown("add_a_decoder", tmp_path / "mixture.py", 35)


@pytest.mark.long
def test_the_file_passes_the_contract(file: Path, tmp_path: Path) -> None:
    kind = plugin("decoders", str(file), Decoder)
    contract.check_declared(kind)
    contract.check_neutral(kind, neox)
    contract.check_roles(kind, neox)
    contract.check_resume(kind, neox, {"share": 0.9}, tmp_path)
    for check in (contract.check_acts, contract.check_batches, contract.check_sampling, contract.check_no_hook_left):
        check(kind, neox, {"share": 0.9})


def test_it_mixes_probabilities(file: Path) -> None:
    kind = plugin("decoders", str(file), Decoder)
    lm, others = contract.models(neox, kind)
    alone = contract.answers(others["other"], None, {})
    assert contract.answers(lm, Guided(kind(share=1.0)), others) == alone
    (first, *_), (own, *_), (other, *_) = (
        contract.scores(model, one, {} if one is None else others, contract.SAMPLED)
        for model, one in ((lm, Guided(kind(share=0.3))), (lm, None), (others["other"], None))
    )
    torch.testing.assert_close(first.softmax(-1), 0.7 * own.softmax(-1) + 0.3 * other.softmax(-1))


@pytest.mark.long
def test_the_command_line_takes_it(file: Path, titer: Titer) -> None:
    settings = {"data": "d.csv", "max_new_tokens": 3, "progress": False}
    plain = api.evaluate("m", **settings).verdicts.completion.tolist()
    found = api.evaluate("m", decoder=str(file), reads={"other": "m"}, **settings).verdicts.completion.tolist()
    assert found == plain  # two halves of one model
    assert "mixture" in Path(titer("evaluate", "m", *FEW, "--decoder", str(file), "--read", "other=m", "--json").json["report"]).read_text()
    assert "2 models in memory" in titer("audit", "m", *FEW, "--decoder", str(file), "--read", "other=m", "--dry-run").out
