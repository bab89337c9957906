"""The attacker's search: the whole grid, known optima, the same trials for the same seed, and no Optuna."""

from __future__ import annotations

import itertools
import logging
import math
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from titer.core.errors import TiterError
from titer.core.search import Choices, LogRange, grid, searched, tried

SPACE = {"lr": LogRange(low=1e-6, high=1e-2), "epochs": Choices(values=(1, 3, 10)), "method": Choices(values=("sft", "dpo"))}


def harm(settings: dict[str, Any]) -> float:
    """One peak: lr 1e-4, ten epochs, sft; 1 at its best."""
    away = abs(math.log10(settings["lr"]) + 4) / 2
    return 1 - away - 0.3 * (settings["epochs"] != 10) - 0.2 * (settings["method"] != "sft")


def test_the_grid_is_every_combination() -> None:
    found = grid({"a": Choices(values=(1, 2)), "lr": LogRange(low=1e-4, high=1e-2, points=3), "b": Choices(values=("x", True))})
    expected = [{"a": a, "lr": lr, "b": b} for a, lr, b in itertools.product((1, 2), (1e-4, 1e-3, 1e-2), ("x", True))]
    assert [{**one, "lr": pytest.approx(one["lr"])} for one in expected] == found
    assert [one["lr"] for one in found[::2]][:3:2] == [1e-4, 1e-2]  # the ends are exact
    assert grid({}) == [{}]


def test_the_worst_of_a_grid() -> None:
    found = tried(harm, grid(SPACE))
    assert len(found.trials) == 30
    assert found.worst == {"lr": pytest.approx(1e-4), "epochs": 10, "method": "sft"}
    assert found.value == found.trials.value.max() == pytest.approx(1)
    assert list(found.trials.columns) == ["trial", "lr", "epochs", "method", "value"]
    assert list(found.trials.trial) == list(range(1, 31))


def test_the_first_of_equal_trials_is_the_worst_and_unjudged_ones_never_are() -> None:
    values = iter([math.nan, 0.5, math.inf, 0.5, 0.1])
    found = tried(lambda _: next(values), [{"a": i} for i in range(5)])
    assert found.worst == {"a": 1}
    assert np.isnan(found.trials.value[0])
    with pytest.raises(TiterError, match="none of 2 trials could be judged"):
        tried(lambda _: math.nan, [{"a": 1}, {"a": 2}])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_finds_a_known_optimum_and_learns(seed: int) -> None:
    found = searched(harm, SPACE, trials=50, seed=seed)
    assert found.worst["epochs"] == 10
    assert found.worst["method"] == "sft"
    assert found.value > 0.9
    assert found.value == found.trials.value.max()
    uniform = 1 - 0.5 - 0.3 * 2 / 3 - 0.2 / 2  # the mean of random trials
    assert found.trials.value[30:].mean() > uniform + 0.2  # it learns


def test_the_same_seed_asks_for_the_same_trials_and_a_longer_search_begins_alike() -> None:
    first, again = (searched(harm, SPACE, trials=15, seed=3).trials for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    longer = searched(harm, SPACE, trials=25, seed=3).trials
    pd.testing.assert_frame_equal(longer[:15], first)
    assert not searched(harm, SPACE, trials=15, seed=4).trials.lr.equals(first.lr)


def test_trials_are_of_the_space_and_given_ones_come_first() -> None:
    known = [{"lr": 1e-5, "epochs": 3, "method": "dpo"}, {"lr": 1e-2, "epochs": 1, "method": "sft"}]
    asked: list[dict[str, Any]] = []
    found = searched(lambda s: asked.append(s) or harm(s), SPACE, trials=12, seed=0, first=known)  # type: ignore[func-returns-value]
    assert asked[:2] == known
    assert len(asked) == len(found.trials) == 12
    for settings, row in zip(asked, found.trials.to_dict("records"), strict=True):
        assert list(settings) == list(SPACE)
        assert all(one.holds(settings[name]) for name, one in SPACE.items())
        assert type(settings["epochs"]) is int
        assert row == {"trial": row["trial"], **settings, "value": harm(settings)}
    assert found.value >= max(map(harm, known))


def test_what_could_not_be_judged_teaches_nothing_and_stays_in_the_table() -> None:
    found = searched(lambda s: math.nan if s["method"] == "dpo" else harm(s), SPACE, trials=20, seed=1)
    dpo = found.trials.method == "dpo"
    assert dpo.any()
    assert found.trials.value[dpo].isna().all()
    assert found.worst["method"] == "sft"


def test_an_error_of_the_objective_is_the_callers() -> None:
    def fails(_: dict[str, Any]) -> float:
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        searched(fails, SPACE, trials=3, seed=0)


def test_the_search_is_silent_and_leaves_optunas_own_level(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    with caplog.at_level(logging.DEBUG):
        searched(lambda s: math.nan if s["epochs"] == 3 else harm(s), SPACE, trials=12, seed=0)
    assert optuna.logging.get_verbosity() == before
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


def test_without_optuna_the_next_step_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(TiterError, match=r"needs Optuna.*pip install 'titer\[search\]'"):
        searched(harm, SPACE, trials=3, seed=0)
    assert tried(harm, grid(SPACE)).value == pytest.approx(1)  # the grid needs nothing


def test_wrong_spaces_and_first_trials_are_refused() -> None:
    for record, values in ((Choices, {"values": ()}), (Choices, {"values": (1, 1)}), (LogRange, {"low": 0, "high": 1})):
        with pytest.raises(ValidationError):
            record(**values)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="has no values"):
        LogRange(low=1, high=1)
    good = {"lr": 1e-4, "epochs": 3, "method": "sft"}
    for wrong, name in (
        ({**good, "epochs": 2}, "epochs"),
        ({**good, "lr": 1.0}, "lr"),
        ({**good, "rho": 2}, "rho"),
        ({"lr": 1e-4}, "epochs"),
    ):
        with pytest.raises(TiterError, match=name):
            searched(harm, SPACE, trials=3, seed=0, first=[wrong])
    for space, trials, first in (({}, 3, []), (SPACE, 0, []), (SPACE, 1, [good, good])):
        with pytest.raises(TiterError, match="trials over"):
            searched(harm, space, trials=trials, seed=0, first=first)
