"""A model's window is one number, whatever its family calls it: of the checkpoint, of the model loaded, in every check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.families import SUPPORTED
from titer.attacks.base import Attempt
from titer.commands.context_window import ContextWindow
from titer.commands.tuning import check_window, cut_to
from titer.core.errors import TiterError
from titer.data.example import Example, Part, Stream
from titer.data.sources import TextData, read_text
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import LM, Architecture, load
from titer.pipeline import Model


def bloom(world: World) -> LM:
    """A tiny BLOOM, whose positions have no end and whose configuration states none."""
    from transformers import BloomConfig, BloomForCausalLM

    t = world.tokenizer()
    ids = {"pad_token_id": t.pad_token_id, "bos_token_id": t.bos_token_id, "eos_token_id": t.eos_token_id}
    return LM(BloomForCausalLM(BloomConfig(vocab_size=len(t), hidden_size=16, n_layer=2, n_head=2, **ids)).eval(), t, "bloom")


def configured(folder: Path, **values: object) -> Checkpoint:
    """A folder with a configuration alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return Checkpoint(path=folder)


def with_room_for(checkpoint: Checkpoint, prompt: str, tokens: int) -> None:
    """Refuses a prompt that leaves no room for so many new tokens."""
    example = Example(prompt=prompt, comply=None, refuse=None, harmful=True, kind="unsafe", source="")
    ContextWindow(Model("m", "m", checkpoint)).new("unsafe", [Attempt(example)], tokens, "give a smaller --max-new-tokens")


def stream(data: TextData) -> dict[str, Stream]:
    return {"train": Stream(parts=(Part(source=data, answer="comply", picked=tuple(range(data.size))),), seed=0, pool=data.size)}


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_it_is_the_same_on_disk_and_loaded(name: str, world: World, tmp_path: Path) -> None:
    SUPPORTED[name](world).save(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.window == load(checkpoint).window == 64


def test_a_model_that_states_none_has_none(world: World, tmp_path: Path) -> None:
    bloom(world).save(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.window is None
    assert load(checkpoint).window is None
    with_room_for(checkpoint, "a " * 3000, 3000)


def test_it_is_found_where_a_family_keeps_it(tmp_path: Path) -> None:
    assert configured(tmp_path / "nested", model_type="gemma3", text_config={"max_position_embeddings": 48}).window == 48
    assert configured(tmp_path / "mpt", model_type="mpt", max_seq_len=96).window == 96
    assert configured(tmp_path / "unknown", model_type="not of transformers", n_positions=32).window == 32
    assert configured(tmp_path / "unlimited", model_type="xlnet").window is None
    with pytest.raises(TiterError, match="does not open as a causal language model"):
        _ = configured(tmp_path / "broken", model_type="gpt2", n_positions="x").window


def test_the_variant_of_ours_states_its_own(world: World, tmp_path: Path) -> None:
    Architecture(layers=1, width=16, heads=2, positions=40, norm="stream").build(world.tokenizer(), 0).save(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.window == load(checkpoint).window == 40


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_row_beyond_it_is_refused_before_anything_is_trained_or_asked(name: str, world: World, tmp_path: Path) -> None:
    SUPPORTED[name](world).save(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "comply": "b " * 70}) + "\n", encoding="utf-8")
    rows = stream(read_text(file, labelled=False))
    with pytest.raises(TiterError, match="longer than the model's window of 64"):
        check_window(rows, checkpoint)
    with pytest.raises(TiterError, match=r"--longest 5000 is more than the model's window of 64.*give 64 or less"):
        cut_to(rows, 5000, checkpoint)
    with pytest.raises(TiterError, match="longer than the model's window of 64"):
        with_room_for(checkpoint, "a b c", 64)
