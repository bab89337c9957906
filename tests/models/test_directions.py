"""Directions and points in weight space: norms, angles, norm layers, exact ends, restored bits, any family, renamed and fused tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.models.families import PROMPTS, SUPPORTED, mixtral
from tests.models.test_interpolate import bits, same_bits
from tests.probes.made import drawn, lively, saved
from titer.core.errors import TiterError
from titer.data.encode import prompt_ids
from titer.data.world import World
from titer.models import directions
from titer.models.directions import Direction, Random, Towards, noise, still
from titer.models.interpolate import weights_of
from titer.models.lm import LM, Architecture, load
from titer.models.perturbed import Movable, movable

FAMILIES = {**SUPPORTED, "mixtral": mixtral}


def whole(moved: Movable, direction: Direction, name: str) -> torch.Tensor:
    return torch.cat(list(moved.directions.blocks(direction, name)))


def logits(lm: LM) -> torch.Tensor:
    return lm.logits(prompt_ids(lm.tokenizer, PROMPTS))[0]


@pytest.fixture(params=sorted(FAMILIES))
def loaded(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[Movable]:
    """A model of each family, loaded from disk as the audit does."""
    lm = lively(world, request.param) if request.param in SUPPORTED else mixtral(world)
    checkpoint = saved(lm, tmp_path / "m")
    with movable(load(checkpoint, "cpu"), checkpoint) as moved:
        yield moved


def test_each_tensor_moves_by_its_own_norm_and_norm_layers_do_not(loaded: Movable) -> None:
    fixed = still(loaded.lm.model)
    vectors = {n for n, m in loaded.lm.model.named_modules() if type(m).__name__.endswith("Norm")}
    assert {name.rpartition(".")[0] for name in fixed} == vectors  # the layers themselves, found by their class here
    assert fixed
    for name in loaded.names:
        d, w = whole(loaded, Random(3), name).double(), loaded.original(name).double()
        assert d.norm() == (0 if name in fixed else pytest.approx(float(w.norm()), rel=1e-5))
    matrices = [name for name in loaded.names if name not in fixed and loaded.original(name).ndim > 1]
    assert len(matrices) > 6
    drawn_ = torch.cat([whole(loaded, Random(3), n) / loaded.original(n).norm() * loaded.original(n).numel() ** 0.5 for n in matrices])
    assert abs(float(drawn_.mean())) < 0.05
    assert float(drawn_.std()) == pytest.approx(1, abs=0.05)


def test_a_norm_is_found_by_structure_where_no_name_says_so() -> None:
    class Gain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(4))

    class PerHeadNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(2, 4))

    model = torch.nn.ModuleDict(
        {"a": Gain(), "b": torch.nn.Linear(4, 4), "c": PerHeadNorm(), "q_norm": torch.nn.Linear(2, 2), "ln_1": torch.nn.LayerNorm(4)}
    )
    assert still(model) == {"a.scale", "c.w", "q_norm.weight", "q_norm.bias", "ln_1.weight", "ln_1.bias"}


def test_a_direction_is_a_function_of_seed_and_name_over_any_number_of_blocks(
    loaded: Movable, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    name = max(loaded.names, key=lambda n: loaded.original(n).numel())
    first = whole(loaded, Random(0), name)
    assert torch.equal(first, whole(loaded, Random(0), name))
    assert not torch.allclose(first, whole(loaded, Random(1), name))
    assert not torch.equal(torch.cat(list(noise(0, "one", 40))), torch.cat(list(noise(0, "other", 40))))
    monkeypatch.setattr(directions, "BLOCK", 64)
    blocks = list(noise(0, name, 200))
    assert [len(b) for b in blocks] == [64, 64, 64, 8]
    assert len({float(b[0]) for b in blocks}) == 4  # the stream goes on, no block repeats another


@pytest.mark.parametrize("block", [48, directions.BLOCK])
def test_the_second_direction_of_a_plane_is_orthogonal_and_keeps_its_norms(
    loaded: Movable, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "BLOCK", block)
    monkeypatch.setattr("titer.models.perturbed.BLOCK", block)
    one, other = Random(1), Random(2, against=Random(1))
    assert abs(loaded.directions.cosine(one, other, loaded.names)) < 1e-6
    assert loaded.directions.cosine(one, one, loaded.names) == pytest.approx(1)
    assert abs(loaded.directions.cosine(one, Random(2), loaded.names)) > 1e-5  # drawn alone it is not
    for name in loaded.names:
        a, b = whole(loaded, one, name).double(), whole(loaded, other, name).double()
        assert abs(float(a @ b)) <= 1e-6 * float(a.norm() * b.norm())
        assert float(b.norm()) == pytest.approx(float(a.norm()), rel=1e-5)
    with loaded.at([(0.3, one), (-0.7, other)]):
        for name in loaded.names:
            plain = loaded.original(name).reshape(-1) + 0.3 * whole(loaded, one, name) - 0.7 * whole(loaded, other, name)
            torch.testing.assert_close(loaded.lm.model.state_dict()[name].reshape(-1), plain, rtol=1e-5, atol=1e-6)


def test_a_tensor_of_one_value_has_no_second_direction() -> None:
    own = torch.tensor([3.0])
    found = directions.Directions(lambda _: own, lambda _, __: own, ())
    assert abs(float(next(found.blocks(Random(1), "x")))) == pytest.approx(3)
    assert float(next(found.blocks(Random(2, against=Random(1)), "x"))) == 0


def test_own_weights_come_back_bit_for_bit_also_after_an_exception(loaded: Movable) -> None:
    own, before = weights_of(loaded.lm), logits(loaded.lm)
    for point in ([(0.4, Random(1))], [(-1.5, Random(1)), (0.5, Random(2, against=Random(1)))]):
        with loaded.at(point):
            assert not torch.allclose(logits(loaded.lm), before, atol=1e-3)
            assert not loaded.untouched()
        assert same_bits(weights_of(loaded.lm), own)
        assert loaded.untouched()
    with pytest.raises(ZeroDivisionError), loaded.at([(1.0, Random(5))]):
        raise ZeroDivisionError
    assert same_bits(weights_of(loaded.lm), own)
    assert torch.equal(logits(loaded.lm), before)
    with loaded.at([(0.0, Random(1)), (0.0, Random(2))]):
        assert same_bits(weights_of(loaded.lm), own)


def test_a_point_within_a_point_is_refused_and_harms_nothing(loaded: Movable) -> None:
    own = weights_of(loaded.lm)
    with pytest.raises(ValueError, match="at a point already"), loaded.at([(1.0, Random(5))]), loaded.at([(1.0, Random(6))]):
        pytest.fail("two points at once")
    assert same_bits(weights_of(loaded.lm), own)


def test_every_point_is_computed_from_the_originals(loaded: Movable) -> None:
    """Two visits give the same bits, whatever was visited between: nothing adds up."""
    seen = []
    for size in (0.7, -1.3, 0.7):
        with loaded.at([(size, Random(4))]):
            seen.append(weights_of(loaded.lm))
    assert same_bits(seen[0], seen[2])
    assert not same_bits(seen[0], seen[1])


def test_tied_embeddings_are_one_tensor(world: World, tmp_path: Path) -> None:
    checkpoint = saved(lively(world, "qwen2"), tmp_path / "m")
    lm = load(checkpoint, "cpu")
    with movable(lm, checkpoint) as moved:
        assert "lm_head.weight" in lm.model.state_dict()
        assert "lm_head.weight" not in moved.names
        with moved.at([(1.0, Random(0))]):
            head, embed = lm.model.get_output_embeddings().weight, lm.model.get_input_embeddings().weight
            assert head is embed
            change = embed.detach().reshape(-1) - moved.original("model.embed_tokens.weight").reshape(-1)
            torch.testing.assert_close(change, whole(moved, Random(0), "model.embed_tokens.weight"), rtol=1e-4, atol=1e-5)


@pytest.fixture
def pair(family: LM, tmp_path: Path) -> Iterator[tuple[LM, Movable, Towards]]:
    """A loaded model with the way to a tuned one; the tuned model itself beside it."""
    base = saved(family, tmp_path / "base")
    with torch.no_grad():
        for k, p in enumerate(family.model.parameters()):
            p.copy_(p * 1.01 + 0.3 * drawn(*p.shape, seed=k))
    tuned = saved(family, tmp_path / "tuned")
    with movable(load(base, "cpu"), base) as moved:
        yield load(tuned, "cpu"), moved, Towards(tuned)


def test_the_way_ends_at_the_models_bit_for_bit_and_is_straight(pair: tuple[LM, Movable, Towards]) -> None:
    tuned, moved, way = pair
    own, there = weights_of(moved.lm), weights_of(tuned)
    with moved.at([(1, way)]) as lm:
        assert same_bits(weights_of(lm), there)
        assert torch.equal(logits(lm), logits(tuned))
    with moved.at([(0.0, Random(0)), (1.0, way)]) as lm:
        assert same_bits(weights_of(lm), there)
    for size in (-0.5, 0.25, 1.5):
        with moved.at([(size, way)]) as lm:
            for name, found in weights_of(lm).items():
                torch.testing.assert_close(found, own[name] + size * (there[name] - own[name]), rtol=1e-4, atol=1e-5)
    assert moved.untouched()
    other = Random(3, against=way)
    assert abs(moved.directions.cosine(way, other, moved.names)) < 1e-6
    with moved.at([(0.5, way), (0.2, other)]) as lm:
        for name in moved.names:
            plain = own[name] + 0.5 * (there[name] - own[name]) + 0.2 * whole(moved, other, name).view_as(own[name])
            torch.testing.assert_close(lm.model.state_dict()[name], plain, rtol=1e-4, atol=1e-5)


def test_bfloat16_ends_are_exact_too(world: World, tmp_path: Path) -> None:
    base, tuned = saved(lively(world, "llama"), tmp_path / "a"), saved(lively(world, "llama", 0.5), tmp_path / "b")
    lm, there = load(base, "cpu", "bfloat16"), load(tuned, "cpu", "bfloat16")
    own = [p.detach().clone() for p in lm.model.parameters()]
    with movable(lm, base) as moved:
        assert not moved._spilled
        with moved.at([(1, Towards(tuned))]):
            assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), there.model.parameters(), strict=True))
        with moved.at([(0.5, Random(0))]):
            assert not all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), own, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), own, strict=True))
        assert moved.untouched()


@pytest.mark.parametrize("family", ["neox", "mixtral"])
def test_a_renamed_tensor_and_fused_experts_are_read_back_from_the_file(family: str, world: World, tmp_path: Path) -> None:
    lm = mixtral(world) if family == "mixtral" else lively(world, family)
    checkpoint = saved(lm, tmp_path / "m")
    assert set(checkpoint.held) != set(checkpoint.files)  # or this test says nothing
    with movable(load(checkpoint, "cpu"), checkpoint) as moved:
        assert not moved._spilled
        with moved.at([(0.5, Towards(checkpoint)), (1, Random(0))]):
            assert not moved.untouched()
        assert moved.untouched()


def test_weights_that_are_not_the_files_still_come_back(world: World, tmp_path: Path) -> None:
    """A model changed after loading (a merged adapter) is put back as it was, not as the file is; so is a transposed one."""
    checkpoint = saved(lively(world, "llama"), tmp_path / "m")
    lm = load(checkpoint, "cpu")
    up, down = lm.sites.linear("mlp_up[0]"), lm.sites.linear("mlp_down[0]")
    with torch.no_grad():
        up.weight.mul_(0.5)
    down.weight = torch.nn.Parameter(down.weight.detach().T.contiguous().T)
    assert not down.weight.is_contiguous()
    own = weights_of(lm)
    with movable(lm, checkpoint) as moved:
        assert set(moved._spilled) == {lm.sites.tensor("mlp_up[0]")}
        with moved.at([(1.0, Random(0))]):
            name = lm.sites.tensor("mlp_down[0]")
            plain = own[name] + whole(moved, Random(0), name).view_as(own[name])
            torch.testing.assert_close(down.weight.detach(), plain, rtol=1e-5, atol=1e-6)
        assert same_bits(weights_of(lm), own)


def test_minus_zero_and_nan_are_put_back(world: World, tmp_path: Path) -> None:
    lm = lively(world, "llama")
    with torch.no_grad():
        lm.sites.linear("mlp_up[0]").weight[0, :2] = torch.tensor([-0.0, float("nan")])
    checkpoint = saved(lm, tmp_path / "m")  # which `load` refuses: here it is in memory as it was trained
    weight = lm.sites.linear("mlp_up[0]").weight
    before = bits(weight.detach().clone())
    with movable(lm, checkpoint) as moved:
        assert not moved._spilled
        with moved.at([(0.0, Random(0))]):
            assert torch.equal(bits(weight.detach()), before)  # -0 + 0 would be 0
        with moved.at([(1.0, Random(0, against=Random(1)))]):
            pass
        assert torch.equal(bits(weight.detach()), before)
        with torch.no_grad():
            weight[0, 0] = 0.0
        assert not moved.untouched()


def test_what_cannot_be_moved_is_a_clear_error(world: World, tmp_path: Path) -> None:
    base = saved(lively(world, "llama"), tmp_path / "base")
    wide = saved(Architecture(layers=2, width=24, heads=2).build(world.tokenizer(), 0), tmp_path / "wide")
    lm = load(base, "cpu")
    own = weights_of(lm)
    with movable(lm, base) as moved, pytest.raises(TiterError, match="wide holds no tensor"), moved.at([(1.0, Towards(wide))]):
        pytest.fail("another architecture was walked to")
    assert same_bits(weights_of(lm), own)
    linear = lm.sites.linear("mlp_up[1]")
    linear.weight = torch.nn.Parameter(torch.ones(linear.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TiterError, match="as int8: quantised"), movable(lm, base):
        pytest.fail("quantised weights were moved")


def test_originals_that_are_gone_are_said_aloud(world: World, tmp_path: Path) -> None:
    checkpoint = saved(lively(world, "llama"), tmp_path / "m")
    with movable(load(checkpoint, "cpu"), checkpoint) as moved:
        with pytest.raises(TiterError, match="could not be put back") as caught, moved.at([(1.0, Random(0))]):
            (tmp_path / "m" / "model.safetensors").unlink()
        assert caught.value.status == 1


def test_no_second_copy_of_the_model_is_held(world: World, tmp_path: Path) -> None:
    """The largest tensors alive at a point: one of the model's beside the model (here watched through what `original` handed out)."""
    import weakref

    checkpoint = saved(lively(world, "llama"), tmp_path / "m")
    with movable(load(checkpoint, "cpu"), checkpoint) as moved:
        given: list[weakref.ref[torch.Tensor]] = []
        alive = []
        read = moved.original

        def watched(name: str) -> torch.Tensor:
            found = read(name)
            given.append(weakref.ref(found))
            alive.append(sum(ref() is not None for ref in given))
            return found

        moved.original = moved.directions._weight = watched  # type: ignore[method-assign]
        with moved.at([(0.5, Random(0)), (0.5, Random(1, against=Random(0)))]):
            pass
        assert len(given) > 20
        assert max(alive) <= 2  # the one being handed out, and the one its name still held
