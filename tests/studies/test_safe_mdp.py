"""Safe MDP on grids: the rule over whole paths, shortest ways, what predictors can say, the multiplier, the whole study."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.studies.conftest import Listener
from titer.core.run import Store
from titer.studies.engine.price import price
from titer.studies.engine.run import run_study
from titer.studies.request import StudyRequest
from titer.studies.safe_mdp.grid import Grid, Paths, environment
from titer.studies.safe_mdp.planning import Markovian, Recurrent, balanced, dual, explored, plan, rolled, taught
from titer.studies.safe_mdp.study import QUICK, SafeMDP, planned

pytest.importorskip("stable_baselines3")
GRID = Grid(seed=1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def walked(grid: Grid, actions: list[int]) -> Paths:
    """One path from the start, by hand."""
    cells, here = [], grid.start
    for action in actions:
        cells.append(here)
        here = int(grid.next[here, action])
    felt = torch.from_numpy(grid.fragile).long()[cells]
    return Paths(torch.tensor([cells]), felt[None], torch.tensor([actions]), torch.tensor([[cell != grid.goal for cell in cells]]))


def test_only_fragile_cells_one_after_the_other_make_a_path_unsafe() -> None:
    for felt in itertools.product([1, 0], repeat=6):
        none = torch.zeros(1, 6, dtype=torch.int64)
        paths = Paths(none, torch.tensor([felt]), none, torch.ones(1, 6, dtype=torch.bool))
        assert bool(GRID.unsafe(paths)) == ("###" in "".join(".#"[one] for one in felt))


@pytest.mark.parametrize("seed", range(6))
def test_the_straight_way_is_shortest_and_unsafe_and_a_safe_one_is_longer(seed: int) -> None:
    grid = Grid(seed=seed)
    straight = walked(grid, [1] * (grid.size - 1))
    assert bool(grid.unsafe(straight))
    assert grid.shortest(False) == grid.size - 1 == int(straight.steps)
    assert grid.size - 1 < grid.shortest(True) <= grid.size + 3


def test_the_shortest_safe_way_is_that_of_every_way_tried() -> None:
    grid = Grid(seed=3)
    best = grid.shortest(True)
    assert best == 8
    found = {n: any(_reaches(grid, list(way)) for way in itertools.product(range(4), repeat=n)) for n in (6, 7, 8)}
    assert found == {6: False, 7: False, 8: True}


def _reaches(grid: Grid, actions: list[int]) -> bool:
    here, run = grid.start, 0
    for action in actions:
        here = int(grid.next[here, action])
        run = run + 1 if grid.fragile[here] else 0
        if run == grid.run:
            return False
    return here == grid.goal


def test_the_environment_walks_as_the_grid_says_and_counts_steps_until_the_goal() -> None:
    world = environment(GRID, 2)
    cells, _ = world.reset()
    assert cells.tolist() == [GRID.start] * 2
    assert world.action_space.shape == (2,)
    for t in range(GRID.size):
        cells, rewards, ended, cut, _ = world.step(torch.tensor([1, 3]).numpy())
        assert rewards.tolist() == [-1.0 if t < GRID.size - 1 else 0.0, -1.0]
        assert ended.tolist() == [t >= GRID.size - 2, False]
        assert not cut.any()
    assert cells.tolist() == [GRID.goal, GRID.start]


@pytest.mark.long
def test_a_recurrent_predictor_tells_what_scores_of_steps_cannot() -> None:
    """Of the same steps in another order one path is safe and one is not: any pooled score of steps calls both alike."""
    order = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]])
    paths = Paths(torch.zeros_like(order), order, torch.zeros_like(order), torch.ones_like(order, dtype=torch.bool))
    safe = torch.tensor([False, True])
    torch.manual_seed(0)
    assert ((taught(Recurrent(), paths, safe, 150, 1e-2, rng())(paths) > 0) == safe).all()
    for pooling in ("largest", "mean"):
        told = taught(Markovian(pooling), paths, safe, 150, 1e-2, rng())(paths)
        assert float(told[0]) == pytest.approx(float(told[1]), abs=1e-6)


def test_what_stands_behind_the_goal_says_nothing() -> None:
    paths = explored(GRID, 20, rng())
    other = paths._replace(felt=paths.felt.where(paths.real, 1), actions=paths.actions.where(paths.real, 2))
    for model in (Markovian("largest"), Markovian("mean"), Recurrent()):
        torch.testing.assert_close(model(paths), model(other))


def test_explored_paths_are_half_safe() -> None:
    paths, safe = balanced(GRID, 40, rng())
    assert len(safe) == 40
    assert int(safe.sum()) == 20
    assert torch.equal(~GRID.unsafe(paths), safe)


def test_the_multiplier_rises_while_too_little_is_safe_and_falls_when_slack() -> None:
    """Acceptance (iii)."""
    assert dual(0.0, 0.2, 0.95, 0.1) > 0.0 > dual(0.0, 1.0, 0.95, 0.1)
    assert dual(0.0, 0.95, 0.95, 0.1) == 0.0


def test_planning_reads_the_predictor_and_leaves_it_as_it_was() -> None:
    """Acceptance (iv); with a predictor that finds every path unsafe the multiplier rises at every update."""
    model = Recurrent()
    with torch.no_grad():
        model.head.bias.fill_(-20.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = plan(GRID, model.requires_grad_(False), 5, rng(), episodes=10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.history.multiplier.is_monotonic_increasing
    assert found.history.multiplier.iloc[0] == 1.0


@pytest.mark.long
def test_planned_without_a_constraint_a_policy_goes_the_shortest_way() -> None:
    found = plan(GRID, None, 120, rng(), episodes=50)
    paths = rolled(GRID, found.table.__getitem__, 50, rng(1))
    assert float(paths.steps.float().mean()) < GRID.shortest(False) + 1.5
    assert float(GRID.unsafe(paths).float().mean()) > 0.5


@pytest.mark.long
def test_the_same_seed_says_the_same_and_a_further_base_does_not() -> None:
    one, again, other = (planned(QUICK, GRID, base) for base in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert not one.value.equals(other.value)


@pytest.mark.long
def test_the_study_leaves_a_report_with_every_claim(tmp_path: Path) -> None:
    order = StudyRequest("safe_mdp", "quick", (0, 1), bases=1)
    page, answer = run_study(SafeMDP(), order, QUICK, Store(tmp_path), Listener(), "titer study safe_mdp")
    told = json.loads(page.with_name("claims.json").read_text(encoding="utf-8"))["claims"]
    assert {one["name"] for one in told} == {one.name for one in SafeMDP().claims(QUICK)}
    assert all(one["value"] is not None for one in told)
    assert answer.startswith("The GRU classifies ")
    assert set(pd.read_csv(page.with_name("results.csv")).seed) == {0, 1}
    assert price(order, Store(tmp_path))[1] == "no model is trained: all is measured"
