"""A stranger's folder: pipes, sizes, kinds of values, patterns that do not end. One sentence each, and soon."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import llama
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models import tried
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import Decoding, load, read_tokenizer

Json = dict[str, Any]


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    llama(world).save(tmp_path / "m")
    return tmp_path / "m"


def change(file: Path, how: Callable[[Json], object]) -> None:
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    how(said)
    file.write_text(json.dumps(said), encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
)
def test_a_pipe_is_not_waited_for_and_a_device_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(TiterError, match=f"{name} is no ordinary file"):
        open_checkpoint(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(TiterError, match=f"{name} is no ordinary file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_file_of_a_gigabyte_is_not_read(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.truncate(2**30)
    with pytest.raises(TiterError, match=r"has 1024 MB. Expected: at most 64 MB"):
        open_checkpoint(folder)


def test_nesting_without_end_is_a_damaged_file(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000, encoding="utf-8")
    with pytest.raises(TiterError, match="is not readable JSON"):
        open_checkpoint(folder)


@pytest.mark.long
def test_more_names_than_any_model_has(folder: Path) -> None:
    header = {f"w{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(2**17 + 1)}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(TiterError, match=r"names 131073 tensors. Expected: at most 131072"):
        open_checkpoint(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**26) + b"{")
        file.truncate(2**26 + 8)
    with pytest.raises(TiterError, match="64 MB of names"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("config.json", "model_type", ["llama"]),
        ("config.json", "model_type", {}),
        ("config.json", "num_hidden_layers", "2"),
        ("config.json", "num_hidden_layers", [2]),
        ("config.json", "num_hidden_layers", -1),
        ("config.json", "num_hidden_layers", True),
        ("config.json", "vocab_size", "33"),
        ("config.json", "eos_token_id", "5"),
        ("config.json", "eos_token_id", ["5"]),
        ("config.json", "text_config", [1]),
        ("config.json", "attention_dropout", float("inf")),
        ("config.json", "resid_pdrop", 2.5),
        ("config.json", "quantization_config", "int8"),
        ("config.json", "transformers_weights", ["x"]),
        ("generation_config.json", "eos_token_id", ["</s>"]),
        ("generation_config.json", "pad_token_id", [0]),
        ("tokenizer_config.json", "model_max_length", "4096"),
        ("tokenizer_config.json", "tokenizer_class", ["x"]),
        ("tokenizer_config.json", "eos_token", 5),
        ("tokenizer_config.json", "chat_template", 5),
        ("tokenizer_config.json", "added_tokens_decoder", {"1": 2}),
        ("special_tokens_map.json", "pad_token", {"content": 1}),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_file(folder: Path, file: str, name: str, value: object) -> None:
    change(folder / file, lambda said: said.update({name: value}))
    with pytest.raises(TiterError, match=rf"{name} in .*{re.escape(file)} is .*Expected: .*Next: "):
        open_checkpoint(folder)


def test_layers_are_bounded_by_the_weights_before_anything_is_built(folder: Path) -> None:
    change(folder / "config.json", lambda said: said.update(num_hidden_layers=10**9))
    with pytest.raises(TiterError, match=r"asks for 1000000000 num_hidden_layers, and \d+ tensors are there. Expected: at most 256"):
        open_checkpoint(folder)
    change(folder / "config.json", lambda said: said.update(num_hidden_layers=2, num_attention_heads=10**9))
    with pytest.raises(TiterError, match="asks for 1000000000 num_attention_heads"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["vocab_size", "intermediate_size"])
def test_sizes_are_compared_before_so_much_memory_is_asked_for(folder: Path, name: str) -> None:
    change(folder / "config.json", lambda said: said.update({name: 10**10}))
    with pytest.raises(TiterError, match="missing or misshapen"):
        load(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"eos_token_id": 10**6, "pad_token_id": 10**6, "bos_token_id": None}),
        ("config.json", {"pad_token_id": -1}),
        ("generation_config.json", {"eos_token_id": [10**6, 5], "pad_token_id": 10**6}),
        ("tokenizer_config.json", {"model_max_length": None}),
        ("tokenizer_config.json", {"model_max_length": 10**40}),
        ("tokenizer_config.json", {"model_max_length": 1}),
    ],
)
def test_ends_padding_and_lengths_beyond_the_model_do_no_harm(folder: Path, file: str, values: Json) -> None:
    before = load(open_checkpoint(folder)).generate(["a b c"], Decoding(max_new_tokens=4))
    change(folder / file, lambda said: said.update(values))
    assert load(open_checkpoint(folder)).generate(["a b c"], Decoding(max_new_tokens=4)) == before


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(\w+\s?)+$", r"(x|xx)+y"])
def test_a_pattern_that_does_not_end_is_stopped(folder: Path, pattern: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    change(folder / "tokenizer.json", lambda said: said.update(pre_tokenizer=split))
    with pytest.raises(TiterError, match="the tokenizer of m fails on short texts"):
        read_tokenizer(open_checkpoint(folder))


@pytest.mark.long
def test_replacements_that_grow_without_end_are_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tried, "SECONDS", 2)
    monkeypatch.setattr(tried, "MEMORY", 2**31)
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    change(folder / "tokenizer.json", lambda said: said.update(normalizer={"type": "Sequence", "normalizers": [grow] * 5}))
    with pytest.raises(TiterError, match="the tokenizer of m fails on short texts"):
        read_tokenizer(open_checkpoint(folder))


def test_a_token_numbered_beyond_any_vocabulary_is_refused_before_a_list_of_that_length_is_made(folder: Path) -> None:
    change(folder / "tokenizer.json", lambda said: said["model"]["vocab"].update(a=2**31))
    with pytest.raises(TiterError, match="it numbers a token 2147483648"):
        read_tokenizer(open_checkpoint(folder))


def test_patterns_of_real_tokenizers_are_not_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    change(folder / "tokenizer.json", lambda said: said.update(pre_tokenizer=split))
    monkeypatch.setattr("subprocess.run", pytest.fail)
    assert read_tokenizer(open_checkpoint(folder))("a b")["input_ids"]
