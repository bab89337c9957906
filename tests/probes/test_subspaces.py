"""Shares and parts of a change that was planted in the null space, in the column space, and at random."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import llama, neox
from titer.data.world import World, WorldSource
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.interpolate import with_weights
from titer.models.lm import LM, load
from titer.probes.base import column_space
from titer.probes.subspaces import ENERGY, PARTS, subspaces, with_part


def pair(folder: Path, planted: str, make: object = neox) -> tuple[Checkpoint, Checkpoint, LM, LM]:
    """A tiny model, and it with a change of its first MLP matrices in the null space, the column space or anywhere."""
    lm = make(World(seed=1))  # type: ignore[operator]
    lm.save(folder / "base")
    for i in lm.sites.having("mlp_up"):
        (site,) = lm.sites.weights(f"mlp_up[{i}]")
        weight = lm.model.state_dict()[site.tensor]
        change = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
        kept = column_space(weight, ENERGY)
        inside = kept @ (kept.T @ change)
        with torch.no_grad():
            weight += {"null": change - inside, "column": inside, "anywhere": change}[planted]
    lm.save(folder / "tuned")
    base, tuned = open_checkpoint(folder / "base"), open_checkpoint(folder / "tuned")
    return base, tuned, load(base), load(tuned)


EXAMPLES = WorldSource(world=World(seed=1), kind="unsafe").examples(range(8))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [neox, llama])
def test_a_change_is_found_where_it_was_planted(tmp_path: Path, make: object) -> None:
    for planted, share in (("null", 1.0), ("column", 0.0)):
        base, tuned, *lms = pair(tmp_path / planted, planted, make)
        found = subspaces(base, tuned, lms, EXAMPLES)
        assert found[found.of == "weights"].share.tolist() == pytest.approx([share] * found.layer.nunique(), abs=1e-5)


def test_a_random_change_has_the_share_of_the_dimension(tmp_path: Path) -> None:
    base, tuned, *lms = pair(tmp_path, "anywhere")
    found = subspaces(base, tuned, lms, EXAMPLES)
    weights = found[found.of == "weights"]
    assert weights.share.tolist() == pytest.approx(weights.dimension.tolist(), abs=0.06)


def test_the_change_of_what_enters_the_activation_is_no_change_of_weights_alone(tmp_path: Path) -> None:
    """With a change in the null space the first layer's inputs are the same, so its z moves in that space alone; later layers' do not."""
    base, tuned, *lms = pair(tmp_path, "null")
    inputs = subspaces(base, tuned, lms, EXAMPLES).query("of == 'inputs'").set_index("layer").share
    assert inputs[1] == pytest.approx(1.0, abs=1e-5)
    assert inputs[2] < 0.999


def test_parts_add_up_and_random_ones_have_the_dimension(tmp_path: Path) -> None:
    base, tuned, first, lm = pair(tmp_path, "anywhere")
    (site,) = lm.sites.weights("mlp_up[1]")
    before, after = (one.model.state_dict()[site.tensor].clone() for one in (first, lm))
    parts = {part: with_part(lm, base, tuned, part, 0)[site.tensor] - before for part in PARTS}
    assert torch.allclose(parts["null"] + parts["column"], after - before, atol=1e-6)
    rank = torch.linalg.matrix_rank
    kept = column_space(before, ENERGY).shape[1]
    assert int(rank(parts["random as column"], rtol=1e-4)) == min(kept, before.shape[1])
    with with_weights(lm, with_part(lm, base, tuned, "null", 0)):
        assert torch.allclose(lm.model.state_dict()[site.tensor], before + parts["null"], atol=1e-6)
    assert torch.equal(lm.model.state_dict()[site.tensor], after)
