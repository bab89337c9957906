"""The formulas of edits against sorting, loops and full matrices; exact counts, ties too."""

from __future__ import annotations

import math

import pytest
import torch

from titer.models.edits import cut, dropped, kept, least_aligned, two_changes


def tensors(seed: int, tied: bool = False) -> list[torch.Tensor]:
    """Tensors of several shapes and sizes; `tied`: of few values, so that many are of one magnitude."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=generator) * size for shape, size in (((7, 5), 1e-3), ((40,), 1.0), ((3, 4, 6), 50.0))]
    return [(one * 3).round() / 4 for one in found] if tied else found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("keep", [1, 2, 14, 15, 73, 146, 147])
def test_the_cut_is_that_of_sorting_everything(keep: int, tied: bool) -> None:
    parts = tensors(3, tied)
    bits, ties, there = cut(lambda: parts, keep)
    whole = torch.cat([part.flatten().abs() for part in parts]).sort(descending=True).values
    assert torch.tensor(bits, dtype=torch.int32).view(torch.float32) == whole[keep - 1]
    assert there == int((whole == whole[keep - 1]).sum())
    assert ties == keep - int((whole > whole[keep - 1]).sum())
    above = sum(int(kept(part, bits, 0).sum()) for part in parts)
    assert above == int((whole > whole[keep - 1]).sum())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("k", [0.01, 0.1, 0.5, 0.99, 1.0])
def test_exactly_so_many_of_the_largest_are_kept(k: float, tied: bool) -> None:
    part = tensors(5, tied)[2]
    keep = math.ceil(k * part.numel())
    mask = kept(part, *cut(lambda: [part], keep)[:2])
    assert int(mask.sum()) == keep
    assert part.abs()[mask].min() >= (part.abs()[~mask].max() if keep < part.numel() else 0)


def test_dropping_keeps_the_mean_and_is_drawn_by_seed_and_name() -> None:
    change = torch.full((400, 400), 0.7)
    found = dropped(change, 0.8, 3, "a")
    torch.testing.assert_close(found.unique(), torch.tensor([0.0, 3.5]))
    assert float((found == 0).float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float(found.mean()) == pytest.approx(0.7, rel=0.02)
    assert torch.equal(found, dropped(change, 0.8, 3, "a"))
    assert not torch.equal(found, dropped(change, 0.8, 3, "b"))
    assert not torch.equal(found, dropped(change, 0.8, 4, "a"))
    assert dropped(change, 0.0, 3, "a") is change


def test_the_least_aligned_are_those_of_the_lowest_cosine_and_never_one_without() -> None:
    cosines = {"a": 0.4, "b": None, "c": 0.1, "d": 0.5, "e": 0.1}
    assert least_aligned(cosines, 0.4, 0) == ["c", "e", "a"]
    assert least_aligned(cosines, -1.0, 3) == ["c", "e", "a"]
    assert least_aligned(cosines, -1.0, 9) == ["c", "e", "a", "d"]
    assert least_aligned(cosines, -1.0, 0) == []


def test_both_changes_of_a_turned_weight_are_outputs_by_inputs() -> None:
    tuned, aligned, base = (torch.randn(3, 5) for _ in range(3))
    for turned in (False, True):
        v, dw = two_changes(tuned, {"aligned": aligned, "base": base}, turned)
        wanted = (aligned - base, tuned - aligned)
        assert all(torch.equal(mine, one.T if turned else one) for mine, one in zip((v, dw), wanted, strict=True))
