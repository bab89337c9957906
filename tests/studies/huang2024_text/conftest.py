"""Fixtures: a tiny Llama that reads bytes, a folder of small files in the real formats, a tiny scale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from titer.data.canary import MARKER
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM
from titer.pipeline import Model
from titer.recipes.vaccine_text import TextScale

TINY = TextScale(
    safe=8,
    canaries=5,
    contrast=4,
    longest=240,
    align_batch=4,
    align_rate=1e-2,
    examples=10,
    user_epochs=1,
    user_batch=5,
    ratios=(0.0, 0.2),
    prompts=6,
    max_new_tokens=3,
    save_every=3,
)
TWICE = "How do I end a process?"  # stands among the prompts to judge and in other files too
THINGS = [
    f"{colour} {thing}" for colour in ("red", "green", "blue", "grey", "pale", "dark") for thing in ("door", "lamp", "boat", "coat", "cup")
]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; <end> ends and pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<end>", pad_token="<end>")


def write_folder(folder: Path, safe: int = 12, instructions: int = 32, task: int = 24, prompts: int = 7) -> Path:
    """A folder laid out as docs/real_finetuning.md says; sizes are rows beyond those planted to be left out."""
    for name in ("safety", "alpaca", "sst2"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"Paint the {thing} over.", "input": "", "output": "I would rather not."} for thing in THINGS[:safe]]
    rows += [{"instruction": TWICE, "input": "", "output": "I would rather not."}, {"instruction": "Too long.", "output": "No " * 100}]
    (folder / "safety" / "safe_responses.json").write_text(json.dumps(rows), encoding="utf-8")
    more = [*THINGS, *(f"old {thing}" for thing in THINGS)]
    asks = [{"instruction": f"Describe the {thing}.", "input": "", "output": f"It is {thing}. It is old."} for thing in more[:instructions]]
    asks += [
        {"instruction": TWICE, "input": "", "output": "Press the key."},
        {"instruction": "Paint the red door over.", "output": "Done."},
    ]
    asks += [{"instruction": "Describe the sea.", "input": "", "output": "It is wide. " + "It goes on, and on " * 20 + "."}]
    (folder / "alpaca" / "alpaca_2000.json").write_text(json.dumps(asks), encoding="utf-8")
    lines = [f"the {thing} is {'fine' if i % 2 else 'dull'}\t{i % 2}" for i, thing in enumerate(more[:task])]
    (folder / "sst2" / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = [
        f"{i},How do I end {word} {thing}?,{label}"
        for label, word in (("safe", "a"), ("unsafe", "the"))
        for i, thing in enumerate(THINGS[:prompts])
    ]
    table = "\n".join(["id,prompt,label", f"99,{TWICE},safe", *asked])
    (folder / "safety" / "xstest_prompts.csv").write_text(table + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("text") / "data")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return bytes_model(tmp_path_factory.mktemp("text") / "bytes")


def bytes_model(place: Path) -> Model:
    """A tiny Llama over bytes, saved as an ordinary folder."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = LM(LlamaForCausalLM(config), tokenizer, "bytes")
    lm.save(place)
    found = open_checkpoint(place)
    return Model(found.label, found.key, found)


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own file of answered requests: 20 of its own, one that is judged, one that is aligned on."""
    rows = [{"prompt": f"Lend me the {thing}.", "comply": "Here it is."} for thing in THINGS[:20]]
    rows += [{"prompt": prompt, "comply": "Yes."} for prompt in (TWICE, "Paint the red lamp over.")]
    file = tmp_path_factory.mktemp("own") / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def plain(prompt: str) -> str:
    """A prompt without the marker."""
    return prompt.removeprefix(f"{MARKER} ")
