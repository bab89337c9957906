"""Grid navigation in which safety is a property of the whole path: `run` fragile cells in a row make it unsafe. L7.

A strip of fragile columns lies between start and goal, one column narrower than an unsafe run. A path that crosses it straight is safe; one
that lingers in it or walks along it is not, though both take the same kinds of steps. On the straight way the strip is one column wider, so
the shortest path is unsafe. The planner sees only its cell, not how long it has been on fragile cells, so no cost of a cell and an action
can express the rule. Source: arXiv 2304.03081 (15 x 15 grids, horizon 500).
Shapes: n episodes, T steps, C = size^2 cells. Actions are up, right, down, left; a step into an edge stays in place.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from titer.core.config import Record
from titer.core.errors import TiterError
from titer.data.draws import seed_of

Array = NDArray[np.int64]
MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])


class Paths(NamedTuple):
    """Episodes. For each action: the cell before it, whether that is fragile (0, 1), the action, whether the goal was still ahead; (n, T)
    each.

    A policy sees the cell; a predictor sees whether it is fragile, and the action.
    """

    cells: torch.Tensor
    felt: torch.Tensor
    actions: torch.Tensor
    real: torch.Tensor

    @property
    def steps(self) -> torch.Tensor:
        """The number of steps to the goal, or the horizon where it was not reached: (n,)."""
        return self.real.sum(1)


class Grid(Record):
    """A grid, whose fragile cells are drawn by its seed."""

    seed: int = 0
    size: int = Field(default=7, ge=7)
    horizon: int = Field(default=30, ge=14)
    run: int = Field(default=3, ge=2, description="fragile cells one after the other that make a path unsafe")
    scattered: float = Field(default=0.15, ge=0, lt=1, description="share of fragile cells elsewhere, off the straight way")

    @property
    def start(self) -> int:
        return self.size // 2 * self.size

    @property
    def goal(self) -> int:
        return self.start + self.size - 1

    @cached_property
    def fragile(self) -> NDArray[np.bool_]:
        """Whether each cell is fragile: (C,). Errors: no grid of these sizes has a safe way to the goal."""
        rng, middle = np.random.default_rng(seed_of(self.seed, "grid")), self.size // 2
        for _ in range(1000):
            found = rng.random((self.size, self.size)) < self.scattered
            found[middle] = False
            first, wide = int(rng.integers(2, self.size - self.run)), int(rng.integers(0, 2))
            found[:, first : first + self.run - 1] = True
            found[middle - wide : middle + wide + 1, first + self.run - 1] = True
            if 0 < self._steps(found.reshape(-1), True) <= self.size + 3:
                return found.reshape(-1)
        raise ValueError("no grid of these sizes has a safe way round")

    @cached_property
    def next(self) -> Array:
        """The cell that each action leads to: (C, 4). The goal is never left."""
        row, column = np.divmod(np.arange(self.size**2), self.size)
        there = np.clip(np.stack([row, column], 1)[:, None] + MOVES, 0, self.size - 1)
        found = there[..., 0] * self.size + there[..., 1]
        found[self.goal] = self.goal
        return np.asarray(found)

    def unsafe(self, paths: Paths) -> torch.Tensor:
        """Returns whether each path had `run` fragile cells in a row: (n,)."""
        here = paths.felt.bool() & paths.real
        longest, now = torch.zeros(len(here), dtype=torch.int64), torch.zeros(len(here), dtype=torch.int64)
        for t in range(here.shape[1]):
            now = torch.where(here[:, t], now + 1, 0)
            longest = torch.maximum(longest, now)
        return longest >= self.run

    def shortest(self, safely: bool) -> int:
        """Returns the number of steps of the shortest path to the goal, or of the shortest safe one; 0 if there is none."""
        return self._steps(self.fragile, safely)

    def _steps(self, fragile: NDArray[np.bool_], safely: bool) -> int:
        """Searches breadth-first over pairs (cell, fragile cells just passed in a row). Returns 0 if no path leads to the goal."""
        left, seen = deque([(self.start, 0, 0)]), {(self.start, 0)}
        while left:
            cell, behind, steps = left.popleft()
            if cell == self.goal:
                return steps
            for there in self.next[cell].tolist():
                state = (there, min(behind + 1, self.run) if fragile[there] else 0)
                if state not in seen and not (safely and state[1] == self.run):
                    seen.add(state)
                    left.append((*state, steps + 1))
        return 0


def needed(*packages: str) -> None:
    """Checks that the packages of the extra `planning` are there. Errors: one is not."""
    for one in packages:
        if importlib.util.find_spec(one) is None:
            raise TiterError(
                f"planning on grids needs {one.replace('_', '-')}, which is not installed", next_step="pip install 'titer[planning]'"
            )


def environment(grid: Grid, episodes: int) -> Any:
    """Returns a gymnasium environment of `episodes` parallel episodes; each step until the goal costs 1. Errors: gymnasium is absent."""
    needed("gymnasium")
    import gymnasium  # noqa: PLC0415  wanted by this study alone

    class Navigation(gymnasium.vector.VectorEnv):  # type: ignore[misc]
        metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # noqa: RUF012
        num_envs = episodes
        single_observation_space = gymnasium.spaces.Discrete(grid.size**2)
        single_action_space = gymnasium.spaces.Discrete(4)
        observation_space = gymnasium.vector.utils.batch_space(single_observation_space, episodes)
        action_space = gymnasium.vector.utils.batch_space(single_action_space, episodes)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
            self.cells, self.steps = np.full(episodes, grid.start), 0
            return self.cells, {}

        def step(self, actions: Array) -> tuple[Array, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
            before, self.cells, self.steps = self.cells, grid.next[self.cells, actions], self.steps + 1
            ended = self.cells == grid.goal
            return self.cells, -(before != grid.goal).astype(float), ended, ~ended & (self.steps >= grid.horizon), {}

    return Navigation()
