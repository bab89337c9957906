"""Fixtures shared by the tests: a tiny world and scale, tiny models of two architectures, the shared data."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import vl_convert
from altair.vegalite.v6.schema.core import TopLevelSpec
from hypothesis import settings

from titer.data.world import World
from titer.models.lm import LM, Architecture
from titer.recipes.demo import Scale
from titer.report import drawing

gc.disable()  # until all is imported and collected
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # small tensors: threads only cost here, and results must not depend on them
# the same examples in every run, and no deadline that a busy machine could miss
settings.register_profile("titer", deadline=None, derandomize=True, database=None)
settings.load_profile("titer")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What is imported and collected stays: a full garbage collection, which every trainer asks for, need not look through it (0.4 s)."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies a folder's code into a folder of the test's, not of the user's, and puts that into Python's path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield


bundle, CHILD = cache(vl_convert.javascript_bundle), [*drawing.CHILD]
DRAWINGS: dict[tuple[str, frozenset[str]], str] = {}  # by a chart's name and words: drawings cost as much as the rest of a page


def draw(asked: dict[str, Any]) -> dict[str, Any]:
    """What the child makes of `asked`, made in this process, where its engine starts once: it is two seconds of a page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "javascript_bundle", bundle)
        return drawing.converted(asked)


def draw_once(asked: dict[str, Any]) -> dict[str, Any]:
    """The same, but a chart of a name and words that were drawn before has that drawing, whatever its numbers.

    A new one is held against Vega-Lite's schema, which a report's writer does not do.
    """
    keys = {name: (name, frozenset(words(spec))) for name, spec in asked["specs"].items()}
    new = {name: spec for name, spec in asked["specs"].items() if keys[name] not in DRAWINGS}
    for spec in new.values():
        TopLevelSpec.validate(spec)
    made = draw({**asked, "specs": new})
    DRAWINGS.update({keys[name]: svg for name, svg in made["drawings"].items()})
    return {**made, "drawings": {name: DRAWINGS[key] for name, key in keys.items()}}


def words(spec: Any) -> Iterator[str]:
    """Every text in a chart's specification but the names that altair gives data and views, which count up or follow the numbers."""
    if isinstance(spec, str):
        if not re.fullmatch(r"data-[0-9a-f]{32}|view_\d+", spec):
            yield spec
    elif isinstance(spec, dict | list):
        for one in spec.values() if isinstance(spec, dict) else spec:
            yield from words(one)


@contextlib.contextmanager
def drawing_here(with_: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """In place of the process that draws a page's charts; a test's own child stays one."""

    def run(command: list[str], *, input: str, check: bool, **more: Any) -> subprocess.CompletedProcess[str]:
        if command != CHILD:
            return subprocess.run(command, input=input, check=check, **more)
        return subprocess.CompletedProcess(command, 0, json.dumps(with_(json.loads(input))), "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "run", run)
        yield


@pytest.fixture(scope="module", autouse=True)
def drawn_here() -> Iterator[None]:
    """Charts are drawn in this process, those of one name and words once; by the child before, for a session's reports."""
    with drawing_here(draw_once):
        yield


class Here(Executor):
    """Does each piece of work at once, given as another process would get it."""

    def submit(self, fn: Any, /, *args: Any, **_: Any) -> Future[Any]:
        done: Future[Any] = Future()
        make, given = pickle.loads(pickle.dumps((fn, args)))  # noqa: S301  made in this line
        try:
            done.set_result(make(*given))
        except Exception as error:  # noqa: BLE001  as a pool hands it on
            done.set_exception(error)
        return done


@pytest.fixture(scope="module", autouse=True)
def pieces_here() -> Iterator[None]:
    """What studies make ahead is made in this process: another would import everything first (core/test_parallel.py has them)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("titer.core.parallel.ProcessPoolExecutor", lambda *_, **__: Here())
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
