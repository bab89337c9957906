"""What probes share, against torch.linalg, naive loops and matrices of known answers."""

from __future__ import annotations

import pytest
import torch

from tests.probes.made import basis, drawn, of_values
from titer.probes import base
from titer.probes.base import column_space, distance_score, held_out_scores, null_share, rank_at, stable_rank, taus, thin_svd

SHAPES = [(9, 4), (4, 9), (6, 6), (1, 5), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("through_gram", [False, True])
def test_thin_svd_is_torch_svd_with_its_vectors_as_columns(
    shape: tuple[int, int], through_gram: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "GRAM_FROM", 1 if through_gram else 10**6)
    matrix = drawn(*shape, seed=3)
    left, values, right = thin_svd(matrix)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    k = min(shape)
    assert (left.shape, values.shape, right.shape) == ((shape[0], k), (k,), (shape[1], k))
    assert left.dtype == values.dtype == right.dtype == torch.float32
    torch.testing.assert_close(values, s, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((left * values) @ right.T, matrix, rtol=1e-4, atol=1e-5)
    signs = torch.sign((left * u).sum(0))
    torch.testing.assert_close(left * signs, u, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(right * signs, vh.T, rtol=1e-3, atol=1e-4)
    for vectors in (left, right):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(k), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_the_gram_branch_serves_matrices_of_lower_rank(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = of_values(*shape, [3.0, 2.0])
    expected = column_space(matrix, 1.0)
    monkeypatch.setattr(base, "GRAM_FROM", 1)
    left, values, right = thin_svd(matrix)
    assert torch.isfinite(torch.cat([left.flatten(), values, right.flatten()])).all()
    torch.testing.assert_close(values[:2], torch.tensor([3.0, 2.0]), rtol=1e-5, atol=0)
    assert float(values[2:].abs().max()) < 1e-5
    found = column_space(matrix, 1.0)
    assert found.shape == (shape[0], 2)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-5)


def test_the_rank_at_an_energy_is_that_of_a_loop() -> None:
    values = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5])
    for energy in (0.01, 0.5, 0.52, 0.53, 0.9, 0.95, 0.96, 0.99, 1.0):
        held, rank = 0.0, 0
        while held < energy * 30.25 - 1e-9:
            held, rank = held + float(values[rank]) ** 2, rank + 1
        assert rank_at(values, energy) == rank
    assert rank_at(torch.tensor([3.0, 1.0]), 0.9) == 1  # the very energy suffices
    assert rank_at(torch.ones(10), 0.9) == 9
    assert rank_at(torch.tensor([2.0, 1.0, 0.0, 0.0]), 1.0) == 2


@pytest.mark.parametrize(("m", "d", "r"), [(20, 6, 6), (20, 6, 3), (6, 20, 4), (8, 8, 5)])
def test_the_null_projector_is_idempotent_symmetric_and_kills_the_weight(m: int, d: int, r: int) -> None:
    weight = of_values(m, d, [2.0 - i / 8 for i in range(r)], seed=5)
    kept = column_space(weight, 1.0)
    projector = torch.eye(m) - kept @ kept.T
    assert kept.shape == (m, r)
    torch.testing.assert_close(projector, projector.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-5)
    torch.testing.assert_close(projector @ weight, torch.zeros(m, d), rtol=0, atol=1e-5)
    assert float(torch.trace(projector)) == pytest.approx(m - r, abs=1e-4)


def test_a_change_in_the_null_space_has_share_one_and_in_the_column_space_zero() -> None:
    full = basis(12, 12)
    weight = full[:, :4] @ drawn(4, 7, seed=1)
    kept = column_space(weight, 1.0)
    assert null_share(full[:, 4:] @ drawn(8, 7, seed=2), kept) == pytest.approx(1, abs=1e-5)
    assert null_share(weight @ drawn(7, 7, seed=3), kept) == pytest.approx(0, abs=1e-5)


def test_stable_rank_of_known_singular_values() -> None:
    assert stable_rank(of_values(9, 5, [2.0, 1.0, 1.0])) == pytest.approx(6 / 4, rel=1e-4)
    assert stable_rank(5 * of_values(5, 9, [2.0, 1.0, 1.0])) == pytest.approx(6 / 4, rel=1e-4)


def test_tau_is_zero_on_the_midpoint_and_the_whole_distance_at_a_centroid() -> None:
    safe, unsafe = drawn(7, seed=1), drawn(7, seed=2)
    points = torch.stack([(safe + unsafe) / 2, safe, unsafe])
    between = float((safe - unsafe).norm())
    torch.testing.assert_close(distance_score(points, safe, unsafe), torch.tensor([0.0, between, -between]), rtol=1e-5, atol=1e-5)


def test_tau_against_a_loop_over_inputs() -> None:
    safe, unsafe = drawn(5, 3, seed=1), drawn(4, 3, seed=2) + 1
    centre_s, centre_u = sum(safe) / 5, sum(unsafe) / 4
    for found, cloud in zip(taus(safe, unsafe), (safe, unsafe), strict=True):
        naive = [float(((a - centre_u) ** 2).sum() ** 0.5 - ((a - centre_s) ** 2).sum() ** 0.5) for a in cloud]
        assert found.tolist() == pytest.approx(naive, abs=1e-5)


def test_held_out_scores_of_classes_of_unequal_size() -> None:
    safe, unsafe = drawn(5, 3, seed=1), drawn(8, 3, seed=2) + 1
    for found, cloud in zip(held_out_scores(safe, unsafe), (safe, unsafe), strict=True):
        for i, a in enumerate(cloud):
            others = [torch.stack([b for j, b in enumerate(group) if j % 2 != i % 2]).mean(0) for group in (safe, unsafe)]
            assert float(found[i]) == pytest.approx(float((a - others[1]).norm() - (a - others[0]).norm()), abs=1e-5)


def test_an_input_does_not_move_its_own_held_out_centroids() -> None:
    safe, unsafe = drawn(6, 3, seed=1), drawn(6, 3, seed=2)
    before = held_out_scores(safe, unsafe)[0]
    moved = safe.clone()
    moved[2] += 100
    after = held_out_scores(moved, unsafe)[0]
    torch.testing.assert_close(after[[0, 4]], before[[0, 4]])  # the same half, measured against the other
    assert float((after[[1, 3, 5]] - before[[1, 3, 5]]).abs().min()) > 1
