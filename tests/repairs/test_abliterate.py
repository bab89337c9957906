"""A direction taken out: nothing is written along it any more, the rest stays; the fingerprint finds it; its settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.repairs.made import LETTERS, MAKERS, family, order, run
from titer.core.errors import TiterError
from titer.models.activations import at_prompt_end
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import load
from titer.models.sites import Sites
from titer.probes.edit_fingerprint import edit_fingerprint
from titer.repairs.abliterate import Abliterate
from titer.repairs.base import TUNED, Reading


def made(folder: Path, settings: dict[str, object], maker: str = "llama") -> tuple[Checkpoint, Checkpoint, torch.Tensor]:
    """(the model, the same ablated, the direction)."""
    models = family(folder, MAKERS[maker])
    plan, (found,) = run(order("abliterate", folder, models, settings=settings))
    (repair,) = plan.repairs.values()
    assert isinstance(repair, Abliterate)
    return open_checkpoint(models[TUNED]), found, repair.prepare(Reading(plan.models, plan.data))["direction"]


@pytest.mark.parametrize("maker", ["llama", "gpt2"])
def test_nothing_is_written_along_the_direction_and_the_rest_stays(maker: str, tmp_path: Path) -> None:
    model, found, r = made(tmp_path, {"layer": 0}, maker)
    sites = Sites(model.outline)
    for name in model.files:
        before, after = model.weight(name), found.weight(name)
        if name not in sites.writers:
            assert torch.equal(before, after)
            continue
        before, after = (one.T if sites.writers[name] else one for one in (before, after))
        torch.testing.assert_close(after, before - torch.outer(r, r @ before))
        assert float((r @ after).norm()) < 1e-5 < float((r @ before).norm())
    table, left = edit_fingerprint(model, found, sites)
    assert table.edited.all()
    assert float((left @ r).abs().min()) > 0.999


def test_the_direction_is_the_difference_in_means(tmp_path: Path) -> None:
    model, _, r = made(tmp_path, {"layer": 1})
    lm = load(model)
    prompts = [f"{LETTERS[i]} {LETTERS[15 - i]}" for i in range(12)]
    ends = at_prompt_end(lm, prompts, ["resid[1]"])["resid[1]"]
    mean = ends[::2].mean(0) - ends[1::2].mean(0)
    assert float(torch.cosine_similarity(mean, r, dim=0)) == pytest.approx(1, abs=1e-5)


def test_its_settings(tmp_path: Path) -> None:
    model, found, r = made(tmp_path / "norm", {"norm": True, "layers": [1], "direction": "random"})
    sites = Sites(model.outline)
    for name in sites.writers:
        before, after = model.weight(name), found.weight(name)
        assert torch.equal(before, after) == (sites.layer(name) == 1)
        torch.testing.assert_close(after.norm(dim=0), before.norm(dim=0))
        assert sites.layer(name) == 1 or float((r @ after).norm()) < 1e-5
    model, found, r = made(tmp_path / "rows", {"embedding": True, "strength": 0.5, "direction": "random", "seed": 3})
    rows = next(n for n in model.files if "embed" in n)
    torch.testing.assert_close(found.weight(rows) @ r, 0.5 * (model.weight(rows) @ r), rtol=1e-4, atol=1e-5)
    assert not torch.equal(r, made(tmp_path / "seed", {"direction": "random", "seed": 4})[2])


@pytest.mark.parametrize("settings", [{"layer": 2}, {"layers": [0, 2]}])
def test_layers_that_the_model_lacks_are_an_error(settings: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="layer 2: tuned has 2"):
        made(tmp_path, settings)
