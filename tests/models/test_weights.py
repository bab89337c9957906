"""Weight changes by site, and the sites of an architecture without its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import llama, neox
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, Architecture
from titer.models.weights import delta, skeleton


def test_delta_is_the_change_of_one_tensor_and_of_no_other(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "base")
    change = torch.randn(lm.sites.linear("mlp_up[1]").weight.shape, generator=torch.Generator().manual_seed(0))
    before = lm.sites.linear("mlp_up[1]").weight.detach().clone()
    with torch.no_grad():
        lm.sites.linear("mlp_up[1]").weight.add_(change)
    lm.save(tmp_path / "tuned")
    base, tuned = open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned")
    weight, found = delta(base, tuned, lm.sites.tensor("mlp_up[1]"))
    assert torch.equal(weight, before)
    torch.testing.assert_close(found, change, rtol=0, atol=1e-6)
    for site in ("mlp_up[0]", "mlp_down[1]", "attn_o[1]"):
        assert not delta(base, tuned, lm.sites.tensor(site))[1].any()


def test_two_architectures_are_a_clear_error(world: World, tmp_path: Path) -> None:
    models = {"llama": llama(world), "neox": neox(world), "wide": Architecture(layers=2, width=24, heads=2).build(world.tokenizer(), 0)}
    for name, lm in models.items():
        lm.save(tmp_path / name)
    opened = {name: open_checkpoint(tmp_path / name) for name in models}
    with pytest.raises(TiterError, match="llama holds no tensor"):
        delta(opened["neox"], opened["llama"], models["neox"].sites.tensor("mlp_up[0]"))
    with pytest.raises(TiterError, match=r"\(64, 16\) in neox, \(96, 24\) in wide"):
        delta(opened["neox"], opened["wide"], models["neox"].sites.tensor("mlp_up[0]"))


def test_a_skeleton_names_the_same_tensors_without_any_weight(family: LM, tmp_path: Path) -> None:
    family.save(tmp_path / "m")
    found = skeleton(open_checkpoint(tmp_path / "m"))
    sites = [f"{kind}[{i}]" for i in range(2) for kind in ("attn_o", "mlp_up", "mlp_down")]
    assert [found.tensor(site) for site in sites] == [family.sites.tensor(site) for site in sites]
    assert found.names() == family.sites.names()
    assert all(p.device.type == "meta" for p in found.model.parameters())
    for site in sites:
        assert open_checkpoint(tmp_path / "m").weight(found.tensor(site)).shape == found.linear(site).weight.shape
