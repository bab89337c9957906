"""The shape of clouds whose singular values are known, and two clusters found without labels."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from tests.probes.made import drawn, lively, requests
from titer.data.example import Example
from titer.data.world import World
from titer.models.activations import at_prompt_end, over_answer
from titer.probes.spread import shape_of, spread, two_means


def axes(sizes: list[float]) -> torch.Tensor:
    """Points at plus and minus each size on its own axis, shifted: singular values sqrt(2) size."""
    return torch.cat([torch.diag(torch.tensor(sizes)), -torch.diag(torch.tensor(sizes))]) + 3


def test_a_line_of_points_has_one_direction() -> None:
    line = torch.outer(drawn(30, seed=1), drawn(8, seed=2)) + drawn(8, seed=3)
    assert shape_of(line) == pytest.approx({"top_share": 1, "top_energy": 1, "stable_rank": 1, "components_90": 1}, abs=1e-4)


def test_an_isotropic_cloud_spreads_evenly() -> None:
    found = shape_of(axes([2.0] * 10))
    assert found == pytest.approx({"top_share": 0.1, "top_energy": 0.1, "stable_rank": 10, "components_90": 9}, rel=1e-4)


def test_shares_of_known_singular_values_centred() -> None:
    found = shape_of(axes([4.0, 2.0, 1.0, 1.0]))
    assert found == pytest.approx({"top_share": 4 / 8, "top_energy": 16 / 22, "stable_rank": 22 / 16, "components_90": 2}, rel=1e-4)
    far = shape_of(axes([4.0, 2.0, 1.0, 1.0]) + 50)  # where the cloud lies does not matter
    assert far == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_separated_clouds_are_found_whichever_comes_first_and_mixed_ones_are_not(seed: int) -> None:
    safe, unsafe = drawn(40, 5, seed=1), drawn(25, 5, seed=2) + 20
    assert two_means(safe, unsafe, seed) == 1.0
    assert two_means(unsafe, safe, seed) == 1.0
    half = torch.cat([drawn(20, 5, seed=3), drawn(20, 5, seed=4) + 20])
    assert two_means(half, half.clone(), seed) == 0.5  # two clusters, but not the classes
    assert two_means(safe, torch.cat([unsafe[:20], safe[:5]]), seed) == 60 / 65


def test_the_probe_against_activations_over_the_answer(world: World) -> None:
    lm = lively(world)
    groups = [requests(world, kind, 8) for kind in ("safe", "unsafe")]
    table = spread(lm, *groups)
    assert list(zip(table.layer, table.harmful, strict=True)) == [(1, False), (1, True), (2, False), (2, True)]
    for row in table.itertuples():
        mine = groups[int(row.harmful)]
        name = f"mlp_act[{row.layer - 1}]"
        cloud = over_answer(lm, [e.prompt for e in mine], [str(e.comply) for e in mine], [name], 10)[name]
        s = torch.linalg.svdvals(cloud - cloud.mean(0))
        assert row.top_share == pytest.approx(float(s[0] / s.sum()), rel=1e-3)
        assert row.stable_rank == pytest.approx(float((s**2).sum() / s[0] ** 2), rel=1e-3)
        assert 0.5 <= row.kmeans <= 1


def bare(examples: list[Example]) -> list[Example]:
    return [Example(e.prompt, e.harmful, e.kind, e.source) for e in examples]


def test_without_answers_the_end_of_the_prompt_is_read(world: World) -> None:
    lm = lively(world)
    safe, unsafe = requests(world, "safe", 8), requests(world, "unsafe", 8)
    table = spread(lm, bare(safe), bare(unsafe))
    cloud = at_prompt_end(lm, [e.prompt for e in unsafe], ["mlp_act[1]"])["mlp_act[1]"]
    row = table[(table.layer == 2) & table.harmful].iloc[0]
    assert row.top_share == pytest.approx(shape_of(cloud)["top_share"], rel=1e-4)
    assert row.top_share != pytest.approx(spread(lm, safe, unsafe).iloc[3].top_share, rel=1e-3)


def test_one_class_without_answers_moves_both_to_the_end_of_the_prompt(world: World) -> None:
    lm = lively(world)
    safe, unsafe = requests(world, "safe", 8), requests(world, "unsafe", 8)
    pd.testing.assert_frame_equal(spread(lm, safe, bare(unsafe)), spread(lm, bare(safe), bare(unsafe)))
