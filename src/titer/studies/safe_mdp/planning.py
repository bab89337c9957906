"""Predictors that tell unsafe paths from safe ones, and planning under a predictor: PPO with a Lagrange multiplier. L7.

max_pi E[return] such that E[P_f(safe | path)] >= c; L = J + lambda (E[P_f] - c), lambda = exp(eta), eta raised by the shortfall. The
policy follows the gradient of L / (1 + lambda). Source: arXiv 2304.03081 and its code (model-free variant, RCPO-MF), whose step on the
return is PPO's; here PPO sees the return and the predicted safety together. Shapes as in `grid.py`; H = hidden units.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from titer.studies.safe_mdp.grid import Grid, Paths, environment, needed

Policy = Callable[[torch.Tensor], torch.Tensor]  # cells (n,) -> logits (n, 4)
CLIPPED = 4.0  # most of |eta|
RATE, DUAL = 1e-3, 0.03  # of the policy's step (Adam) and of the multiplier's
BONUS, LEAN = 0.3, 1.0  # of entropy at first, none after four fifths; a new policy's logit towards the goal's side
WORTH = 20  # steps that a path's safety weighs


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
    """Returns the policy with the fewest steps whose paths `predictor` finds safe; without a predictor, the one with the fewest steps.

    PPO of stable-baselines3 on L / (1 + lambda), with lambda fixed during an update. A step costs 1; at a path's end its predicted
    safety is paid, which weighs `WORTH` steps. A path that has not arrived counts as unsafe, as in the official code's classes for boxes. Otherwise staying at the
    start would be safest. Errors: gymnasium or stable-baselines3 is absent.
    """
    needed("gymnasium", "stable_baselines3")
    import stable_baselines3  # noqa: PLC0415  wanted by this study alone
    from stable_baselines3.common.logger import Logger  # noqa: PLC0415

    world = Lagrangian(grid, predictor, episodes, least)
    with seeds_kept():
        made = stable_baselines3.PPO(
            "MlpPolicy", for_baselines(world), n_steps=grid.horizon, batch_size=10 * episodes, n_epochs=4, learning_rate=RATE, gamma=1.0, gae_lambda=1.0,
            ent_coef=BONUS, policy_kwargs={"net_arch": [32, 32]}, seed=int(torch.randint(2**31, (), generator=generator)), device="cpu",
        )  # fmt: skip
        policy: Any = made.policy
        with torch.no_grad():
            policy.action_net.bias[1] = LEAN
        made.set_logger(Logger(folder=None, output_formats=[]))  # the library's own makes a folder in /tmp each time, and leaves it
        world.begins = lambda update: setattr(made, "ent_coef", BONUS * max(0.0, 1 - 1.25 * update / updates))
        made.learn(updates * episodes * grid.horizon)
        with torch.no_grad():
            table = policy.get_distribution(torch.eye(grid.size**2)).distribution.logits
    return Planned(table, pd.DataFrame(world.history[:updates]))


@contextmanager
def seeds_kept() -> Iterator[None]:
    """A context after which Python's, NumPy's and PyTorch's global random states are as before; stable-baselines3 seeds all three."""
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(array)  # noqa: NPY002


class Lagrangian:
    """Episodes of a grid, all as long as the horizon, with the reward of L / (1 + lambda). Lambda moves after each.

    `history`: what each update saw. `begins`: called with the number of an update before it.
    """

    def __init__(self, grid: Grid, predictor: nn.Module | None, episodes: int, least: float) -> None:
        self.grid, self.episodes = grid, episodes
        self.history: list[dict[str, float]] = []
        self.begins: Callable[[int], None] | None = None
        self._predictor, self._least, self._eta = predictor, least, 0.0
        self._walk, self._seen = environment(grid, episodes), np.eye(grid.size**2, dtype=np.float32)
        self._fragile = torch.from_numpy(grid.fragile).long()

    @property
    def weight(self) -> float:
        return 0.0 if self._predictor is None else float(np.exp(self._eta))

    def reset(self) -> Any:
        """Begins the episodes again; returns their cells, one-hot (n, C)."""
        self._cells, _ = self._walk.reset()
        self._path: list[tuple[torch.Tensor, ...]] = []
        return self._seen[self._cells]

    def step(self, actions: Any) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Takes one step in every episode; returns cells (n, C), rewards (n,), ends (n,), and the last cells of ended episodes."""
        here, weight = torch.from_numpy(np.asarray(self._cells)), self.weight
        self._cells, rewards, *_ = self._walk.step(actions)
        self._path.append((here, self._fragile[here], torch.from_numpy(actions), torch.from_numpy(rewards) < 0))
        cells, told, ended = self._seen[self._cells], [dict[str, Any]() for _ in range(self.episodes)], len(self._path) == self.grid.horizon
        if ended:
            told = [{"terminal_observation": one} for one in cells]
            rewards, cells = rewards + WORTH * weight * self._judged(), self.reset()
        return cells, (rewards / (1 + weight)).astype(np.float32), np.full(self.episodes, ended), told

    def _judged(self) -> Any:
        """Returns how safe the predictor finds each path (n,), and moves the multiplier."""
        paths = Paths(*(torch.stack(one, 1) for one in zip(*self._path, strict=True)))
        with torch.no_grad():
            safe = torch.ones(self.episodes) if self._predictor is None else self._predictor(paths).sigmoid() * arrived(self.grid, paths)
        row = {"update": len(self.history), "steps": float(paths.steps.float().mean()), "predicted": float(safe.mean())}
        self.history.append({**row, "multiplier": self.weight})
        self._eta = dual(self._eta, float(safe.mean()), self._least, DUAL)
        if self.begins is not None:
            self.begins(len(self.history))
        return safe.numpy()


def for_baselines(world: Lagrangian) -> Any:
    """Returns the episodes as an environment of stable-baselines3."""
    import gymnasium  # noqa: PLC0415
    from stable_baselines3.common.vec_env import VecEnv  # noqa: PLC0415

    class Episodes(VecEnv):  # type: ignore[misc]
        def reset(self) -> Any:
            return world.reset()

        def step_async(self, actions: Any) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            return world.step(self.actions)

        def close(self) -> None:
            return None

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(self, attr_name, None)] * self.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            setattr(self, attr_name, value)

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            return [getattr(self, method_name)(*args, **kwargs)] * self.num_envs

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

    cells = gymnasium.spaces.Box(0, 1, (world.grid.size**2,), np.float32)
    return Episodes(world.episodes, cells, gymnasium.spaces.Discrete(4))


def arrived(grid: Grid, paths: Paths) -> torch.Tensor:
    """Returns whether each path was at the goal after its last action: (n,)."""
    return torch.from_numpy(grid.next)[paths.cells[:, -1], paths.actions[:, -1]] == grid.goal
