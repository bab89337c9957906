"""The cluster probe on constructed activations, and its scores against a naive form."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from titer.core.errors import TiterError
from titer.data.example import Example
from titer.data.world import World, WorldSource
from titer.models.lm import LM
from titer.probes import clusters as probe
from titer.probes.base import distance_score


def two_clouds(gap: float, n: int = 400, width: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    safe, unsafe = (torch.randn(n, width, generator=generator) for _ in range(2))
    unsafe[:, 0] += gap
    return safe, unsafe


def test_the_score_of_the_midpoint_is_zero() -> None:
    safe, unsafe = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 4.0])
    assert float(distance_score(torch.tensor([[1.0, 2.0]]), safe, unsafe)[0]) == pytest.approx(0)
    assert float(distance_score(safe[None], safe, unsafe)[0]) > 0


def test_held_out_scores_use_the_other_half_alone() -> None:
    safe, unsafe = two_clouds(1.0, n=11)
    found = probe.held_out_scores(safe, unsafe)
    for i in range(11):
        others = [j for j in range(11) if j % 2 != i % 2]
        mu_s, mu_u = safe[others].mean(0), unsafe[others].mean(0)
        assert float(found[0][i]) == pytest.approx(float((safe[i] - mu_u).norm() - (safe[i] - mu_s).norm()), abs=1e-5)
        assert float(found[1][i]) == pytest.approx(float((unsafe[i] - mu_u).norm() - (unsafe[i] - mu_s).norm()), abs=1e-5)


def test_identical_clouds_show_nothing_on_held_out_centroids_though_tau_flatters() -> None:
    """Few inputs in many dimensions: centroids of the same inputs separate noise, held-out ones do not."""
    safe, unsafe = two_clouds(0.0, n=20, width=200)
    table = frame(safe, unsafe)
    row = probe.summary(table).iloc[0]
    assert abs(row.d_prime) < 1
    assert row.tau_safe > 0 > row.tau_unsafe


def test_separated_clouds_are_found() -> None:
    table = frame(*two_clouds(4.0))
    row = probe.summary(table).iloc[0]
    assert row.auroc > 0.99
    safe, unsafe = table[~table.harmful].score, table[table.harmful].score
    assert row.d_prime == pytest.approx((safe.mean() - unsafe.mean()) / np.sqrt((safe.var() + unsafe.var()) / 2))
    assert row.d_prime > 3.5
    assert row.tau_gap == pytest.approx(row.tau_safe - row.tau_unsafe)


def frame(safe: torch.Tensor, unsafe: torch.Tensor) -> pd.DataFrame:
    score, tau = probe.held_out_scores(safe, unsafe), probe.taus(safe, unsafe)
    parts = [
        pd.DataFrame({"layer": 1, "harmful": bool(k), "input": range(len(s)), "score": s.numpy(), "tau": t.numpy()})
        for k, (s, t) in enumerate(zip(score, tau, strict=True))
    ]
    return pd.concat(parts)


def test_the_probe_reads_every_layer_of_any_model(lm: LM, world: World) -> None:
    safe, unsafe = (WorldSource(world=world, kind=kind).examples(np.arange(6)) for kind in ("safe", "unsafe"))  # type: ignore[arg-type]
    table = probe.clusters(lm, safe, unsafe)
    assert sorted(table.layer.unique()) == [1, 2]
    assert len(table) == 2 * 12
    assert np.isfinite(table[["score", "tau"]].to_numpy()).all()


def test_tau_falls_back_to_the_prompt_end_without_answers(lm: LM, world: World) -> None:
    groups = [
        [Example(e.prompt, e.harmful, e.kind, e.source) for e in WorldSource(world=world, kind=kind).examples(np.arange(6))]  # type: ignore[arg-type]
        for kind in ("safe", "unsafe")
    ]
    table = probe.clusters(lm, *groups)
    ends = probe.at_prompt_end(lm, [e.prompt for e in groups[0]], ["mlp_act[0]"])["mlp_act[0]"]
    others = probe.at_prompt_end(lm, [e.prompt for e in groups[1]], ["mlp_act[0]"])["mlp_act[0]"]
    expected = probe.taus(ends, others)[0].numpy()
    mine = table[(table.layer == 1) & ~table.harmful].tau.to_numpy()
    assert mine == pytest.approx(expected, abs=1e-5)


def test_too_few_prompts_are_refused(lm: LM, world: World) -> None:
    few = WorldSource(world=world, kind="safe").examples(np.arange(3))
    with pytest.raises(TiterError, match="3 safe prompts"):
        probe.clusters(lm, few, few)


@pytest.mark.long
def test_shuffled_labels_are_fitted_anew_and_the_best_layer_is_picked_as_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many layers of noise the best one lies above chance, with true labels and with dealt ones alike."""
    layers, n = 30, 20
    clouds = [torch.cat(two_clouds(0.0, n=n, width=16, seed=seed)) for seed in range(layers)]
    monkeypatch.setattr(probe, "at_prompt_end", lambda lm, prompts, names: dict(zip(names, clouds, strict=True)))
    lm = type("Stub", (), {"sites": type("S", (), {"having": lambda *_: list(range(layers))})()})()
    inputs = [Example(f"p{i}", i >= n, "test", "test") for i in range(2 * n)]
    dealt = probe.shuffled(lm, inputs[:n], inputs[n:])
    best = [probe.best_of(table).auroc for _, table in dealt.groupby("round")]
    assert len(best) == probe.ROUNDS
    assert 0.6 < np.mean(best) < 0.85
    own = probe.best_of(probe.summary(pd.concat([frame(c[:n], c[n:]).assign(layer=i) for i, c in enumerate(clouds)])))
    assert min(best) - 0.05 < own.auroc < max(best) + 0.05
    assert dealt.auroc.mean() == pytest.approx(0.5, abs=0.05)
    first = dealt[dealt["round"] == 0].iloc[0]
    places = np.random.default_rng(0).permutation(2 * n)
    score = [s.numpy() for s in probe.held_out_scores(clouds[0][places[:n]], clouds[0][places[n:]])]
    assert first.auroc == pytest.approx(probe.auroc(*score))
    pd.testing.assert_frame_equal(dealt, probe.shuffled(lm, inputs[:n], inputs[n:]))


def test_shuffled_labels_of_clouds_that_lie_apart_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = torch.cat(two_clouds(6.0, n=40))
    monkeypatch.setattr(probe, "at_prompt_end", lambda lm, prompts, names: {names[0]: cloud})
    lm = type("Stub", (), {"sites": type("S", (), {"having": lambda *_: [0]})()})()
    inputs = [Example(f"p{i}", i >= 40, "test", "test") for i in range(80)]
    assert probe.shuffled(lm, inputs[:40], inputs[40:]).auroc.mean() == pytest.approx(0.5, abs=0.15)
