"""Weights in several files: the same model as in one; an index that lies is refused before anything is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.families import PROMPTS
from titer.core.errors import TiterError
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, Decoding, load
from titer.models.weights import difference, shapes_of, weights_bytes

INDEX = "model.safetensors.index.json"


@pytest.fixture
def parts(lm: LM, tmp_path: Path) -> Path:
    """A tiny model in several files."""
    lm.model.save_pretrained(tmp_path / "parts", max_shard_size="6KB")
    lm.tokenizer.save_pretrained(tmp_path / "parts")
    return tmp_path / "parts"


def indexed(folder: Path, **weight_map: Any) -> None:
    """Change places of the index; a tensor whose place is None leaves it."""
    read = json.loads((folder / INDEX).read_text())
    places = {name: file for name, file in {**read["weight_map"], **weight_map}.items() if file is not None}
    (folder / INDEX).write_text(json.dumps({**read, "weight_map": places}))


def test_shards_are_the_whole(family: LM, tmp_path: Path) -> None:
    family.save(tmp_path / "whole")
    family.model.save_pretrained(tmp_path / "parts", max_shard_size="6KB")
    family.tokenizer.save_pretrained(tmp_path / "parts")
    whole, split = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "parts")
    assert len(split.weight_files) > 3
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert set(split.files) == set(whole.files)
    assert shapes_of(split) == shapes_of(whole)
    assert not difference(split, whole)
    assert weights_bytes(split) == sum(f.stat().st_size for f in (tmp_path / "parts").glob("*.safetensors"))
    decoding = Decoding(max_new_tokens=10)
    assert load(split).generate(PROMPTS, decoding) == load(whole).generate(PROMPTS, decoding)


def test_shards_without_an_index_are_the_whole(lm: LM, parts: Path) -> None:
    """As vLLM and mergekit read them; transformers does not find them."""
    (parts / INDEX).unlink()
    split, decoding = open_checkpoint(parts), Decoding(max_new_tokens=10)
    assert load(split).generate(PROMPTS, decoding) == lm.generate(PROMPTS, decoding)
    first = sorted(parts.glob("*.safetensors"))[0]
    save_file(load_file(first), parts / "model.fp16.safetensors")
    with pytest.raises(TiterError, match=rf"is in two files of .*: {first.name} and model\.fp16\.safetensors.*keep one set"):
        open_checkpoint(parts)


def test_copies_in_other_files_are_not_read(parts: Path) -> None:
    files = open_checkpoint(parts).files
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "model.fp16.safetensors"):
        save_file({"other.weight": torch.zeros(2)}, parts / name)
    assert open_checkpoint(parts).files == files
    load(open_checkpoint(parts))


def test_a_whole_file_beside_others_is_the_model(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "m")
    files = open_checkpoint(tmp_path / "m").files
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "m" / "consolidated.safetensors")
    assert open_checkpoint(tmp_path / "m").files == files


def test_two_sets_of_weights_are_refused(parts: Path) -> None:
    first = sorted(parts.glob("*.safetensors"))[0]
    save_file(load_file(first), parts / "model.safetensors")
    with pytest.raises(TiterError, match=r"holds two sets of weights: model\.safetensors, and the shards of .*keep one of them"):
        open_checkpoint(parts)


def test_missing_shards_are_counted(parts: Path) -> None:
    shards = sorted(parts.glob("*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    with pytest.raises(TiterError, match=rf"lacks {shards[0].name} \(2 of {len(shards)} shards are missing\)"):
        open_checkpoint(parts)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/hostname", "sub/x.safetensors", "x.bin", "", ".", "a\x1b.bin"])
def test_an_index_that_points_elsewhere_is_refused(parts: Path, place: str) -> None:
    save_file({"w": torch.zeros(2)}, parts.parent / "outside.safetensors")
    indexed(parts, w=place)
    with pytest.raises(TiterError, match=r"Expected: \*\.safetensors of its own folder") as caught:
        open_checkpoint(parts)
    assert "\x1b" not in str(caught.value)


def test_an_index_that_names_what_is_not_there_is_refused(parts: Path) -> None:
    shard = sorted(parts.glob("*.safetensors"))[0].name
    indexed(parts, **{"model.invented.weight": shard})
    with pytest.raises(TiterError, match=rf"model\.invented\.weight is not in {shard}, where"):
        open_checkpoint(parts)


def test_a_tensor_that_the_index_leaves_out_is_measured_as_it_runs(parts: Path) -> None:
    """transformers reads the shards whole; what is in none of them is never made up."""
    whole = open_checkpoint(parts).files
    lost = next(name for name in whole if ".1." in name)
    indexed(parts, **{lost: None})
    assert open_checkpoint(parts).files == whole
    tensors_of = [file for file in parts.glob("*.safetensors") if lost in load_file(file)]
    for file in tensors_of:
        kept = {name: tensor for name, tensor in load_file(file).items() if name != lost}
        save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(TiterError, match="missing or misshapen"):
        load(open_checkpoint(parts))


def test_a_tensor_in_two_shards_is_refused(parts: Path) -> None:
    """Which of them runs is a matter of their order."""
    first, last = sorted(parts.glob("*.safetensors"))[:2]
    save_file({**load_file(last), **dict(list(load_file(first).items())[:1])}, last, metadata={"format": "pt"})
    with pytest.raises(TiterError, match=r"is in two files of .*: model-.* and model-"):
        open_checkpoint(parts)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_named(parts: Path, text: str) -> None:
    (parts / INDEX).write_text(text)
    with pytest.raises(TiterError, match=r"model\.safetensors\.index\.json .*Next: fetch or build it again"):
        open_checkpoint(parts)


def test_a_cut_shard_is_named(parts: Path) -> None:
    shard = sorted(parts.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(TiterError, match=rf"{shard.name} in .* is damaged or cut short"):
        open_checkpoint(parts)
