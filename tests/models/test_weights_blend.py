"""Blended models on disk, and what a checkpoint's files say without being read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.families import PROMPTS, SUPPORTED
from tests.probes.made import drawn, lively
from titer.data.encode import prompt_ids
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.interpolate import along, weights_of, with_weights
from titer.models.lm import LM, load
from titer.models.weights import blend, shapes_of, weights_bytes


def two(lm: LM, folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """A model and one with every parameter changed."""
    lm.save(folder / "base")
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(0.1 * drawn(*parameter.shape, seed=parameter.numel()))
    lm.save(folder / "tuned")
    return open_checkpoint(folder / "base"), open_checkpoint(folder / "tuned")


@pytest.mark.parametrize("alpha", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_a_blended_folder_opens_and_equals_the_model_along_the_change(name: str, alpha: float, world: World, tmp_path: Path) -> None:
    base, tuned = two(lively(world, name), tmp_path)
    blend(base, tuned, alpha, tmp_path / "new" / "blend")
    found = load(open_checkpoint(tmp_path / "new" / "blend"), "cpu")
    start, end = (weights_of(load(one, "cpu")) for one in (base, tuned))
    wanted = along(start, end, alpha)
    mine = weights_of(found)
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[tensor], wanted[tensor]) for tensor in wanted)
    rows = prompt_ids(found.tokenizer, PROMPTS)
    lm = load(base, "cpu")
    with with_weights(lm, wanted):
        assert torch.equal(found.logits(rows)[0], lm.logits(rows)[0])
    if alpha == 1:
        assert torch.equal(found.logits(rows)[0], load(tuned, "cpu").logits(rows)[0])


def test_models_in_several_files_blend_into_one(lm: LM, tmp_path: Path) -> None:
    base, tuned = two(lm, tmp_path)
    for one in (base, tuned):
        load(one, "cpu").model.save_pretrained(tmp_path / f"{one.path.name}-sharded", max_shard_size="6KB")
        lm.tokenizer.save_pretrained(tmp_path / f"{one.path.name}-sharded")
    sharded = [open_checkpoint(tmp_path / f"{one}-sharded") for one in ("base", "tuned")]
    assert len(set(sharded[0].files.values())) > 2
    blend(*sharded, 0.5, tmp_path / "blend")
    assert not list((tmp_path / "blend").glob("*.index.json"))  # it would name files that are not there
    blend(base, tuned, 0.5, tmp_path / "plain")
    found, wanted = (weights_of(load(open_checkpoint(tmp_path / name), "cpu")) for name in ("blend", "plain"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert shapes_of(sharded[0]) == shapes_of(base)
    assert weights_bytes(sharded[0]) == sum(file.stat().st_size for file in sharded[0].path.glob("*.safetensors"))


@pytest.mark.parametrize(("dtype", "word", "size"), [(torch.float32, "F32", 4), (torch.bfloat16, "BF16", 2)])
def test_shapes_and_types_of_every_tensor_and_the_bytes_of_the_files(
    dtype: torch.dtype, word: str, size: int, lm: LM, tmp_path: Path
) -> None:
    lm.model.to(dtype)
    lm.save(tmp_path / "m")
    opened = open_checkpoint(tmp_path / "m")
    assert shapes_of(opened) == {name: (tuple(opened.weight(name).shape), word) for name in opened.files}
    numbers = sum(opened.weight(name).numel() for name in opened.files)
    assert numbers == sum(p.numel() for p in lm.model.parameters())
    file = tmp_path / "m" / "model.safetensors"
    assert weights_bytes(opened) == file.stat().st_size
    assert numbers * size < weights_bytes(opened) < numbers * size + 8000  # the header beside them
