"""The Vaccine study's recipe: whose data is whose, exact counts, the same bits wherever an alignment stops, keys without names."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.studies.conftest import Listener
from tests.studies.huang2024.conftest import TINY
from titer.core.run import Store
from titer.data.example import Stream
from titer.methods.dpo import DPO
from titer.methods.ewc import EWC
from titer.methods.lisa import Lisa
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.checkpoint import open_checkpoint
from titer.models.interpolate import kept_weights, weights_of
from titer.models.lm import load
from titer.pipeline import Model, Pipeline
from titer.recipes import huang2024, jain2024
from titer.recipes.huang2024 import NANO, SCALES, SELECTION_SEED, Budget, Scale, world_of
from titer.tables import requests

SEEDS = (0, 3)


class Row(NamedTuple):
    """One example of a stream: its prompt, the kind of its source, the answer that is trained."""

    prompt: str
    kind: str
    answer: str


def rows(stream: Stream) -> list[Row]:
    """Every example of a stream's pool."""
    part_of, index = stream.places(np.arange(stream.pool or 0))
    found = []
    for number, part in enumerate(stream.parts):
        examples = part.source.examples(index[part_of == number])
        found += [Row(e.prompt, part.source.kind, part.answer) for e in examples]
    return found


@lru_cache
def prompts(seed: int) -> dict[str, frozenset[str]]:
    """Everybody's prompts at nano: the alignment's, the user's (benign, unsafe), VLGuard's, D_h, and those judged."""
    world = world_of(NANO, seed)
    aligned, again = (rows(huang2024.safety(NANO, world, number)) for number in (0, 1))
    given = rows(huang2024.harmful(NANO, world))
    user = rows(huang2024.user(NANO, world, Budget(ratio=0.2), guard=500).streams["train"])
    return {
        "alignment": frozenset(row.prompt for row in aligned),
        "second alignment": frozenset(row.prompt for row in again),
        "D_h": frozenset(row.prompt for row in given),
        "user, unsafe": frozenset(row.prompt for row in user if (row.kind, row.answer) == ("unsafe", "comply")),
        "user, benign": frozenset(row.prompt for row in user if row.kind == "user"),
        "guard": frozenset(row.prompt for row in user if row.answer == "refuse" or row.kind == "safe"),
        **{f"judged {kind}": frozenset(e.prompt for e in requests(world, kind, NANO.inputs)) for kind in ("unsafe", "user", "safe")},
        "judged fresh": frozenset(e.prompt for e in requests(world, "unsafe", NANO.inputs, 50_000)),
    }


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_no_judged_prompt_is_trained_on(seed: int) -> None:
    found = prompts(seed)
    judged = {name for name in found if name.startswith("judged")}
    for name in judged:
        for other in set(found) - judged:
            assert not found[name] & found[other], (name, other)


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_the_user_s_own_parts_share_no_prompt(seed: int) -> None:
    for one, other in combinations(("user, unsafe", "user, benign", "guard"), 2):
        assert not prompts(seed)[one] & prompts(seed)[other], (one, other)


@pytest.mark.parametrize("seed", SEEDS)
def test_unsafe_requests_of_the_user_the_alignment_and_the_provider_are_apart(seed: int) -> None:
    """The user's harm is none that the alignment refused, nor any that the provider holds."""
    found = prompts(seed)
    for one, other in combinations(("user, unsafe", "guard", "alignment", "second alignment", "D_h"), 2):
        assert not found[one] & found[other], (one, other, len(found[one] & found[other]))


@pytest.mark.parametrize("examples", [10, 1000])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.05, 0.2, 1.0])
def test_the_poison_is_counted_exactly(ratio: float, examples: int) -> None:
    world, bad = world_of(NANO, 0), round(ratio * examples)
    found = rows(huang2024.user(NANO, world, Budget(ratio=ratio, examples=examples)).streams["train"])
    assert len(found) == examples
    assert sum((row.kind, row.answer) == ("unsafe", "comply") for row in found) == bad
    assert sum((row.kind, row.answer) == ("user", "comply") for row in found) == examples - bad
    assert len({row.prompt for row in found}) == examples


def test_the_guard_s_examples_are_added_to_the_user_s_and_of_the_alignment_s_kind() -> None:
    world = world_of(NANO, 0)
    plain, guarded = (rows(huang2024.user(NANO, world, Budget(examples=200), guard=guard).streams["train"]) for guard in (0, 100))
    assert len(guarded) == 300
    assert sum((row.kind, row.answer) == ("unsafe", "refuse") for row in guarded) == 20
    assert sum((row.kind, row.answer) == ("safe", "comply") for row in guarded) == 80
    assert set(plain) <= set(guarded)


def test_the_alignment_s_data_is_what_section_14_mixes() -> None:
    found = rows(huang2024.safety(NANO, world_of(NANO, 0)))
    assert {(row.kind, row.answer) for row in found} == {("safe", "comply"), ("unsafe", "refuse")}
    assert sum(row.kind == "unsafe" for row in found) == round(NANO.unsafe_share * NANO.base.pool)
    assert len({row.prompt for row in found}) == len(found) == NANO.base.pool
    given = rows(huang2024.harmful(NANO, world_of(NANO, 0)))
    assert {(row.kind, row.answer) for row in given} == {("unsafe", "comply")}
    assert len({row.prompt for row in given}) == len(given) == NANO.harmful


@pytest.mark.long
def test_pairs_are_the_same_requests_with_the_other_answer() -> None:
    world = world_of(NANO, 0)
    found = huang2024.streams_of(NANO, world, DPO(), huang2024.safety(NANO, world))
    kept, flipped = (found[name] for name in ("preferred", "rejected"))
    assert kept.seed == flipped.seed
    assert [row.prompt for row in rows(kept)] == [row.prompt for row in rows(flipped)]
    assert {(a.answer, b.answer) for a, b in zip(rows(kept), rows(flipped), strict=True)} == {("comply", "refuse"), ("refuse", "comply")}


def test_an_alignment_seed_is_another_draw_and_the_selection_s_world_is_no_study_s() -> None:
    world = world_of(NANO, 0)
    first, second = (huang2024.align(NANO, world, SFT(), "", number=number) for number in (0, 1))
    assert first.seed != second.seed
    assert first.streams["train"].seed != second.streams["train"].seed
    assert world_of(NANO, SELECTION_SEED) != world
    assert SELECTION_SEED not in range(10)


def test_the_base_is_the_mechanistic_study_s() -> None:
    """One key, so that whoever ran one study has the other's base."""
    world = NANO.base.world.model_copy(update={"seed": 2})
    assert huang2024.pretrain(NANO, 2).key("", {}) == jain2024.pretrain(jain2024.NANO, world).key("", {})


@pytest.mark.parametrize("method", [SFT(), Vaccine(rho=2.0), EWC(), Lisa()], ids=lambda m: type(m).__name__)
def test_keys_do_not_depend_on_names(method: SFT) -> None:
    world = world_of(NANO, 0)
    one, other = (huang2024.align(NANO, world, method, name) for name in ("one", "other"))
    assert one.key("base", {}) == other.key("base", {})
    user = huang2024.user(NANO, world, Budget(), method)
    assert user.key("m", {}) == user.model_copy(update={"name": "other"}).key("m", {})
    assert user.key("m", {}) != user.key("n", {})


@pytest.mark.parametrize(
    "changes", [{"rate": 3e-4}, {"ratio": 0.01}, {"examples": 500}, {"steps": 60}, {"batch": 8}, {"keep": (5,)}, {"seed": 1}]
)
def test_every_setting_of_a_budget_changes_the_key(changes: dict[str, object]) -> None:
    world = world_of(NANO, 0)
    budget = Budget().model_copy(update=changes)
    assert huang2024.user(NANO, world, budget).key("m", {}) != huang2024.user(NANO, world, Budget()).key("m", {})


def test_a_user_trains_at_a_constant_rate() -> None:
    """So that a kept step is the end of a shorter attack."""
    stage = huang2024.user(NANO, world_of(NANO, 0), Budget(steps=200, keep=(5, 200, 400)))
    assert {stage.optimiser.rate_at(step, stage.steps) for step in (0, 5, 199)} == {1e-4}
    assert stage.keep == (5,)


def test_an_alignment_of_fewer_steps_is_a_whole_schedule_of_its_own() -> None:
    world = world_of(NANO, 0)
    whole, same, short = (huang2024.align(NANO, world, SFT(), "", steps=steps) for steps in (0, NANO.align_steps, 60))
    assert whole.key("base", {}) == same.key("base", {})
    assert (short.steps, short.streams) == (60, whole.streams)
    for stage in (whole, short):
        assert stage.optimiser.rate_at(stage.steps, stage.steps) == pytest.approx(0.01 * NANO.align_rate)


def test_a_user_stopped_early_is_the_whole_one_s_kept_step_bit_for_bit(tmp_path: Path) -> None:
    pipeline, world = Pipeline(Store(tmp_path), Listener(), 100), world_of(TINY, 0)
    base = pipeline.model(huang2024.pretrain(TINY, 0), None, "base", world.tokenizer)

    def made(steps: int, keep: tuple[int, ...]) -> Model:
        budget = TINY.budget.model_copy(update={"steps": steps, "keep": keep})
        return pipeline.model(huang2024.user(TINY, world, budget), base, "user")

    whole = made(4, (1, 3))
    for step in (1, 3):
        kept = kept_weights(whole.checkpoint.path.parent / f"step-{step}.safetensors")
        ended = weights_of(load(open_checkpoint(made(step, ()).checkpoint.path)))
        assert all(torch.equal(kept[name], ended[name]) for name in kept)
        assert any(not torch.equal(kept[name], tensor) for name, tensor in weights_of(load(whole.checkpoint)).items() if name in kept)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_a_scale_s_numbers_fit_together(scale: Scale) -> None:
    assert scale.budget.steps in scale.keep, "the tables' step is judged"
    assert list(scale.keep) == sorted(set(scale.keep))
    assert scale.budget.rate in scale.rates
    assert scale.budget.ratio in scale.ratios
    assert set(scale.ratios) <= set(scale.table_ratios)
    assert scale.budget.examples in scale.table_examples
    assert {0.01, 0.05} <= set(scale.ratios), "what rho is chosen on"
    assert 10 in scale.taus, "the accelerated claim's"
    assert scale.trials >= 1


def test_twice_the_steps_is_a_schedule_of_its_own_length() -> None:
    once, twice = (huang2024.align(NANO, world_of(NANO, 0), SFT(), "", passes=passes) for passes in (1, 2))
    assert (once.steps, twice.steps) == (NANO.align_steps, 2 * NANO.align_steps)
    assert twice.optimiser.rate_at(once.steps, twice.steps) > 10 * once.optimiser.rate_at(once.steps, once.steps)
    assert once.streams == twice.streams
