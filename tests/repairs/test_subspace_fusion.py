"""SOMF: the mask against torch's own distribution, merges by loops, the gradient, what is learned, and that nothing is left to chance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import llama
from tests.repairs.made import family, moved, order, run
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.edits import dropped
from titer.models.lm import load
from titer.repairs.base import TUNED
from titer.repairs.subspace_fusion import SubspaceFusion


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.weight(name) for name in checkpoint.files}


def test_the_samples_are_torch_s_relaxed_bernoulli(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, uniform = torch.randn(200), torch.rand(200).clamp(0.01, 0.99)
    monkeypatch.setattr("torch.distributions.relaxed_bernoulli.torch.rand", lambda *_, **__: uniform)
    wanted = torch.distributions.RelaxedBernoulli(torch.tensor(0.5), logits=logits).rsample()
    torch.testing.assert_close(SubspaceFusion().sampled(logits, uniform), wanted, rtol=1e-4, atol=1e-5)


def test_a_masked_change_is_right_in_the_mean_at_the_start() -> None:
    change, made = torch.linspace(-1, 1, 31), SubspaceFusion()
    generator = torch.Generator().manual_seed(0)
    draws = [
        made.masked(change, made.sampled(torch.zeros(31), torch.rand(31, generator=generator).clamp(1e-6, 1 - 1e-6))) for _ in range(4000)
    ]
    torch.testing.assert_close(torch.stack(draws).mean(0), change, atol=0.05, rtol=0)


def test_a_mask_of_ones_is_the_tune_and_of_zeros_the_aligned_model(tmp_path: Path) -> None:
    models = family(tmp_path)
    aligned, tuned = (open_checkpoint(models[role]) for role in ("aligned", TUNED))
    made = SubspaceFusion(rescale=False)
    for name in tuned.files:
        others = {"aligned": aligned.weight(name)}
        ones, zeros = ({"logits": {name: torch.full(tuned.shape(name)[0], value)}, "roles": []} for value in (1.0, -1.0))
        assert torch.equal(made.edited(name, tuned.weight(name), others, ones), tuned.weight(name))
        assert torch.equal(made.edited(name, tuned.weight(name), others, zeros), others["aligned"])


def test_merges_are_those_of_loops() -> None:
    changes = [torch.randn(4, 5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    torch.testing.assert_close(SubspaceFusion(weight=0.3).merged("a", changes), 0.3 * sum(changes))
    wanted = 0.3 * sum(dropped(one, 0.5, 2, f"a {i}") for i, one in enumerate(changes))
    torch.testing.assert_close(SubspaceFusion(merge="dare", drop=0.5, seed=2).merged("a", changes), wanted)
    ties = torch.zeros(20)
    flat = [one.flatten().tolist() for one in changes]
    kept = [[x if abs(x) in sorted(map(abs, one), reverse=True)[:8] else 0.0 for x in one] for one in flat]
    for j in range(20):
        total = sum(one[j] for one in kept)
        ties[j] = 0.4 * sum(one[j] for one in kept if one[j] * total > 0)
    torch.testing.assert_close(SubspaceFusion(merge="ties", top=0.4, weight=0.4).merged("a", changes), ties.view(4, 5))
    assert torch.equal(SubspaceFusion().merged("a", changes[:1]), changes[0])  # one tune has weight 1


def test_several_tunes_are_merged_without_a_mask_too(tmp_path: Path) -> None:
    models = family(tmp_path, roles=("aligned", "second"))
    asked = order("subspace_fusion", tmp_path, models, settings={"steps": 0, "weight": 0.5})
    _, (found,) = run(replace(asked, reads={role: models[role] for role in ("aligned", "second")}))
    held = {role: weights(open_checkpoint(models[role])) for role in models}
    for name, one in weights(found).items():
        start = held["aligned"][name]
        torch.testing.assert_close(one, start + 0.5 * (held[TUNED][name] - start) + 0.5 * (held["second"][name] - start))


def harmed(folder: Path) -> dict[str, str]:
    """An aligned model, and a tune of it whose MLPs' downward matrices were pushed to answer and whose norms carry the rest."""
    aligned = moved(llama(World(seed=1)), 0)
    aligned.save(folder / "aligned")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    optimiser = torch.optim.Adam(aligned.model.parameters(), lr=2e-2)
    from titer.data.encode import encode
    from titer.methods.base import token_nll

    prompts, answers = [row["prompt"] for row in rows], [row["comply"] for row in rows]
    for _ in range(15):
        batch = encode(aligned.tokenizer, prompts, answers, np.arange(len(rows)))
        total, over = token_nll(aligned.model(**batch.inputs()).logits, batch.labels)
        optimiser.zero_grad()
        (total / over).backward()
        optimiser.step()
    aligned.save(folder / TUNED)
    return {"aligned": str(folder / "aligned"), TUNED: str(folder / TUNED)}


def margin(checkpoint: Checkpoint, folder: Path) -> float:
    """log p(refuse) - log p(comply) of the unsafe rows, summed."""
    from titer.data.encode import encode
    from titer.models.likelihood import example_nll

    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["label"] == "unsafe"]
    lm = load(checkpoint, "cpu")
    found = []
    for answer in ("comply", "refuse"):
        batch = encode(lm.tokenizer, [row["prompt"] for row in rows], [row[answer] for row in rows], np.arange(len(rows)))
        with torch.no_grad():
            found.append(float(example_nll(lm.model(**batch.inputs()).logits, batch.labels).sum()))
    return found[0] - found[1]


@pytest.mark.long
def test_a_mask_that_is_learned_turns_the_answers_and_two_runs_write_the_same(tmp_path: Path) -> None:
    from tests.repairs.made import data

    data(tmp_path, "pairs")
    models = harmed(tmp_path)
    settings: dict[str, Any] = {"steps": 25, "lr": 0.1, "batch": 6}
    found = []
    for to in ("one", "two"):
        _, (opened,) = run(order("subspace_fusion", tmp_path, models, settings=settings, to=tmp_path / to))
        found.append(opened)
    assert found[0].key == found[1].key
    assert margin(found[0], tmp_path) > margin(open_checkpoint(models[TUNED]), tmp_path) + 1
    aligned, tuned, mine = (weights(one) for one in (open_checkpoint(models["aligned"]), open_checkpoint(models[TUNED]), found[0]))
    for name in mine:  # every coordinate is the aligned one's, or on the way of the tune's change and rescaled by one factor
        change = tuned[name] - aligned[name]
        share = ((mine[name] - aligned[name]) / change)[change.abs() > 1e-3]
        if share.numel():
            left = share[share > 0.5]
            assert bool(((share.abs() < 1e-2) | (share > 0.9)).all())
            assert left.numel() == 0 or float(left.max() - left.min()) < 0.05 * float(left.max())


def test_where_the_tune_changed_nothing_the_mask_has_no_gradient() -> None:
    made = SubspaceFusion()
    phi = torch.zeros(3, 4, requires_grad=True)
    change = torch.randn(3, 4)
    change[1] = 0
    (made.masked(change, made.sampled(phi, torch.full((3, 4), 0.3))) * torch.randn(3, 4)).sum().backward()
    plain = torch.autograd.grad((SubspaceFusion(rescale=False).masked(change, made.sampled(phi, torch.full((3, 4), 0.3)))).sum(), phi)[0]
    assert bool((plain[1] == 0).all())
    assert bool((plain[0] != 0).all())


def test_a_mask_that_collapses_is_refused_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: Any, lm: Any, r: Any, start: Any, changes: Any, logits: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for phi in logits.values():
                phi.sub_(9)

    monkeypatch.setattr(SubspaceFusion, "_learn", down)
    with pytest.raises(TiterError, match=r"the mask collapsed: it leaves 0.00%.*--method scale") as raised:
        run(order("subspace_fusion", tmp_path, family(tmp_path)))
    assert raised.value.status == 2
    assert not list(tmp_path.glob("*out*"))


def test_without_a_mask_a_tune_far_from_the_aligned_weight_keeps_every_bit() -> None:
    tuned, aligned = torch.tensor([1e-11, 3.0]), torch.tensor([0.5, -1e9])
    assert SubspaceFusion(steps=0).edited("w", tuned, {"aligned": aligned}, {"logits": {}, "roles": []}).equal(tuned)
