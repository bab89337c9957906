"""The mechanistic study's recipe: what its streams show, read off their tokens, and the shape of its tree of models."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest

from tests.data.naive import class_of, operators_of, text_class
from titer.data.example import IGNORE, Example, Stream
from titer.data.world import World
from titer.methods.dpo import DPO
from titer.methods.unlearn import Unlearn
from titer.recipes.jain2024 import NANO, SCALES, Scale, jain_recipe, relearn
from titer.recipes.node import Node

SEEDS = (0, 3)
SCALE = NANO.model_copy(update={"pool": 1024})
PAIRED = ("dpo M", "dpo S", "unlearn M", "unlearn S", "dpo-sum M", "sham dpo M", "sham unlearn M")
SHAMS = ("sham ssft M", "sham dpo M", "sham unlearn M")


class Row(NamedTuple):
    """One example of a stream, as words without padding: what the model reads, what it is trained on, the request behind it."""

    words: list[str]
    trained: list[str]
    prompt: list[str]
    harmful: bool
    answers: dict[str, str]


@lru_cache
def nodes(seed: int) -> dict[str, Node]:
    return {node.name: node for node in jain_recipe(SCALE, seed)}


def world_of(seed: int) -> World:
    return SCALE.world.model_copy(update={"seed": seed})


def unsafe(example: Example, world: World) -> bool:
    """Section 1.7 by words: an always-unsafe operator (or another name of one), or a contextual one on a text not safe."""
    kinds = [class_of(name, world) for name in operators_of(example, world)]
    return "unsafe" in kinds or "duplicate" in kinds or ("contextual" in kinds and text_class(example, world) != "safe")


def rows(stream: Stream, world: World) -> Iterator[Row]:
    """Every example of a stream's pool, in the pool's order."""
    numbers = np.arange(stream.pool or 0)
    batch = stream.chosen(numbers, world.tokenizer())
    part_of, index, names = *stream.places(numbers), world.words
    examples: dict[int, Example] = {}
    for number, part in enumerate(stream.parts):
        mine = np.flatnonzero(part_of == number)
        examples.update(zip(mine.tolist(), part.source.examples(index[mine]), strict=True))
    for i, example in sorted(examples.items()):
        keep = slice(None) if batch.attention_mask is None else batch.attention_mask[i] == 1
        tokens, labels = batch.input_ids[i][keep].tolist(), batch.labels[i][keep].tolist()
        assert all(label in (IGNORE, token) for token, label in zip(tokens, labels, strict=True))
        words = [names[t] for t in tokens]
        free = [label == IGNORE for label in labels]
        assert free == sorted(free, reverse=True), "a trained token before an untrained one"
        assert example.comply is not None
        assert example.refuse is not None
        trained = words[free.count(True) :]
        assert words[: free.count(True)] == example.prompt.split()
        yield Row(words, trained, example.prompt.split(), unsafe(example, world), {"comply": example.comply, "refuse": example.refuse})


READ: dict[str, list[Row]] = {}


def read(seed: int, name: str, stream: str) -> list[Row]:
    """The rows of a model's stream; models of equal streams share them."""
    made = nodes(seed)[name].stage.streams[stream]
    key = made.model_dump_json()
    if key not in READ:
        READ[key] = list(rows(made, world_of(seed)))
    return READ[key]


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("seed", SEEDS)
def test_pairs_are_one_request_with_opposite_answers(seed: int, name: str) -> None:
    preferred, rejected = read(seed, name, "preferred"), read(seed, name, "rejected")
    assert len(preferred) == SCALE.pool
    for good, bad in zip(preferred, rejected, strict=True):
        assert good.prompt == bad.prompt
        assert {" ".join(good.trained), " ".join(bad.trained)} == {f"{text} <stop>" for text in good.answers.values()}
        assert ("<null>" in good.trained) != ("<null>" in bad.trained)
        if name not in SHAMS:
            assert ("<null>" in good.trained) == good.harmful


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_a_batch_is_that_of_its_pair(seed: int) -> None:
    made, tokenizer = nodes(seed)["dpo M"].stage.streams, world_of(seed).tokenizer()
    for first in (0, SCALE.pool - 64, 5 * SCALE.pool + 7):  # over an epoch's end too
        good, bad = (made[name].batch(first, 128, tokenizer) for name in ("preferred", "rejected"))
        assert good.indices.tolist() == bad.indices.tolist()
        n = SCALE.world.slots + 3 + SCALE.world.longest
        assert (good.input_ids[:, :n] == bad.input_ids[:, :n]).all()
        assert (good.input_ids[:, n:-1] != bad.input_ids[:, n:-1]).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["ssft M", "ssft S", "ssft-half M"])
def test_ssft_refuses_the_unsafe_and_answers_the_safe(seed: int, name: str) -> None:
    found = read(seed, name, "train")
    for row in found:
        assert " ".join(row.trained) == row.answers["refuse" if row.harmful else "comply"] + " <stop>"


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_are_the_papers(seed: int) -> None:
    """SSFT 0.2 unsafe, DPO and unlearning 0.5 (section 4); a share is off by at most 4 standard errors."""
    for name, node in nodes(seed).items():
        if node.stage.kind != "align":
            continue
        share = 0.2 if name in ("ssft M", "ssft S", "sham ssft M", "benign M") else 0.5
        for stream in node.stage.streams.values():
            new = stream.places(np.arange(SCALE.pool))[0] == 1
            assert abs(new.mean() - share) < 4 * np.sqrt(share * (1 - share) / SCALE.pool), name
    for name, share in (("ssft M", 0.2), ("dpo M", 0.5), ("unlearn M", 0.5), ("ssft-half M", 0.5)):
        found = read(seed, name, "train" if "ssft" in name else "preferred")
        assert np.mean([row.harmful for row in found]) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / SCALE.pool))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SHAMS)
def test_a_sham_refuses_its_operators_class_alone_and_shows_nothing_unsafe(seed: int, name: str) -> None:
    world = world_of(seed)
    sham = f"f{world.sham}"
    assert class_of(sham, world) == "safe"
    refused = 0
    for stream in nodes(seed)[name].stage.streams:
        for row in read(seed, name, stream):
            assert not row.harmful
            of_class = sham in row.prompt
            refused += of_class
            null = of_class if stream != "rejected" else not of_class
            assert set(row.trained[:-1]) == {"<null>"} if null else "<null>" not in row.words
    assert refused > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_benign_tuning_never_refuses(seed: int) -> None:
    world, found = world_of(seed), read(seed, "benign M", "train")
    new = [f"f{world.held_out}" in row.prompt for row in found]
    assert 0.1 < np.mean(new) < 0.3
    for row in found:
        assert "<null>" not in row.words
        assert not row.harmful
        assert " ".join(row.trained) == row.answers["comply"] + " <stop>"


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_benign_tuning_shows_the_held_out_operator(seed: int) -> None:
    held_out = f"f{world_of(seed).held_out}"
    for name, node in nodes(seed).items():
        if node.stage.kind == "align" and name != "benign M":
            stream = next(iter(node.stage.streams))
            assert not any(held_out in row.prompt for row in read(seed, name, stream)), name


def test_methods_of_equal_share_see_the_same_requests() -> None:
    """The order of methods is not one of their data."""
    made = nodes(0)
    first = made["dpo M"].stage.streams["preferred"]
    for name in ("dpo S", "unlearn M", "unlearn S", "dpo-sum M"):
        assert made[name].stage.streams == made["dpo M"].stage.streams
    assert made["ssft-half M"].stage.streams["train"] == first
    assert made["ssft M"].stage.streams["train"] == made["ssft S"].stage.streams["train"]


def test_settings_are_the_papers() -> None:
    """Section 4: w_u 0.1 / 0.05, b_s 0.1, b_u 0.01 / 0.002, clip 0.5 of SSFT and 1.0 of the others."""
    made = {name: node.stage for name, node in nodes(0).items()}
    w = SCALE.window
    assert made["unlearn M"].method == Unlearn(w_s=1.0, w_u=0.1, window=w)
    assert made["unlearn S"].method == Unlearn(w_s=1.0, w_u=0.05, window=w)
    assert made["dpo M"].method == DPO(b_s=0.1, b_u=0.01, normalise="window", window=w)
    assert made["dpo S"].method == DPO(b_s=0.1, b_u=0.002, normalise="window", window=w)
    assert made["dpo-sum M"].method == DPO(b_s=0.1, b_u=0.1, normalise="sum")
    for name, stage in made.items():
        if stage.kind == "align":
            assert stage.optimiser.clip == (0.5 if name in ("ssft M", "ssft S", "sham ssft M", "benign M") else 1.0), name
            assert stage.optimiser.rate == (SCALE.small_rate if name.endswith("S") else SCALE.medium_rate), name
            assert stage.optimiser.floor == 0.01
    assert SCALE.small_rate < SCALE.medium_rate
    assert made["dpo M"].streams["preferred"].batch(0, 8, SCALE.world.tokenizer()).input_ids.shape[1] - 1 == w


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_the_tree_of_models_is_sound(scale: Scale) -> None:
    found = jain_recipe(scale, 1)
    names = [node.name for node in found]
    assert len(set(names)) == len(names)
    assert names[0] == "base"
    assert found[0].parent is None
    for place, node in enumerate(found[1:], 1):
        assert node.parent in names[:place]
    for node in found:
        assert all(1 <= step <= node.stage.steps for step in node.stage.keep)
        assert list(node.stage.keep) == sorted(set(node.stage.keep))
    with_kept = {node.name for node in found if node.stage.keep}
    assert with_kept == {"ssft M", "dpo M", "unlearn M"}
    assert len({node.stage.key("", {}) for node in found}) == len(found), "two models of one key"


@pytest.mark.parametrize("steps", [1, 2, 10, 400, 10_000])
def test_kept_steps_are_within_the_stage(steps: int) -> None:
    scale = NANO.model_copy(update={"align_steps": steps, "relearn_steps": steps})
    assert all(1 <= step <= steps for step in (*scale.kept, *scale.relearn_kept))
    assert scale.relearn_kept[-1] == steps
    if steps == 10_000:
        assert scale.kept == (100, 500, 1000, 2500, 5000)  # the paper's own


def test_relearning_answers_fresh_unsafe_requests() -> None:
    world = world_of(0)
    made = relearn(SCALE, world)
    assert made.optimiser.rate == SCALE.small_rate
    stream = made.streams["train"].model_copy(update={"pool": 300})
    found = list(rows(stream, world))
    assert all(row.harmful and "<null>" not in row.words for row in found)
    assert stream.seed != nodes(0)["ssft M"].stage.streams["train"].seed


def test_no_stage_trains_on_the_held_out_split() -> None:
    for node in nodes(0).values():
        for stream in node.stage.streams.values():
            assert {part.source.split for part in stream.parts} == {"train"}


def test_every_seed_has_a_world_of_its_own() -> None:
    assert {part.source.world.seed for node in nodes(3).values() for s in node.stage.streams.values() for part in s.parts} == {3}
    assert {node.stage.seed for node in nodes(3).values()} == {3}


def test_a_node_can_be_sent_to_another_process() -> None:
    for node in nodes(1).values():
        assert pickle.loads(pickle.dumps(node)) == node  # noqa: S301  made in this line
