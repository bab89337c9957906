"""The subspace probe on matrices whose answers are known, and against naive forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import neox
from titer.data.world import World, WorldSource
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import load
from titer.probes import delta_w as probe


def orthonormal(m: int, k: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(m, k, generator=torch.Generator().manual_seed(seed)))[0]


def test_null_share_of_a_change_inside_and_outside_the_column_space() -> None:
    basis = orthonormal(12, 12, 0)
    kept = basis[:, :4]
    inside = kept @ torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    outside = basis[:, 4:8] @ torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    assert probe.null_share(inside, kept) == pytest.approx(0, abs=1e-5)
    assert probe.null_share(outside, kept) == pytest.approx(1, abs=1e-5)
    both = inside / torch.linalg.norm(inside) * 3 + outside / torch.linalg.norm(outside) * 4
    assert probe.null_share(both, kept) == pytest.approx(16 / 25, abs=1e-4)


def test_null_share_equals_the_energy_weighted_projection_of_left_singular_vectors() -> None:
    """The paper's form: sum sigma_i^2 ||P_N u_i||^2 / sum sigma_i^2."""
    weight = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    change = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    kept = probe.column_space(weight, 0.9)
    projector = torch.eye(20) - kept @ kept.T
    torch.testing.assert_close(projector @ projector, projector, atol=1e-5, rtol=0)
    u, s, _ = torch.linalg.svd(change, full_matrices=False)
    expected = (s**2 * (projector @ u).pow(2).sum(0)).sum() / (s**2).sum()
    assert probe.null_share(change, kept) == pytest.approx(float(expected), abs=1e-5)


def test_column_space_keeps_the_smallest_rank_with_the_energy() -> None:
    left, right = orthonormal(10, 4, 0), orthonormal(6, 4, 1)
    values = torch.tensor([3.0, 2.0, 1.0, 0.5])  # squares 9, 4, 1, .25: shares .63, .91, .98, 1
    weight = (left * values) @ right.T
    assert probe.column_space(weight, 0.6).shape[1] == 1
    assert probe.column_space(weight, 0.9).shape[1] == 2
    assert probe.column_space(weight, 0.95).shape[1] == 3
    exact = probe.column_space(weight, 1.0)
    projector = torch.eye(10) - exact @ exact.T
    torch.testing.assert_close(projector @ weight, torch.zeros(10, 6), atol=1e-4, rtol=0)


def test_random_like_keeps_the_singular_values_and_spreads_over_all_directions() -> None:
    matrix = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    drawn = probe.random_like(matrix, 1)
    torch.testing.assert_close(torch.linalg.svdvals(drawn), torch.linalg.svdvals(matrix), rtol=1e-4, atol=1e-4)
    assert torch.equal(drawn, probe.random_like(matrix, 1))
    kept = orthonormal(30, 6, 3)
    shares = [probe.null_share(probe.random_like(matrix, seed), kept) for seed in range(60)]
    assert np.mean(shares) == pytest.approx((30 - 6) / 30, abs=0.02)  # (m - r) / m


def test_stable_rank_of_known_matrices() -> None:
    assert probe.stable_rank(torch.eye(5)) == pytest.approx(5)
    assert probe.stable_rank(torch.outer(torch.arange(1.0, 5), torch.ones(3))) == pytest.approx(1)


def test_the_whole_probe_against_a_change_planted_by_hand(world: World, tmp_path: Path) -> None:
    """dW that answers to one direction of the unsafe inputs only: gain and null share are what was planted."""
    base = neox(world)
    base.save(tmp_path / "base")
    tuned = neox(world)
    linear = tuned.sites.linear("mlp_up[0]")
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(linear.in_features, generator=generator)
    output = torch.randn(linear.out_features, generator=generator)
    with torch.no_grad():
        linear.weight += 0.1 * torch.outer(output, direction)
    tuned.save(tmp_path / "tuned")
    groups = [WorldSource(world=world, kind=kind).examples(np.arange(6)) for kind in ("safe", "unsafe")]  # type: ignore[arg-type]
    first, second = open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned")
    lm = load(second)
    per_input, per_layer = probe.delta_w(first, second, lm, *groups)
    assert per_layer.relative_norm.tolist()[1] == 0
    assert per_layer.stable_rank.tolist()[0] == pytest.approx(1, abs=1e-3)
    seen: list[torch.Tensor] = []
    handle = lm.sites.linear("mlp_up[0]").register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1].detach()))
    for example in (*groups[0], *groups[1]):
        lm.logits([lm.tokenizer(example.prompt)["input_ids"]])
    handle.remove()
    a = torch.stack(seen)
    expected = 0.1 * (a @ direction).abs() * output.norm() / a.norm(dim=1)
    torch.testing.assert_close(
        torch.tensor(per_input[per_input.layer == 1].gain.to_numpy(), dtype=torch.float32), expected, rtol=1e-3, atol=1e-5
    )
    kept = probe.column_space(base.sites.linear("mlp_up[0]").weight.detach(), probe.ENERGY)
    share = 1 - float((kept.T @ output).norm() / output.norm()) ** 2
    assert per_input[per_input.layer == 1].null_share.to_numpy() == pytest.approx(share, abs=1e-3)


def test_a_pruned_weight_has_no_relative_change_and_no_column_space(world: World, tmp_path: Path) -> None:
    pruned, tuned = neox(world), neox(world, seed=1)
    with torch.no_grad():
        pruned.sites.linear("mlp_up[0]").weight.zero_()
    for name, lm in (("pruned", pruned), ("tuned", tuned)):
        lm.save(tmp_path / name)
    before, after = open_checkpoint(tmp_path / "pruned"), open_checkpoint(tmp_path / "tuned")
    groups = [WorldSource(world=world, kind=kind).examples(np.arange(6)) for kind in ("safe", "unsafe")]  # type: ignore[arg-type]
    _, found = probe.delta_w(before, after, load(after), *groups)
    assert np.isnan(found.relative_norm[0])
    assert (found["rank"][0], found.null_share[0]) == (0, pytest.approx(1))
    assert found.relative_norm[1] > 0
