"""What was written along the refusal direction is the aligned model's again, all else is the tune's; the audit's advice of it runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.repairs.made import MAKERS, family, order, run
from titer.audit.advice import putting_back
from titer.audit.restoring import BACK, DIRECTION, RANDOM
from titer.audit.roles import audited
from titer.core.config import parse_settings
from titer.core.errors import TiterError
from titer.models.checkpoint import open_checkpoint
from titer.models.sites import Sites
from titer.repairs.base import TUNED, Reading


@pytest.mark.parametrize("maker", ["llama", "gpt2"])
def test_along_the_direction_it_is_the_aligned_model_and_across_it_the_tune(maker: str, tmp_path: Path) -> None:
    models = family(tmp_path, MAKERS[maker])
    plan, (found,) = run(order("restore_direction", tmp_path, models, settings={"layers": [1]}))
    (repair,) = plan.repairs.values()
    r = repair.prepare(Reading(plan.models, plan.data))["direction"]
    tuned, aligned = open_checkpoint(models[TUNED]), open_checkpoint(models["aligned"])
    sites = Sites(tuned.outline)
    written = 0
    for name in found.files:
        now, after, before = (one.weight(name) for one in (found, tuned, aligned))
        if name not in sites.writers or sites.layer(name) != 2:
            assert torch.equal(now, after)
            continue
        now, after, before = (one.T if sites.writers[name] else one for one in (now, after, before))
        torch.testing.assert_close(r @ now, r @ before, rtol=1e-4, atol=1e-5)
        across = torch.eye(len(r)) - torch.outer(r, r)
        torch.testing.assert_close(across @ now, across @ after, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(now, after)
        written += 1
    assert written == 2


def test_the_direction_is_the_aligned_models(tmp_path: Path) -> None:
    models = family(tmp_path)
    directions = []
    for name, place in (("restore_direction", models), ("abliterate", {TUNED: models["aligned"]})):
        (tmp_path / name).mkdir()
        plan, _ = run(order(name, tmp_path / name, place, settings={"layer": 1}))
        (repair,) = plan.repairs.values()
        directions.append(repair.prepare(Reading(plan.models, plan.data))["direction"])
    assert torch.equal(*directions)


def test_the_audits_advice_names_the_direction_before_the_smallest_whole_part_and_runs(tmp_path: Path) -> None:
    models = family(tmp_path)
    found = audited([open_checkpoint(models[role]) for role in ("aligned", TUNED)])
    assert found.last
    rows = [
        {"part": "what is written along the refusal direction of layer 2", "kind": DIRECTION, "first": 2, "last": 2, "parameters": 3},
        {"part": "the MLPs", "kind": "mlp", "first": 0, "last": 0, "parameters": 9},
    ]
    ways = [{"way": BACK, "rate": 1.0, "low": 0.7, "high": 1.0}, {"way": RANDOM, "rate": 0.0, "low": 0.0, "high": 0.3}]
    first, second = putting_back(
        found.last, pd.DataFrame([{"change": "c", "count": 9, "n": 9, **row, **way} for row in rows for way in ways])
    )
    assert "--method restore " in second.command
    words = shlex.split(first.command)
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert (options["--method"], options["--data"], options["--set"]) == ("restore_direction", "PROMPTS.csv", "layer=1")
    _, (made,) = run(order(options["--method"], tmp_path, models, settings=parse_settings([options["--set"]])))
    assert any(not torch.equal(made.weight(n), open_checkpoint(models[TUNED]).weight(n)) for n in made.files)


def test_layers_that_the_model_lacks_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="there is no layer 2: tuned has 2"):
        run(order("restore_direction", tmp_path, family(tmp_path), settings={"layer": 2}))
