"""Weights between two models: exact ends, restored bits, parts, random directions of equal norms, known angles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.models.families import PROMPTS, SUPPORTED
from tests.probes.made import drawn, lively
from titer.data.encode import prompt_ids
from titer.data.world import World
from titer.models.interpolate import along, cosine, distance, kept_weights, of_part, plus, random_direction, weights_of, with_weights
from titer.models.lm import LM

Weights = Mapping[str, torch.Tensor]


def moved(weights: Weights, size: float = 0.1) -> dict[str, torch.Tensor]:
    """Every tensor changed; tensors that are one in the model (tied embeddings) are changed alike."""
    return {name: tensor + size * drawn(*tensor.shape, seed=tensor.numel()) for name, tensor in weights.items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


def same_bits(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


def logits(lm: LM) -> torch.Tensor:
    return lm.logits(prompt_ids(lm.tokenizer, PROMPTS[:1]))[0]


def test_the_ends_are_the_models_bit_for_bit(family: LM) -> None:
    base = moved(weights_of(family), 3.0)
    tuned = {name: tensor / 300 + 0.01 for name, tensor in base.items()}  # base + (tuned - base) would round
    assert not same_bits({name: base[name] + (tuned[name] - base[name]) for name in base}, tuned)
    assert same_bits(along(base, tuned, 0), base)
    assert same_bits(along(base, tuned, 1), tuned)
    assert same_bits(along(base, tuned, 0.0), base)
    assert same_bits(along(base, tuned, 1.0), tuned)


@pytest.mark.parametrize("alpha", [-0.5, 0.25, 0.5, 0.9, 1.5, 2.0])
def test_between_and_beyond_is_a_straight_line(alpha: float, lm: LM) -> None:
    base = weights_of(lm)
    tuned = moved(base)
    for name, found in along(base, tuned, alpha).items():
        torch.testing.assert_close(found, base[name] + alpha * (tuned[name] - base[name]), rtol=1e-5, atol=1e-6)
    assert distance(along(base, tuned, alpha), base) == pytest.approx(abs(alpha) * distance(tuned, base), rel=1e-4)


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_other_weights_act_within_and_the_own_come_back_bit_for_bit(name: str, world: World) -> None:
    lm = lively(world, name)
    own, before = weights_of(lm), logits(lm)
    other = moved(own)
    with with_weights(lm, other) as same:
        assert same is lm
        assert same_bits(weights_of(lm), other)
        assert not torch.allclose(logits(lm), before, atol=1e-2)
    assert same_bits(weights_of(lm), own)
    assert torch.equal(logits(lm), before)


def test_the_own_weights_come_back_after_an_exception_or_a_wrong_tensor(lm: LM) -> None:
    own = weights_of(lm)
    with pytest.raises(ZeroDivisionError), with_weights(lm, moved(own)):
        raise ZeroDivisionError
    assert same_bits(weights_of(lm), own)
    first, *_, last = own
    with pytest.raises(RuntimeError), with_weights(lm, {first: own[first] + 1, last: torch.zeros(3, 3, 3)}):
        pytest.fail("a misshapen tensor was taken")
    assert same_bits(weights_of(lm), own)


def test_weights_are_copies_on_both_sides(lm: LM) -> None:
    held = weights_of(lm)
    name = next(iter(held))
    held[name].add_(1)
    assert not torch.equal(weights_of(lm)[name], held[name])
    with with_weights(lm, held), torch.no_grad():
        next(p for n, p in lm.model.named_parameters() if n == name).mul_(2)
        assert not torch.equal(weights_of(lm)[name], held[name])


@pytest.mark.parametrize("part", ["mlp", "attention", "other"])
def test_a_part_alone_is_changed(part: str, family: LM) -> None:
    base = weights_of(family)
    tuned = moved(base)
    found = of_part(family.sites, base, tuned, part)
    words = {"mlp": (".mlp.", ".fc1.", ".fc2."), "attention": (".attention.", ".self_attn.", ".attn.")}
    kinds = {
        name: next((kind for kind, some in words.items() if any(w in name and "norm" not in name for w in some)), "other") for name in base
    }
    assert set(kinds.values()) == {"mlp", "attention", "other"}
    for name in base:
        assert torch.equal(found[name], tuned[name] if kinds[name] == part else base[name]), name


def test_a_random_direction_has_each_tensors_norm_and_no_relation_to_the_change(lm: LM) -> None:
    base = weights_of(lm)
    tuned = moved(base)
    tuned["lm_head.weight"] = base["lm_head.weight"].clone()  # a tensor that did not change
    found = random_direction(base, tuned, 5)
    for name in base:
        change, random = tuned[name] - base[name], found[name] - base[name]
        assert float(random.norm()) == pytest.approx(float(change.norm()), rel=1e-3)
        assert change.numel() < 200 or abs(float((change * random).sum())) <= 0.3 * float(change.norm() ** 2)
    assert torch.equal(found["lm_head.weight"], base["lm_head.weight"])
    assert abs(cosine(found, tuned, base, base)) < 0.05
    assert same_bits(found, random_direction(base, tuned, 5))
    assert abs(cosine(found, random_direction(base, tuned, 6), base, base)) < 0.05
    sites = [lm.sites.tensor(f"mlp_down[{i}]") for i in range(2)]  # tensors of one shape are drawn apart
    one, two = ((found[name] - base[name]).flatten() for name in sites)
    assert abs(float(torch.cosine_similarity(one, two, dim=0))) < 0.2


def test_distances_and_angles_of_known_changes() -> None:
    start = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[5.0]])}
    east = {"a": torch.tensor([4.0, 2.0]), "b": torch.tensor([[5.0]])}
    north = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[9.0]])}
    both = {"a": torch.tensor([4.0, 2.0]), "b": torch.tensor([[9.0]])}
    assert distance(both, start) == pytest.approx(5)
    assert distance(start, start) == 0
    assert cosine(east, north, start, start) == pytest.approx(0)
    assert cosine(east, both, start, start) == pytest.approx(3 / 5)
    assert cosine(north, both, start, start) == pytest.approx(4 / 5)
    assert cosine(both, both, start, start) == pytest.approx(1)
    assert cosine(start, both, both, start) == pytest.approx(-1)
    assert cosine(both, north, north, start) == pytest.approx(0)  # each change from a start of its own
    assert cosine(start, both, start, start) != cosine(start, both, start, start)  # NaN


def test_a_change_is_added_to_another_model() -> None:
    onto, base, tuned = ({"a": torch.tensor(values)} for values in ([1.0, 1.0], [2.0, 4.0], [3.0, 8.0]))
    assert plus(onto, base, tuned, 0.5)["a"].tolist() == [1.5, 3.0]
    assert plus(onto, base, tuned, 0.0)["a"].tolist() == [1.0, 1.0]
    assert plus(base, base, tuned, 1.0)["a"].tolist() == [3.0, 8.0]


def test_kept_weights_act_like_the_model_that_left_them(lm: LM, tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in lm.model.state_dict().items()}, tmp_path / "step-3.safetensors")
    lm.model.eval()
    own, before = weights_of(lm), logits(lm)
    kept = kept_weights(tmp_path / "step-3.safetensors")
    assert same_bits({name: kept[name] for name in own}, own)
    with with_weights(lm, moved(own)), with_weights(lm, kept):
        assert torch.equal(logits(lm), before)
