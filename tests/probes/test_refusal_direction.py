"""Refusal directions against a naive difference of means, on planted clouds, and between models of a known angle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.families import SUPPORTED
from tests.models.test_activations import alone
from tests.probes.made import drawn, lively, requests
from titer.core.errors import TiterError
from titer.data.encode import prompt_ids
from titer.data.example import Example
from titer.data.world import World
from titer.models.lm import LM
from titer.probes import refusal_direction as probe
from titer.probes.refusal_direction import measured, refusal_direction, rotation, summary

D = 64


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_the_direction_is_the_naive_difference_of_means(world: World, name: str) -> None:
    lm = lively(world, name)
    safe, unsafe = requests(world, "safe", 5), requests(world, "unsafe", 7)
    found, table = measured(lm, safe, unsafe), refusal_direction(lm, safe, unsafe)
    assert found.whole.dtype == torch.float32
    for layer in range(lm.sites.layers):
        ends = [
            torch.stack([alone(lm, prompt_ids(lm.tokenizer, [e.prompt])[0], f"resid[{layer}]")[-1] for e in group])
            for group in (safe, unsafe)
        ]
        naive = ends[1].mean(0) - ends[0].mean(0)
        torch.testing.assert_close(found.whole[layer], naive, rtol=1e-3, atol=1e-5)
        row = table.iloc[layer]
        assert row.layer == layer + 1
        assert row.norm == pytest.approx(float(naive.norm()), rel=1e-3)
        assert row.relative == pytest.approx(float(naive.norm() / torch.cat(ends).norm(dim=1).mean()), rel=1e-3)
        assert (row.n_safe, row.n_unsafe) == (5, 7)


def clouds(monkeypatch: pytest.MonkeyPatch, layers: list[torch.Tensor]) -> tuple[LM, list[Example]]:
    """The probe made to see these activations (n, D), one a layer."""
    monkeypatch.setattr(probe, "at_prompt_end", lambda lm, prompts, names: dict(zip(names, layers, strict=True)))
    lm = type("Stub", (), {"sites": type("S", (), {"everywhere": lambda *_: [f"resid[{i}]" for i in range(len(layers))]})()})()
    return lm, [Example(f"prompt {k}", k % 2 == 1, "test", "test") for k in range(len(layers[0]))]


def planted(size: float, n: int, seed: int, angle: float = 0.0) -> torch.Tensor:
    """n safe, then n unsafe activations: unit noise about a common mean, the unsafe moved by `size` in a direction of this angle."""
    towards = torch.zeros(D)
    towards[0], towards[1] = math.cos(angle), math.sin(angle)
    return drawn(2 * n, D, seed=seed) + 40.0 + torch.cat([torch.zeros(n, D), size * towards.expand(n, D)])


def test_a_planted_direction_is_found_and_its_reliability_is_what_theory_says(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 200
    lm, examples = clouds(monkeypatch, [planted(3.0, n, 0), planted(0.6, n, 1), planted(0.0, n, 2)])
    found = measured(lm, examples[:n], examples[n:])
    table = summary(found)
    for layer, size in enumerate((3.0, 0.6)):
        half, full = (size**2 / (size**2 + D * 2 / m) for m in (n / 2, n))  # |d|^2 / (|d|^2 + noise in the mean of m inputs)
        row = table.iloc[layer]
        assert row.split_half == pytest.approx(half, abs=0.12)
        assert row.reliability == pytest.approx(full, abs=0.1)
        assert row.low <= row.split_half <= row.high
        assert float(torch.cosine_similarity(found.whole[layer], torch.eye(D)[0], dim=0)) == pytest.approx(math.sqrt(full), abs=0.05)
        assert abs(row.split_half_shuffled) < 0.25
    chance = math.sqrt(D * 2 / n)
    assert table.norm_shuffled[2] == pytest.approx(chance, rel=0.1)
    assert table.norm[2] == pytest.approx(chance, rel=0.3)  # no direction: the norm is chance's
    assert abs(table.split_half[2]) < 0.25
    assert table.norm[0] > 2 * table.norm_shuffled_high[0]
    assert (table.norm_shuffled < table.norm_shuffled_high).all()


def test_halves_are_disjoint_and_hold_half_of_each_class() -> None:
    weights = probe._weights(6, 9, 0, 5).numpy()
    whole, parts = weights[0], weights[1:].reshape(5, 5, 15)
    np.testing.assert_allclose(whole, [-1 / 6] * 6 + [1 / 9] * 9)
    first, second, shuffled, left, right = parts
    assert ((first != 0) ^ (second != 0)).all()
    assert ((left != 0) ^ (right != 0)).all()
    assert ((first > 0).sum(1) == 4).all()
    assert ((first < 0).sum(1) == 3).all()
    assert (np.sign(first + second) == np.sign(whole)).all()
    assert (np.sign(left + right) == np.sign(shuffled)).all()
    assert not (np.sign(shuffled) == np.sign(whole)).all(axis=1).any()
    assert ((shuffled > 0).sum(1) == 9).all()
    np.testing.assert_allclose(parts.sum(2), 0, atol=1e-12)  # a mean common to all inputs never shows
    assert len({row.tobytes() for row in first}) == 5


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 150.0])
def test_a_known_rotation_is_found(monkeypatch: pytest.MonkeyPatch, degrees: float) -> None:
    n, models = 60, []
    for angle in (0.0, math.radians(degrees)):
        lm, examples = clouds(monkeypatch, [planted(500.0, n, 3, angle)] * 2)
        models.append(measured(lm, examples[:n], examples[n:]))
    found = rotation(*models)
    np.testing.assert_allclose(found.degrees, degrees, atol=0.5)
    np.testing.assert_allclose(found.cosine, math.cos(math.radians(degrees)), atol=0.01)
    np.testing.assert_allclose(found.cosine_halves, math.cos(math.radians(degrees)), atol=0.01)
    np.testing.assert_allclose(found.norm_ratio, 1, atol=0.01)
    assert (found.ceiling > 0.99).all()


def test_noise_alone_stays_at_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of one true direction, seen through noise of their own: halves agree as well as the ceiling says."""
    n, models = 150, []
    for seed in (4, 5):
        lm, examples = clouds(monkeypatch, [planted(0.8, n, seed)])
        models.append(measured(lm, examples[:n], examples[n:]))
    row = rotation(*models).iloc[0]
    assert row.ceiling < 0.7
    assert row.cosine_halves == pytest.approx(row.ceiling, abs=0.12)
    assert row.degrees_ceiling == pytest.approx(math.degrees(math.acos(row.ceiling)))
    assert row.degrees_halves == pytest.approx(math.degrees(math.acos(row.cosine_halves)), rel=1e-6)


def test_a_model_has_not_rotated_from_itself(lm: LM, world: World) -> None:
    safe, unsafe = requests(world, "safe", 6), requests(world, "unsafe", 6)
    one, again = (measured(lm, safe, unsafe, seed=3) for _ in range(2))
    found = rotation(one, again)
    assert (found.degrees == 0).all()
    assert (found.cosine == 1).all()
    assert (found.norm_ratio == 1).all()
    pd.testing.assert_frame_equal(summary(one), summary(again))
    flipped = rotation(one, replace(again, whole=-again.whole))
    np.testing.assert_allclose(flipped.degrees, 180)


def test_what_cannot_be_compared_is_refused(lm: LM, world: World) -> None:
    safe, unsafe = requests(world, "safe", 6), requests(world, "unsafe", 6)
    one = measured(lm, safe, unsafe)
    for other in (measured(lm, safe[:5], unsafe), measured(lm, safe, unsafe, seed=1), measured(lm, safe[::-1], unsafe)):
        with pytest.raises(TiterError, match="different prompts or splits"):
            rotation(one, other)
    with pytest.raises(TiterError, match="2 layers of width 16 and 1 layers of width 16"):
        rotation(one, replace(one, whole=one.whole[:1]))
    for few in ((safe[:3], unsafe), (safe, unsafe[:3])):
        with pytest.raises(TiterError, match=r"3 .*safe prompts"):
            measured(lm, *few)


def tuned(seed: int, degrees: float, layers: int = 6, n: int = 30) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Activations of two models, layer by layer: noise that they share in part, a shift of all, the last layer's direction turned."""
    before, after = [], []
    for layer in range(layers):
        common = drawn(2 * n, D, seed=100 * seed + layer)
        own = 0.5 * drawn(2 * n, D, seed=100 * seed + layer + 50) + 3.0
        angle = math.radians(degrees) if layer == layers - 1 else 0.0
        moves = [torch.tensor([math.cos(a), math.sin(a), *[0.0] * (D - 2)]) * 6.0 for a in (0.0, angle)]
        unsafe = torch.cat([torch.zeros(n), torch.ones(n)])[:, None]
        before.append(common + unsafe * moves[0])
        after.append(0.9 * common + own + 1.1 * unsafe * moves[1])
    return before, after


def judged(seed: int, degrees: float, n: int = 30) -> pd.DataFrame:
    before, after = tuned(seed, degrees, n=n)
    table = rotation(*(probe.of_activations(one, n, "same") for one in (before, after)))
    return probe.limits(table, probe.unturned(before, after, n, rounds=80), [True] * len(table))


@pytest.mark.long
def test_the_largest_of_all_layers_exceeds_its_ceiling_by_chance_and_seldom_its_limit() -> None:
    tables = [judged(seed, 0.0) for seed in range(20)]
    above = [bool((t.degrees_halves > t.degrees_ceiling).any()) for t in tables]
    turned = [bool((t.degrees_halves > t.degrees_limit).any()) for t in tables]
    assert sum(above) >= 15  # what the largest excess alone would call a turn
    assert sum(turned) <= 3
    for t in tables:
        assert ((t.degrees_halves > t.degrees_limit) == (t.p <= 0.05)).mean() > 0.9


def test_a_turn_beyond_noise_is_found_where_it_is() -> None:
    for seed in range(3):
        t = judged(seed, 60.0)
        assert t.degrees_halves.iloc[-1] > t.degrees_limit.iloc[-1]
        assert t.p.iloc[-1] < 0.05


def test_the_null_is_the_same_whenever_asked_and_in_whatever_space() -> None:
    before, after = tuned(0, 0.0, layers=2)
    null = probe.unturned(before, after, 30, rounds=5)
    np.testing.assert_array_equal(null, probe.unturned(before, after, 30, rounds=5))
    wide = [[torch.cat([layer, torch.zeros(60, 200)], dim=1) for layer in side] for side in (before, after)]  # more width than prompts
    np.testing.assert_allclose(probe.unturned(*wide, 30, rounds=5), null, atol=0.05)


def test_layers_that_are_mostly_noise_have_no_limit_and_no_part_in_the_others() -> None:
    before, after = tuned(0, 0.0, layers=3)
    table = rotation(*(probe.of_activations(one, 30, "same") for one in (before, after)))
    null = probe.unturned(before, after, 30, rounds=40)
    some = probe.limits(table, null, [True, False, False])
    assert some.degrees_limit.notna().tolist() == [True, False, False]
    assert some.degrees_limit[0] < probe.limits(table, null, [True] * 3).degrees_limit[0]  # one layer has less chance to exceed
    assert probe.limits(table, null, [False] * 3).degrees_limit.isna().all()
