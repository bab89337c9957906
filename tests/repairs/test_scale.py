"""Scaling: known answers at both ends and between, and an adapter scaled in B."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.gguf_made import as_gguf, model_of
from tests.repairs.made import adapted, family, order, run
from titer.models.checkpoint import open_checkpoint
from titer.models.lora_weights import ADAPTER
from titer.models.safetensors_io import names, tensor_of
from titer.repairs.base import TUNED


@pytest.mark.parametrize("c", [0.0, 0.3, 1.0, 1.5])
def test_it_is_the_aligned_model_plus_a_share_of_the_change(c: float, tmp_path: Path) -> None:
    models = family(tmp_path)
    _, (found,) = run(order("scale", tmp_path, models, settings={"c": c}))
    aligned, tuned = (open_checkpoint(models[role]) for role in ("aligned", TUNED))
    for name in tuned.files:
        start, end = aligned.weight(name), tuned.weight(name)
        torch.testing.assert_close(found.weight(name), start + c * (end - start), rtol=1e-5, atol=1e-6)
        if c in (0.0, 1.0):
            assert torch.equal(found.weight(name), (start, end)[int(c)])


@pytest.mark.parametrize("c", [0.0, 0.25, 1.0])
def test_of_an_adapter_b_alone_is_scaled(c: float, tmp_path: Path) -> None:
    models = family(tmp_path, kind="adapter")
    _, (found,) = run(order("scale", tmp_path, models, settings={"c": c}))
    before, after = tmp_path / "lora" / ADAPTER, tmp_path / "out" / ADAPTER
    assert names(before) == names(after)
    for name in names(before):
        factor = c if "lora_B" in name else 1
        if "lora_" in name:
            assert torch.equal(tensor_of(after, name), tensor_of(before, name) * factor)
    if c == 0:
        aligned = open_checkpoint(models["aligned"])
        assert all(torch.equal(found.weight(n), aligned.weight(n)) for n in found.files)


def test_an_adapter_on_another_model_than_the_aligned_one_is_merged(tmp_path: Path) -> None:
    models = family(tmp_path, roles=("aligned", "else"), kind="adapter")
    plan, (found,) = run(order("scale", tmp_path, {**models, "aligned": models["else"]}))
    assert found.adapter is None
    assert any("the adapter is merged" in note for note in plan.notes)


def test_an_adapter_on_a_gguf_file_stays_on_that_file(tmp_path: Path) -> None:
    """And not on what else its folder holds."""
    lm = model_of()
    lm.save(tmp_path / "aligned")
    file = as_gguf(lm, tmp_path / "aligned" / "one.gguf")
    _, (found,) = run(order("scale", tmp_path, {"aligned": str(file), TUNED: f"{file}+{adapted(tmp_path)}"}))
    assert (found.gguf, found.adapter) == ("one.gguf", tmp_path / "out")
