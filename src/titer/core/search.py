"""The worst that an attacker finds: a value to be raised (harm) over settings (learning rate, steps, poison ratio ...).

A defence is judged by the worst of the attacker's trials, so both searches keep every trial and say which was worst.
`grid` is the plain product; `searched` is TPE (Bergstra et al. 2011) of Optuna, an extra: pip install 'titer[search]'.
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

STARTUP = 5  # random trials before TPE has anything to learn from; fixed, so that a longer search begins as a shorter one did
Value = bool | int | float | str
Settings = dict[str, Any]


class Choices(Record):
    """A setting with a few values."""

    values: tuple[Value, ...] = Field(min_length=1, description="the values, each once")

    @model_validator(mode="after")
    def _once(self) -> Choices:
        if len(set(self.values)) < len(self.values):
            raise ValueError("a value stands twice")
        return self

    def holds(self, value: Any) -> bool:
        return value in self.values

    def listed(self) -> tuple[Value, ...]:
        return self.values


class LogRange(Record):
    """A positive number, as likely in each of its octaves."""

    low: float = Field(gt=0, description="smallest value")
    high: float = Field(gt=0, description="largest value")
    points: int = Field(default=5, ge=2, description="values on a grid, evenly spaced in the logarithm, both ends among them")

    @model_validator(mode="after")
    def _ordered(self) -> LogRange:
        if self.low >= self.high:
            raise ValueError(f"from {self.low} to {self.high} is no range")
        return self

    def holds(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def listed(self) -> tuple[Value, ...]:
        inner = np.geomspace(self.low, self.high, self.points)[1:-1].tolist()
        return (self.low, *inner, self.high)


Space = Mapping[str, Choices | LogRange]
Objective = Callable[[Settings], float]


class Found(NamedTuple):
    """A search's trials (trial from 1, the settings, value; NaN = could not be judged) and the worst: the first highest."""

    trials: pd.DataFrame
    worst: Settings
    value: float


def grid(space: Space) -> list[Settings]:
    """Every combination of the settings' values; the last setting moves fastest."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*(one.listed() for one in space.values()))]


def tried(objective: Objective, settings: Sequence[Settings]) -> Found:
    """The objective at given settings, in their order. Errors: no trial that could be judged."""
    return _found([(one, float(objective(dict(one)))) for one in settings])


def must_be_installed() -> None:
    """Say so before a study begins where Optuna is absent."""
    if importlib.util.find_spec("optuna") is None:
        raise TiterError("the attacker's search needs Optuna, which is not installed", next_step="pip install 'titer[search]'")


def searched(
    objective: Objective,
    space: Space,
    trials: int,
    seed: int,
    first: Sequence[Settings] = (),
    at_once: int = 1,
    ahead: Callable[[Sequence[Settings]], None] | None = None,
) -> Found:
    """`trials` calls of the objective, which TPE chooses so as to raise it; `first` (say the paper's attack) are tried first.

    `at_once` trials are chosen before the first of them is judged, and told to `ahead`, which may make what they need at once: part of
    what determines the trials, as the seed is. Settings may be asked for twice; a cached objective answers at once. A value that is not
    finite (could not be judged) is kept in the table and teaches nothing. Errors: Optuna is absent; `first` outside the space; no trial
    could be judged.
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
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=at_once > 1)
    loud = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for one in first:
            study.enqueue_trial(
                {name: s.values.index(one[name]) if isinstance(s, Choices) else float(one[name]) for name, s in space.items()}
            )
        rows = []
        for begun in range(0, trials, at_once):
            asked = [study.ask(places) for _ in range(min(at_once, trials - begun))]
            chosen = [_settings(space, trial.params) for trial in asked]
            if ahead is not None:
                ahead(chosen)
            for trial, settings in zip(asked, chosen, strict=True):
                value = float(objective(dict(settings)))
                rows.append((settings, value))
                judged = math.isfinite(value)
                state = optuna.trial.TrialState.COMPLETE if judged else optuna.trial.TrialState.FAIL
                study.tell(trial, value if judged else None, state)
    finally:
        optuna.logging.set_verbosity(loud)
    return _found(rows)


def _settings(space: Space, drawn: Mapping[str, Any]) -> Settings:
    """What Optuna drew, in the space's own values: of choices it knows the places."""
    return {name: one.values[drawn[name]] if isinstance(one, Choices) else drawn[name] for name, one in space.items()}


def _check(space: Space, trials: int, first: Sequence[Settings]) -> None:
    if not space or trials < 1 or len(first) > trials:
        raise TiterError(
            f"{trials} trials over {len(space)} settings, {len(first)} of them given", expected="a setting, and room for a trial"
        )
    for one in first:
        wrong = [name for name in {**space, **one} if name not in one or name not in space or not space[name].holds(one[name])]
        if wrong:
            raise TiterError(
                f"a first trial's {', '.join(wrong)} is not of the space", expected=", ".join(f"{k}: {v}" for k, v in space.items())
            )


def _found(rows: Sequence[tuple[Settings, float]]) -> Found:
    judged = [place for place, (_, value) in enumerate(rows) if math.isfinite(value)]
    if not judged:
        raise TiterError(
            f"no trial of {len(rows)} could be judged: there is no worst one",
            next_step="look at the answers, or give another judge.",
            status=1,
        )
    worst, value = rows[max(judged, key=lambda place: rows[place][1])]
    table = pd.DataFrame([{"trial": place, **settings, "value": value} for place, (settings, value) in enumerate(rows, start=1)])
    return Found(table, dict(worst), value)
