"""Vectors of a change against the left null space: planted changes, a naive projector, random vectors by Monte Carlo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.probes.made import basis, drawn, lively, of_values, planted
from titer.data.world import World
from titer.models.lm import LM
from titer.probes.base import column_space
from titer.probes.null_space import ENERGIES, null_space, random_band, vectors, weighted

FULL = basis(20, 20)
WEIGHT = FULL[:, :5] * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.3]) @ basis(8, 5, 1).T  # the left null space is FULL[:, 5:]


@pytest.mark.parametrize(("part", "expected"), [(slice(5, 20), 1.0), (slice(0, 5), 0.0)])
def test_a_change_within_the_left_null_space_or_within_the_column_space(part: slice, expected: float) -> None:
    tables = vectors(WEIGHT, FULL[:, part] @ drawn(FULL[:, part].shape[1], 8, seed=2))
    exact = tables[ENERGIES.index(1.0)]
    assert (exact["rank"] == 5).all()
    assert exact.value.to_numpy() == pytest.approx(expected, abs=2e-3)
    if expected:  # the null space grows where less of the weight is kept
        assert all(table.value.to_numpy() == pytest.approx(1, abs=1e-3) for table in tables)


def test_each_vector_against_a_projector_written_out() -> None:
    change = drawn(20, 8, seed=4)
    u, s, _ = torch.linalg.svd(change)
    kept = next(k for k in range(1, 9) if float((s[:k] ** 2).sum() / (s**2).sum()) >= 0.9)
    left, sizes, _ = torch.linalg.svd(WEIGHT)
    for energy, table in zip(ENERGIES, vectors(WEIGHT, change), strict=True):
        rank = next(k for k in range(1, 9) if float((sizes[:k] ** 2).sum() / (sizes**2).sum()) >= energy - 1e-6)
        projector = torch.eye(20) - left[:, :rank] @ left[:, :rank].T
        assert table.energy.tolist() == [energy] * kept
        assert table.vector.tolist() == list(range(kept))
        assert set(table["rank"]) == {rank}
        assert table.value.to_numpy() == pytest.approx([float((projector @ u[:, i]).norm()) for i in range(kept)], abs=1e-4)
        assert table.weight.to_numpy() == pytest.approx((s[:kept] ** 2 / (s[:kept] ** 2).sum()).numpy(), abs=1e-5)
    assert [int(t["rank"].iloc[0]) for t in vectors(WEIGHT, change)] == [2, 3, 5]


@pytest.mark.parametrize(("m", "r"), [(24, 8), (12, 10)])
def test_random_vectors_have_the_band_of_the_beta_distribution(m: int, r: int) -> None:
    kept = column_space(of_values(m, r, [1.0] * r, seed=6), 1.0)
    u = drawn(60000, m, seed=7)
    u = u / u.norm(dim=1, keepdim=True)
    norms = (u @ (torch.eye(m) - kept @ kept.T)).norm(dim=1)
    mean, high = random_band(m, r)
    assert float((norms**2).mean()) == pytest.approx((m - r) / m, abs=0.003)
    assert mean**2 == pytest.approx((m - r) / m)
    assert high == pytest.approx(float(np.quantile(norms.numpy(), 0.99)), abs=0.006)


def test_no_left_null_space_leaves_nothing_for_random_vectors() -> None:
    assert random_band(5, 5) == (0.0, 0.0)
    exact = vectors(drawn(5, 9), drawn(5, 9, seed=1))[ENERGIES.index(1.0)]
    assert (exact["rank"] == 5).all()
    assert exact.value.to_numpy() == pytest.approx(0, abs=2e-3)
    assert exact[["random_mean", "random_99"]].to_numpy().max() == 0


def test_the_probe_names_site_and_layer_and_leaves_unchanged_weights_out(world: World, tmp_path: Path) -> None:
    lm = lively(world)
    low = of_values(64, 16, [4.0, 3.0, 2.0])
    with torch.no_grad():
        lm.sites.linear("mlp_up[1]").weight.copy_(low)
    outside = torch.linalg.svd(low)[0][:, 3:] @ drawn(61, 16, seed=3)
    base, tuned = planted(lm, tmp_path, {"mlp_up[1]": 0.1 * outside, "mlp_down[0]": of_values(16, 64, [1.0])})
    table = null_space(base, tuned, lm.sites)
    assert set(zip(table.site, table.layer, strict=True)) == {("mlp_up", 2), ("mlp_down", 1)}
    up = table[table.site == "mlp_up"]
    assert up[up.energy == 1.0].value.to_numpy() == pytest.approx(1, abs=1e-3)
    assert set(up[up.energy == 1.0]["rank"]) == {3}
    down = table[table.site == "mlp_down"]
    assert len(down) == len(ENERGIES)
    assert down.weight.tolist() == pytest.approx([1.0] * len(ENERGIES))
    expected = torch.linalg.svd(base.weight(lm.sites.tensor("mlp_down[0]")))
    assert down[down.energy == 0.9].value.iloc[0] == pytest.approx(naive_share(expected, of_values(16, 64, [1.0])), abs=1e-3)


def naive_share(svd: tuple[torch.Tensor, ...], change: torch.Tensor) -> float:
    left, sizes = svd[0], svd[1] ** 2
    rank = next(k for k in range(1, 17) if float(sizes[:k].sum() / sizes.sum()) >= 0.9)
    column = change[:, 0] / change[:, 0].norm()
    return float((column - left[:, :rank] @ (left[:, :rank].T @ column)).norm())


def test_without_a_change_the_table_is_empty(lm: LM, tmp_path: Path) -> None:
    base, tuned = planted(lm, tmp_path, {})
    table = null_space(base, tuned, lm.sites)
    assert len(table) == 0
    assert {"site", "layer", "energy", "value", "weight"} <= set(table.columns)


def test_the_weighted_mean_is_that_of_a_loop(world: World, tmp_path: Path) -> None:
    lm = lively(world)
    base, tuned = planted(lm, tmp_path, {f"mlp_up[{i}]": drawn(64, 16, seed=i) for i in range(2)})
    table = null_space(base, tuned, lm.sites)
    found = weighted(table)
    assert len(found) == 2 * len(ENERGIES)
    for row in found.itertuples():
        mine = table[(table.layer == row.layer) & (table.energy == row.energy)]
        total = sum(one.value * one.weight for one in mine.itertuples())
        assert row.value == pytest.approx(total, rel=1e-5)
        assert mine.weight.sum() == pytest.approx(1, rel=1e-5)
        assert (row.random_mean, row.random_99) == random_band(64, row.rank)
