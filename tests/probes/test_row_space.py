"""Row-space scores against a naive loop, and a change that reads nothing of the safe inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.probes.made import drawn, inputs_of, lively, planted, requests
from titer.data.world import World
from titer.models.activations import at_prompt_end
from titer.models.lm import load
from titer.probes.base import thin_svd
from titer.probes.row_space import DIRECTIONS, row_space, scores


@pytest.mark.parametrize("width", [6, 20])
def test_scores_equal_a_loop_over_inputs_and_directions(width: int) -> None:
    change, a = drawn(30, width, seed=1), drawn(7, width, seed=2)
    _, s, vh = torch.linalg.svd(change, full_matrices=False)
    _, sizes, right = thin_svd(change)
    found = scores(a, sizes, right)
    assert found.shape == (7, min(width, DIRECTIONS))
    for i in range(7):
        for j in range(min(width, DIRECTIONS)):
            naive = float(s[j]) * abs(sum(float(a[i, k]) * float(vh[j, k]) for k in range(width))) / float(a[i].norm())
            assert float(found[i, j]) == pytest.approx(naive, abs=1e-4)


def test_scores_do_not_depend_on_the_size_of_the_activation_and_hold_the_whole_gain() -> None:
    change, a = drawn(30, 6, seed=1), drawn(7, 6, seed=2)
    _, sizes, right = thin_svd(change)
    torch.testing.assert_close(scores(5 * a, sizes, right), scores(a, sizes, right))
    gain = (a @ change.T).norm(dim=1) / a.norm(dim=1)
    torch.testing.assert_close(scores(a, sizes, right).norm(dim=1), gain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_a_change_orthogonal_to_the_safe_inputs_reads_the_others_alone(family: str, world: World, tmp_path: Path) -> None:
    lm = lively(world, family)
    safe, unsafe = requests(world, "safe"), requests(world, "unsafe")
    seen = {kind: torch.stack([inputs_of(lm, e, "mlp_up[0]")[-1] for e in group]) for kind, group in (("safe", safe), ("unsafe", unsafe))}
    v = torch.linalg.svd(seen["safe"])[2][6]  # a row beyond the span of the six safe inputs
    rows = lm.sites.linear("mlp_up[0]").out_features
    output = drawn(rows, seed=4)
    base, tuned = planted(lm, tmp_path, {"mlp_up[0]": 0.7 * torch.outer(output / output.norm(), v)})
    table = row_space(base, tuned, load(tuned, "cpu"), {"safe": safe, "unsafe": unsafe})
    assert len(table) == 2 * 2 * DIRECTIONS
    first = table[(table.layer == 1) & (table.direction == 1)].set_index("kind")
    expected = (0.7 * (seen["unsafe"] @ v).abs() / seen["unsafe"].norm(dim=1)).mean()
    assert first.sigma.to_numpy() == pytest.approx(0.7, abs=1e-4)
    assert first.score["safe"] == pytest.approx(0, abs=1e-4)
    assert first.score["unsafe"] == pytest.approx(float(expected), rel=1e-3)
    assert first.score["unsafe"] > 0.01
    assert table[table.layer == 2][["score", "sigma"]].abs().to_numpy().max() < 1e-6  # no change there


def test_the_scores_are_those_of_the_tuned_models_activations(world: World, tmp_path: Path) -> None:
    """A change of the first layer moves what the second layer's change reads."""
    lm = lively(world)
    examples = requests(world, "safe")
    before = at_prompt_end(lm, [e.prompt for e in examples], ["mlp_in[1]"])["mlp_in[1]"]
    change = 0.5 * drawn(64, 16, seed=2)
    base, tuned = planted(lm, tmp_path, {"mlp_up[0]": drawn(64, 16, seed=1), "mlp_up[1]": change})
    after = torch.stack([inputs_of(lm, e, "mlp_up[1]")[-1] for e in examples])
    table = row_space(base, tuned, load(tuned, "cpu"), {"any": examples})
    found = table[table.layer == 2].score.to_numpy()
    _, s, vh = torch.linalg.svd(change)
    mine, old = (((a @ vh.T).abs() * s / a.norm(dim=1, keepdim=True)).mean(0)[:DIRECTIONS].numpy() for a in (after, before))
    assert found == pytest.approx(mine, rel=1e-2, abs=1e-3)
    assert abs(found - old).max() > 0.05
