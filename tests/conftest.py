"""Fixtures shared by the tests: a tiny world and scale, tiny models of two architectures, the shared data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from titer.data.world import World
from titer.models.lm import LM, Architecture
from titer.recipes.demo import Scale

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # small tensors: threads only cost here, and results must not depend on them


@pytest.fixture(scope="session", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies a folder's code into a folder of the test's, not of the user's, and puts that into Python's path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield


@pytest.fixture(scope="session")
def world() -> World:
    return World(seed=1)


TINY = Scale(
    architecture=Architecture(layers=2, width=16, heads=2, positions=32),
    pretrain_steps=12,
    pretrain_batch=16,
    align_steps=6,
    align_batch=16,
    user_examples=40,
    user_batch=10,
    user_epochs=1,
    poison_ratios=(0.0, 0.05),
    inputs=12,
    probe_inputs=12,
    save_every=2,
)


@pytest.fixture(scope="session")
def tiny() -> Scale:
    """A demo that runs in seconds; its model learns little, which the mechanics do not mind."""
    return TINY


def neox(world: World, seed: int = 0) -> LM:
    """A tiny GPT-NeoX over the world's vocabulary."""
    return Architecture(layers=2, width=16, heads=2, positions=64).build(world.tokenizer(), seed)


def llama(world: World, seed: int = 0) -> LM:
    """A tiny Llama (gated MLP, no biases) over the world's vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = world.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LM(LlamaForCausalLM(config), tokenizer, "tiny llama")


ARCHITECTURES = {"neox": neox, "llama": llama}


@pytest.fixture(params=sorted(ARCHITECTURES))
def lm(request: pytest.FixtureRequest, world: World) -> LM:
    """One tiny model of each architecture."""
    return ARCHITECTURES[request.param](world)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public test data; the test is skipped where it is absent."""
    folder = Path(os.environ.get("TITER_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no test data: set TITER_TEST_DATA to its folder")
    return folder
