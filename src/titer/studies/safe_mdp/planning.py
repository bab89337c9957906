"""Predictors that tell unsafe paths from safe ones, and planning under a predictor: REINFORCE with a Lagrange multiplier. L7.

max_pi E[return] such that E[P_f(safe | path)] >= c; L = J + lambda (E[P_f] - c), lambda = exp(eta), eta raised by the shortfall. The
policy follows the gradient of L / (1 + lambda). Source: arXiv 2304.03081 and its code (model-free variant, RCPO-MF). That code takes PPO's
step on the return; here it is REINFORCE, with each cell's mean return to go as baseline. Shapes as in `grid.py`; H = hidden units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from titer.studies.safe_mdp.grid import Grid, Paths, environment

Policy = Callable[[torch.Tensor], torch.Tensor]  # cells (n,) -> logits (n, 4)
CLIPPED = 4.0  # most of |eta|
RATE, DUAL = 0.07, 0.03  # of the policy's step (Adam) and of the multiplier's
BONUS, LEAN = 0.2, 1.0  # of entropy at first, none after four fifths; a new policy's logit towards the goal's side


class Recurrent(nn.Module):
    """A recurrent predictor: a GRU over (fragile or not, action). Its states' mean over time gives one logit per path: high is safe."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.felt, self.action = nn.Embedding(2, width), nn.Embedding(4, width)
        self.gru, self.head = nn.GRU(width, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, paths: Paths) -> torch.Tensor:
        states_nTH, _ = self.gru(self.felt(paths.felt) + self.action(paths.actions))
        real = paths.real[..., None].float()
        pooled: torch.Tensor = self.head((states_nTH * real).sum(1) / real.sum(1).clamp(min=1))[:, 0]
        return pooled


class Markovian(nn.Module):
    """A predictor that scores each single step (fragile or not, action); a path gets its largest or its mean score. No cost of single steps
    can say more."""

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.pooling, self.score, self.head = pooling, nn.Embedding(8, 1), nn.Linear(1, 1)

    def forward(self, paths: Paths) -> torch.Tensor:
        scores = self.score(paths.felt * 4 + paths.actions)[..., 0]
        if self.pooling == "largest":
            pooled = scores.masked_fill(~paths.real, -torch.inf).max(1).values
        else:
            pooled = (scores * paths.real).sum(1) / paths.real.sum(1).clamp(min=1)
        found: torch.Tensor = self.head(pooled[:, None])[:, 0]
        return found


def explored(grid: Grid, episodes: int, generator: torch.Generator) -> Paths:
    """Returns random paths to the goal by way of a random cell. They differ in how directly they go and how much they move left or
    right."""
    eager, across = torch.rand(2, episodes, 1, generator=generator)
    eager = eager**0.25
    target = torch.randint(0, grid.size**2, (episodes,), generator=generator)

    def policy(cells: torch.Tensor) -> torch.Tensor:
        target[cells == target] = grid.goal
        down, right = target // grid.size - cells // grid.size, target % grid.size - cells % grid.size
        wanted = torch.stack([down < 0, right > 0, down > 0, right < 0], 1) * torch.cat([1 - across, across, 1 - across, across], 1)
        return torch.log(eager * wanted / wanted.sum(1, keepdim=True).clamp(min=1e-9) + (1 - eager) / 4 + 1e-9)

    return rolled(grid, policy, episodes, generator)


def balanced(grid: Grid, episodes: int, generator: torch.Generator) -> tuple[Paths, torch.Tensor]:
    """Returns explored paths, half of them safe, and which are safe (n,). Without the balance, calling every path unsafe would mostly be
    right."""
    paths = explored(grid, 10 * episodes, generator)
    safe = ~grid.unsafe(paths)
    half = min(episodes // 2, int(safe.sum()), int((~safe).sum()))
    rows = torch.cat([safe.nonzero()[:half, 0], (~safe).nonzero()[:half, 0]])
    return Paths(*(one[rows] for one in paths)), safe[rows]


@torch.no_grad()
def rolled(grid: Grid, policy: Policy, episodes: int, generator: torch.Generator) -> Paths:
    """Runs a policy for some episodes, with actions drawn from it; returns the paths."""
    world = environment(grid, episodes)
    cells, _ = world.reset()
    fragile, seen = torch.from_numpy(grid.fragile).long(), []
    for _ in range(grid.horizon):
        here = torch.from_numpy(np.asarray(cells))
        actions = torch.multinomial(policy(here).softmax(1), 1, generator=generator)[:, 0]
        cells, rewards, *_ = world.step(actions.numpy())
        seen.append((here, fragile[here], actions, torch.from_numpy(rewards) < 0))
    return Paths(*(torch.stack(one, 1) for one in zip(*seen, strict=True)))


def taught(model: nn.Module, paths: Paths, safe: torch.Tensor, epochs: int, rate: float, generator: torch.Generator) -> nn.Module:
    """Trains a model to predict which paths are safe (n,); returns it frozen."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(safe), generator=generator).split(100):
            loss = functional.binary_cross_entropy_with_logits(model(Paths(*(one[rows] for one in paths))), safe[rows].float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval().requires_grad_(False)


def dual(eta: float, safe: float, least: float, rate: float) -> float:
    """Returns the multiplier's logarithm after one step: it rises while less than `least` of the paths is safe, and falls while more is."""
    return min(CLIPPED, max(-CLIPPED, eta + rate * (least - safe)))


class Planned(NamedTuple):
    """A planned policy. `table`: its logits (C, 4). `history`: what each update saw, in the columns update, steps, predicted (share safe),
    multiplier."""

    table: torch.Tensor
    history: pd.DataFrame


def plan(
    grid: Grid, predictor: nn.Module | None, updates: int, generator: torch.Generator, episodes: int = 100, least: float = 0.95
) -> Planned:
    """Plans the policy with the fewest steps whose paths `predictor` finds safe; without a predictor, the one with the fewest steps.

    A path that has not arrived counts as unsafe, as in the official code's classes for boxes. Otherwise staying at the start would be
    safest.
    """
    table = torch.tensor([0.0, LEAN, 0.0, 0.0]).repeat(grid.size**2, 1).requires_grad_()
    optimiser, eta, rows = torch.optim.Adam([table], lr=RATE), 0.0, []
    for update in range(updates):
        paths = rolled(grid, lambda cells: table.detach()[cells], episodes, generator)
        log_p = table[paths.cells].log_softmax(2)
        chosen = log_p.gather(2, paths.actions[..., None])[..., 0]
        gain, weight, share = _advantages(paths, grid.size**2), 0.0, 1.0
        if predictor is not None:
            with torch.no_grad():
                safe = predictor(paths).sigmoid() * arrived(grid, paths)
            share, weight = float(safe.mean()), float(np.exp(eta))
            gain = (gain + weight * 2 * (safe - safe.mean())[:, None]) / (1 + weight)
            eta = dual(eta, share, least, DUAL)
        entropy = BONUS * max(0.0, 1 - 1.25 * update / updates) * -(log_p.exp() * log_p).sum(2)
        loss = -((chosen * gain + entropy) * paths.real).sum() / episodes
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rows.append({"update": update, "steps": float(paths.steps.float().mean()), "predicted": share, "multiplier": weight})
    return Planned(table.detach(), pd.DataFrame(rows))


def arrived(grid: Grid, paths: Paths) -> torch.Tensor:
    """Returns whether each path was at the goal after its last action: (n,)."""
    return torch.from_numpy(grid.next)[paths.cells[:, -1], paths.actions[:, -1]] == grid.goal


def _advantages(paths: Paths, cells: int) -> torch.Tensor:
    """Returns each action's advantage: the return to go (-1 a step) minus its mean at that cell, in standard deviations: (n, T)."""
    togo = -paths.real.flip(1).cumsum(1).flip(1).float()
    places, values = paths.cells[paths.real], togo[paths.real]
    mean = torch.zeros(cells).index_add(0, places, values) / torch.bincount(places, minlength=cells).clamp(min=1)
    gap = (togo - mean[paths.cells]) * paths.real
    return gap / gap[paths.real].std().clamp(min=1e-3)
