"""A part put back: the aligned model there, the tuned one elsewhere; an adapter stays one; the advice of an audit runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.repairs.made import family, order, run
from titer.audit.advice import putting_back
from titer.audit.restoring import BACK, RANDOM
from titer.audit.roles import audited
from titer.core.config import parse_settings
from titer.core.errors import TiterError
from titer.models.checkpoint import open_checkpoint
from titer.models.sites import Sites
from titer.repairs.base import TUNED


@pytest.mark.parametrize(("settings", "share"), [({"part": "mlp", "layers": [1]}, 1.0), ({"part": "all", "share": 0.25}, 0.25)])
def test_the_part_is_the_aligned_models_and_the_rest_the_tuned_ones(settings: dict[str, object], share: float, tmp_path: Path) -> None:
    models = family(tmp_path)
    _, (found,) = run(order("restore", tmp_path, models, settings=settings))
    aligned, tuned = (open_checkpoint(models[role]) for role in ("aligned", TUNED))
    sites, moved = Sites(tuned.outline), 0
    for name in tuned.files:
        chosen = settings["part"] == "all" or (sites.part(name) == "mlp" and sites.layer(name) == 2)
        start, end = tuned.weight(name), aligned.weight(name)
        torch.testing.assert_close(found.weight(name), start + share * (end - start) if chosen else start, rtol=1e-5, atol=1e-6)
        assert chosen or torch.equal(found.weight(name), start)
        moved += chosen
    assert 0 < moved <= len(tuned.files)


def test_of_an_adapter_the_part_is_taken_out_of_the_adapter(tmp_path: Path) -> None:
    models = family(tmp_path, kind="adapter")
    _, (found,) = run(order("restore", tmp_path, models, settings={"part": "attention"}))
    assert found.adapter is not None
    aligned, sites = open_checkpoint(models["aligned"]), Sites(found.outline)
    for name in found.files:
        if sites.part(name) == "attention":
            assert torch.equal(found.weight(name), aligned.weight(name))
    assert any(not torch.equal(found.weight(name), aligned.weight(name)) for name in found.files)


@pytest.mark.parametrize("settings", [{"layers": [2]}, {"part": "mixer"}, {"part": "other", "layers": [0], "share": 2}])
def test_what_the_model_lacks_is_an_error(settings: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(TiterError, match=r"layer 2: tuned has 2|has no part mixer|share"):
        run(order("restore", tmp_path, family(tmp_path), settings=settings))
    assert not (tmp_path / "out").exists()


def test_the_audits_advice_runs(tmp_path: Path) -> None:
    models = family(tmp_path)
    found = audited([open_checkpoint(models[role]) for role in ("aligned", TUNED)])
    row = {"change": "c", "part": "the MLPs of layer 1", "kind": "mlp", "first": 1, "last": 1, "parameters": 9, "count": 9, "n": 9}
    back = {**row, "way": BACK, "rate": 1.0, "low": 0.7, "high": 1.0}
    random = {**row, "way": RANDOM, "rate": 0.0, "low": 0.0, "high": 0.3}
    assert found.last
    (told,) = putting_back(found.last, pd.DataFrame([back, random]))
    words = shlex.split(told.command)
    assert words[:2] == ["titer", "repair"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert (words[2], options["--read"]) == (models[TUNED], f"aligned={models['aligned']}")
    settings = parse_settings([words[i + 1] for i in range(len(words)) if words[i] == "--set"])
    _, (made,) = run(order(options["--method"], tmp_path, models, settings=settings))
    aligned = open_checkpoint(models["aligned"])
    sites = Sites(aligned.outline)
    assert all(torch.equal(made.weight(n), aligned.weight(n)) == (sites.part(n) == "mlp" and sites.layer(n) == 1) for n in made.files)
    assert putting_back(found.last, pd.DataFrame([back, {**random, "high": 0.9}])) == []
