"""Searches, as an attacker would, for the settings (learning rate, steps, poison ratio ...) with the highest value, such as harm.

A defence is judged by the attacker's worst trial, so both searches keep all trials and say which one was worst.
`tried` takes given settings, such as those of `grid`; `searched` uses TPE (Bergstra et al. 2011) of Optuna, an extra: pip install
'titer[search]'.
Nothing is stored here: a trial is a function of its settings, each call of the objective is cached by its caller (a run's
stages and tables), and the same seed asks for the same settings in the same order; so a search that was killed, or is asked
for more trials, starts again, finds its first trials in the cache and goes on.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from titer.core.config import Record
from titer.core.errors import TiterError

STARTUP = 5  # random trials at the start, for TPE to learn from; fixed, so that a longer search begins as a shorter one
Value = bool | int | float | str
Settings = dict[str, Any]


class Choices(Record):
    """A setting with a few possible values."""

    values: tuple[Value, ...] = Field(min_length=1, description="the values, each once")

    @model_validator(mode="after")
    def _once(self) -> Choices:
        if len(set(self.values)) < len(self.values):
            raise ValueError("a value is given twice")
        return self

    def holds(self, value: Any) -> bool:
        return value in self.values

    def listed(self) -> tuple[Value, ...]:
        return self.values


class LogRange(Record):
    """A setting with positive numbers from `low` to `high`, searched uniformly in the logarithm."""

    low: float = Field(gt=0, description="smallest value")
    high: float = Field(gt=0, description="largest value")
    points: int = Field(default=5, ge=2, description="values on a grid, evenly spaced in the logarithm, both ends among them")

    @model_validator(mode="after")
    def _ordered(self) -> LogRange:
        if self.low >= self.high:
            raise ValueError(f"a range from {self.low} to {self.high} has no values: give the smaller number first")
        return self

    def holds(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def listed(self) -> tuple[Value, ...]:
        inner = np.geomspace(self.low, self.high, self.points)[1:-1].tolist()
        return (self.low, *inner, self.high)


Space = Mapping[str, Choices | LogRange]
Objective = Callable[[Settings], float]
Ahead = Callable[[Mapping[str, Sequence[Settings]]], None]  # what is chosen for each objective, before any of it is evaluated


class Found(NamedTuple):
    """A search's result: all trials, and the settings and value of the worst one (of equal ones the first).

    `trials` has the columns trial (from 1), the settings, and value (NaN: it could not be judged).
    """

    trials: pd.DataFrame
    worst: Settings
    value: float


def grid(space: Space) -> list[Settings]:
    """Returns all combinations of the settings' values; the last setting changes fastest."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*(one.listed() for one in space.values()))]


def tried(objective: Objective, settings: Sequence[Settings]) -> Found:
    """Evaluates the objective at given settings, in order. Errors: no trial could be judged."""
    return _found([(one, float(objective(dict(one)))) for one in settings])


def must_be_installed() -> None:
    """Checks, before a study begins, that Optuna is installed. Errors: it is not."""
    if importlib.util.find_spec("optuna") is None:
        raise TiterError("the attacker's search needs Optuna, which is not installed", next_step="pip install 'titer[search]'")


def searched(
    objective: Objective, space: Space, trials: int, seed: int, first: Sequence[Settings] = (), at_once: int = 1, ahead: Ahead | None = None
) -> Found:
    """Evaluates one objective as `side_by_side` evaluates several."""
    return side_by_side({"": objective}, space, trials, seed, first, at_once, ahead)[""]


def side_by_side(
    objectives: Mapping[str, Objective],
    space: Space,
    trials: int,
    seed: int,
    first: Sequence[Settings] = (),
    at_once: int = 1,
    ahead: Ahead | None = None,
) -> dict[str, Found]:
    """Evaluates each objective at `trials` settings, which TPE chooses to raise it. `first` (such as the paper's attack) are tried first.

    `at_once` settings are chosen for each objective before the first of them is evaluated, and are given to `ahead`, which may make all
    that they need at the same time. Like the seed, `at_once` changes which settings are chosen; the other objectives do not. The same
    settings may be chosen twice; a cached objective then answers at once. A value that is not finite (it could not be judged) stays in the
    table, but TPE does not learn from it. Errors: Optuna is not installed; `first` is outside the space; no trial could be judged.
    """
    _check(space, trials, first)
    must_be_installed()
    import optuna  # noqa: PLC0415

    places: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution(range(len(one.values)))
        if isinstance(one, Choices)
        else optuna.distributions.FloatDistribution(one.low, one.high, log=True)
        for name, one in space.items()
    }
    loud = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        studies = {name: _study(space, seed, first, at_once) for name in objectives}
        rows: dict[str, list[tuple[Settings, float]]] = {name: [] for name in objectives}
        for begun in range(0, trials, at_once):
            asked = {name: [study.ask(places) for _ in range(min(at_once, trials - begun))] for name, study in studies.items()}
            chosen = {name: [_settings(space, trial.params) for trial in own] for name, own in asked.items()}
            if ahead is not None:
                ahead(chosen)
            for name, study in studies.items():
                for trial, settings in zip(asked[name], chosen[name], strict=True):
                    value = float(objectives[name](dict(settings)))
                    rows[name].append((settings, value))
                    judged = math.isfinite(value)
                    state = optuna.trial.TrialState.COMPLETE if judged else optuna.trial.TrialState.FAIL
                    study.tell(trial, value if judged else None, state)
    finally:
        optuna.logging.set_verbosity(loud)
    return {name: _found(own) for name, own in rows.items()}


def _study(space: Space, seed: int, first: Sequence[Settings], at_once: int) -> Any:
    """Makes one search, with the given first trials waiting in it."""
    import optuna  # noqa: PLC0415

    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=at_once > 1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for one in first:
        study.enqueue_trial({name: s.values.index(one[name]) if isinstance(s, Choices) else float(one[name]) for name, s in space.items()})
    return study


def _settings(space: Space, drawn: Mapping[str, Any]) -> Settings:
    """Converts what Optuna drew to the space's values; for choices, Optuna draws an index."""
    return {name: one.values[drawn[name]] if isinstance(one, Choices) else drawn[name] for name, one in space.items()}


def _check(space: Space, trials: int, first: Sequence[Settings]) -> None:
    if not space or trials < 1 or len(first) > trials:
        raise TiterError(
            f"a search of {trials} trials over {len(space)} settings, with {len(first)} trials given",
            expected="at least one setting and one trial, and no more given trials than there are trials",
        )
    for one in first:
        wrong = [name for name in {**space, **one} if name not in one or name not in space or not space[name].holds(one[name])]
        if wrong:
            raise TiterError(
                f"a given trial has {', '.join(wrong)} outside the search space", expected=", ".join(f"{k}: {v}" for k, v in space.items())
            )


def _found(rows: Sequence[tuple[Settings, float]]) -> Found:
    judged = [place for place, (_, value) in enumerate(rows) if math.isfinite(value)]
    if not judged:
        raise TiterError(
            f"none of {len(rows)} trials could be judged, so the worst attack is not known",
            next_step="look at the answers, or give another judge.",
            status=1,
        )
    worst, value = rows[max(judged, key=lambda place: rows[place][1])]
    table = pd.DataFrame([{"trial": place, **settings, "value": value} for place, (settings, value) in enumerate(rows, start=1)])
    return Found(table, dict(worst), value)
