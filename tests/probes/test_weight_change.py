"""Norms, parts and stable ranks of every matrix's change, against a naive form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.probes.made import drawn, lively, of_values, planted
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint
from titer.probes.weight_change import overall, weight_change

PARTS = {"mlp": ("mlp", "fc1", "fc2"), "attention": ("attn", "attention")}


def part_by_name(tensor: str) -> str:
    if "norm" in tensor:
        return "other"
    return next((part for part, words in PARTS.items() if any(word in tensor for word in words)), "other")


@pytest.mark.parametrize("family", ["neox", "llama", "opt", "qwen2"])
def test_norms_and_parts_equal_a_naive_form(family: str, world: World, tmp_path: Path) -> None:
    lm = lively(world, family)
    up = tuple(lm.sites.linear("mlp_up[1]").weight.shape)
    changes = {"mlp_up[1]": of_values(*up, [2.0, 1.0]), "attn_o[0]": 0.5 * lm.sites.linear("attn_o[0]").weight.detach().clone()}
    base, tuned = planted(lm, tmp_path, changes)
    table = weight_change(base, tuned, lm.sites).set_index("tensor")
    head = {"embed_out.weight": "lm_head.weight"}  # as GPT-NeoX's files and its model call it
    files = (load_file(checkpoint.path / "model.safetensors") for checkpoint in (base, tuned))
    before, after = ({head.get(name, name): tensor for name, tensor in file.items()} for file in files)
    assert sorted(table.index) == sorted(name for name in before if before[name].ndim == 2)
    for name, row in table.iterrows():
        change = after[name].double() - before[name].double()
        norm = float((change**2).sum() ** 0.5)
        size = float((before[name].double() ** 2).sum() ** 0.5)
        assert row.norm == pytest.approx(norm, rel=1e-4)
        assert row.weight_norm == pytest.approx(size, rel=1e-4)
        assert row.relative_norm == pytest.approx(norm / size, rel=1e-4)
        assert row.part == part_by_name(str(name))
        assert (norm == 0) == (row.stable_rank != row.stable_rank)  # NaN where nothing changed
    assert table.relative_norm[lm.sites.tensor("attn_o[0]")] == pytest.approx(0.5, rel=1e-4)
    assert table.stable_rank[lm.sites.tensor("mlp_up[1]")] == pytest.approx(5 / 4, rel=1e-3)
    assert (table.norm > 0).sum() == 2


def test_the_overall_change_is_that_of_all_matrices_of_a_part_as_one_vector(world: World, tmp_path: Path) -> None:
    lm = lively(world)
    sites = ("mlp_up[0]", "mlp_down[0]", "mlp_up[1]", "mlp_down[1]")
    old = torch.cat([lm.sites.linear(site).weight.detach().flatten() for site in sites])
    base, tuned = planted(lm, tmp_path, {"mlp_up[0]": drawn(64, 16, seed=1), "mlp_down[1]": 0.1 * drawn(16, 64, seed=2)})
    new = torch.cat([lm.sites.linear(site).weight.detach().flatten() for site in sites])
    table = weight_change(base, tuned, lm.sites)
    assert overall(table, "mlp") == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)
    assert overall(table, "attention") == 0
    assert overall(table, "no such part") != overall(table, "no such part")


def test_vectors_are_a_part_of_their_own_that_counts_all_of_them(world: World, tmp_path: Path) -> None:
    """As a tune of biases or norms alone changes them."""
    lm = lively(world, "qwen2")
    lm.save(tmp_path / "before")
    vectors = {name: p for name, p in lm.model.named_parameters() if p.ndim == 1}
    with torch.no_grad():
        for p in vectors.values():
            p.mul_(1.25)
    lm.save(tmp_path / "after")
    base, tuned = open_checkpoint(tmp_path / "before"), open_checkpoint(tmp_path / "after")
    table = weight_change(base, tuned, lm.sites, vectors=True)
    assert {part: overall(table, part) for part in set(table.part)} == {
        "mlp": 0,
        "attention": 0,
        "other": 0,
        "vectors": pytest.approx(0.25),
    }
    assert set(table[table.part == "vectors"].tensor) == set(vectors)
