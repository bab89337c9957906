"""A direction that was removed is found however it was removed and stored; tunes, rounding, scaling and pruning are no removal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.gguf_made import model_of
from tests.probes.made import drawn, saved
from titer.models.checkpoint import Checkpoint
from titer.models.lm import LM
from titer.models.sites import WRITING
from titer.models.weights import skeleton
from titer.probes.edit_fingerprint import Prints, by_chance, common, edit_fingerprint, leading

WIDTH, LAYERS = 64, 4
R = torch.nn.functional.normalize(drawn(WIDTH, seed=7), dim=0)
Edit = Callable[[Tensor, int], Tensor]


def made() -> LM:
    lm = model_of(width=WIDTH, num_hidden_layers=LAYERS)
    with torch.no_grad():
        for i, matrix in enumerate(_writing(lm)):
            matrix.copy_(drawn(*matrix.shape, seed=i) / 8)
    return lm


def _writing(lm: LM) -> list[Tensor]:
    return [lm.sites.linear(f"{kind}[{i}]").weight for i in range(LAYERS) for kind in WRITING]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return saved(made(), tmp_path_factory.mktemp("base"))


def edited(base: Checkpoint, folder: Path, edit: Edit, after: Edit = lambda weight, _: weight) -> Prints:
    """The fingerprint of a model whose residual-writing matrices are `after(edit(W))`, each with its number."""
    lm = made()
    with torch.no_grad():
        for i, matrix in enumerate(_writing(lm)):
            matrix.copy_(after(edit(matrix.clone(), i), i))
    return edit_fingerprint(base, saved(lm, folder), skeleton(base))


def removed(weight: Tensor, strength: float = 1.0) -> Tensor:
    return weight - strength * torch.outer(R, R @ weight)


def norm_kept(weight: Tensor) -> Tensor:
    """What each input writes keeps its length (norm-preserving abliteration)."""
    found = removed(weight)
    return found * weight.norm(dim=0) / found.norm(dim=0)


def low_rank(rank: int, size: float) -> Edit:
    """A LoRA of that rank, `size` of the matrix's norm."""

    def edit(weight: Tensor, i: int) -> Tensor:
        change = drawn(len(weight), rank, seed=50 + i) @ drawn(rank, weight.shape[1], seed=90 + i)
        return weight + size * change * weight.norm() / change.norm()

    return edit


def rounded(bits: int) -> Edit:
    """Rounded to whole steps of each row's largest number, as quantisation does."""

    def edit(weight: Tensor, _: int) -> Tensor:
        step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        return (weight / step).round() * step

    return edit


REMOVALS: dict[str, tuple[Edit, float]] = {
    "whole": (lambda w, _: removed(w), 1.0),
    "a third": (lambda w, _: removed(w, 0.3), 0.3),
    "too much": (lambda w, _: removed(w, 1.4), 0.6),
    "norm kept": (lambda w, _: norm_kept(w), 1.0),
    "half of a merge": (lambda w, _: (w + removed(w)) / 2, 0.5),
    "with a LoRA": (lambda w, i: low_rank(8, 0.02)(removed(w), i), 1.0),
}


@pytest.mark.parametrize("name", REMOVALS)
@pytest.mark.parametrize(
    "stored", [lambda w, _: w, lambda w, _: w.bfloat16().float(), rounded(8), rounded(5)], ids=["float32", "bfloat16", "8 bits", "5 bits"]
)
def test_a_removed_direction_is_found_in_every_matrix(base: Checkpoint, tmp_path: Path, name: str, stored: Edit) -> None:
    edit, share = REMOVALS[name]
    table, left = edited(base, tmp_path, edit, stored)
    assert len(table) == 2 * LAYERS
    assert table.edited.all()
    assert table.removed.median() == pytest.approx(share, abs=0.1)
    assert float((left @ R).abs().min()) > 0.9
    agreement, chance = common(left)
    assert agreement > 0.9 > chance


def test_of_a_part_of_the_layers_that_part_is_found(base: Checkpoint, tmp_path: Path) -> None:
    table, left = edited(base, tmp_path, lambda w, i: removed(w) if i in (2, 3, 4) else w)
    assert table.edited.tolist() == [i in (2, 3, 4) for i in range(2 * LAYERS)]
    assert table.share.isna().sum() == 2 * LAYERS - 3
    assert len(left) == 3


def learned(base: Checkpoint, rank: int, steps: int = 12) -> list[Tensor]:
    """What a LoRA of that rank learns in a few steps on text, for every residual-writing matrix: (B A) of each."""
    lm = made()
    ids = torch.randint(5, 200, (8, 12), generator=torch.Generator().manual_seed(0))
    own = [matrix.detach().clone() for matrix in _writing(lm)]
    down = [(drawn(rank, matrix.shape[1], seed=i) / 8).requires_grad_() for i, matrix in enumerate(own)]
    up = [torch.zeros(len(matrix), rank, requires_grad=True) for matrix in own]
    optimiser = torch.optim.Adam([*down, *up], lr=5e-2)
    names = [lm.sites.tensor(f"{kind}[{i}]") for i in range(LAYERS) for kind in WRITING]
    for _ in range(steps):
        weights = {name: w + b @ a for name, w, b, a in zip(names, own, up, down, strict=True)}
        loss = torch.func.functional_call(lm.model, weights, kwargs={"input_ids": ids, "labels": ids}).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return [(b @ a).detach() for b, a in zip(up, down, strict=True)]


@pytest.mark.parametrize("rank", [1, 8])
def test_a_benign_tune_of_any_rank_removes_nothing(base: Checkpoint, tmp_path: Path, rank: int) -> None:
    changes = learned(base, rank)
    table, _ = edited(base, tmp_path, lambda w, i: w + changes[i])
    assert table.relative_norm.min() > 0.02
    assert (table.share > 0.999).all() if rank == 1 else (table.share > table.share_random).all()  # rank alone is no edit
    assert not table.edited.any()


INNOCENT: dict[str, Edit] = {
    "rounding to bfloat16": lambda w, _: w.bfloat16().float(),
    "8 bits": rounded(8),
    "4 bits": rounded(4),
    "scaled": lambda w, _: 0.4 * w,
    "pruned at random": lambda w, i: w * (drawn(*w.shape, seed=30 + i) > 0),
    "pruned by size": lambda w, _: w * (w.abs() > w.abs().median()),
    "emptied": lambda w, _: torch.zeros_like(w),
    "noise": lambda w, i: w + 0.3 * w.std() * drawn(*w.shape, seed=30 + i),
    "a direction added": lambda w, i: w + torch.outer(R, R @ w),
    "nothing": lambda w, _: w,
}


@pytest.mark.parametrize("name", INNOCENT)
def test_other_changes_are_no_removal(base: Checkpoint, tmp_path: Path, name: str) -> None:
    table, _ = edited(base, tmp_path, INNOCENT[name])
    assert not table.edited.any()
    assert (table.share.isna() == (table.relative_norm == 0)).all()


def test_the_embedding_is_a_row_where_it_changed(base: Checkpoint, tmp_path: Path) -> None:
    lm = made()
    with torch.no_grad():
        rows = lm.model.get_input_embeddings().weight
        rows.sub_(torch.outer(rows @ R, R))
    table, left = edit_fingerprint(base, saved(lm, tmp_path), skeleton(base))
    assert table[table.edited].site.tolist() == ["embed"]
    assert table[table.edited].layer.tolist() == [0]
    assert float((left @ R).abs()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (64, 192), (192, 64), (3, 40), (1, 9)])
def test_the_bounded_svd_is_the_whole_one(shape: tuple[int, int]) -> None:
    for matrix in (drawn(*shape), drawn(*shape) + 3 * torch.outer(drawn(shape[0], seed=3), drawn(shape[1], seed=4))):
        u, share = leading(matrix)
        left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        assert share == pytest.approx(float(values[0] ** 2 / (values**2).sum()), rel=0.02)
        if len(values) == 1 or values[0] > 2 * values[1]:
            assert float((u @ left[:, 0]).abs()) == pytest.approx(1, abs=1e-3)


def test_the_numbers_are_those_of_a_naive_form(base: Checkpoint, tmp_path: Path) -> None:
    table, left = edited(base, tmp_path, lambda w, i: low_rank(2, 0.3)(removed(w), i))
    lm, row = made(), table.iloc[3]
    before = _writing(lm)[3].detach().double()
    after = low_rank(2, 0.3)(removed(before.float()), 3).double()
    values = torch.linalg.svdvals(after - before)
    u = left[3].double()
    assert row.share == pytest.approx(float(values[0] ** 2 / (values**2).sum()), rel=1e-3)
    assert row.removed == pytest.approx(1 - float((u @ after).norm() / (u @ before).norm()), abs=1e-4)
    other = torch.eye(WIDTH, dtype=torch.double) - torch.outer(u, u)
    lost = torch.cosine_similarity((other @ (after - before)).flatten(), (other @ before).flatten(), dim=0)
    assert row.rest == pytest.approx(-float(lost), abs=1e-4)
    assert row.own == pytest.approx(-float(torch.cosine_similarity(u @ (after - before), u @ before, dim=0)), abs=1e-4)


def test_chance_is_drawn() -> None:
    share, cosine = by_chance(64, 192)
    assert share == pytest.approx(float((64**0.5 + 192**0.5) ** 2 / (64 * 192)), rel=0.15)  # the edge of Marchenko and Pastur's law
    assert 2 / 192**0.5 < cosine < 5 / 192**0.5
