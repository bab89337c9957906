"""The attacker who tunes at a tiny scale: what is tried, what is repeated on fresh bases, a second call, a dry run, wrong words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.studies.conftest import Listener
from tests.studies.huang2024.conftest import TINY, relax
from titer.core import parallel
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.core.search import Choices, LogRange, searched, side_by_side
from titer.recipes.huang2024 import SCALES, SELECTION_SEED
from titer.studies import sweep as module
from titer.studies.engine.found import Found
from titer.studies.prepare import swept
from titer.studies.request import SweepRequest
from titer.studies.sweep import AT_ONCE, TUNED, USUAL, Sweep, Worst, harm

OVER = "lr=1e-4..1e-3,ratio=0.01:0.05,method=sft:vaccine"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweep, "SCALES", {"nano": TINY})
    monkeypatch.setattr(parallel, "processes", lambda: 1)
    relax(monkeypatch)
    monkeypatch.setattr("titer.studies.huang2024.attack.LEARNED", -1.0)


def ordered(runs: Path, **more: Any) -> SweepRequest:
    return SweepRequest("huang2024", **{"over": OVER, "trials": 3, "seeds": 1, "bases": 1, "runs": runs, **more})


@pytest.mark.long
@pytest.mark.usefixtures("tiny")
def test_the_worst_attack_is_searched_on_one_seed_and_repeated_on_fresh_ones_and_all_is_found_again(tmp_path: Path) -> None:
    ready, store = swept(ordered(tmp_path)), Store(tmp_path)
    cost = ready.cost(store)
    planned = cost["plan"]
    assert isinstance(planned, pd.DataFrame)
    attacks = planned[planned.kind == "finetune"]
    assert len(attacks[attacks.seed == SELECTION_SEED]) == 2 * 3, "each defence's trials"
    assert len(attacks[attacks.seed == 0]) == 2 * 2, "each defence under the usual attack and the worst"
    page, answer = ready.run(store, Listener(), "titer sweep huang2024")
    assert answer.startswith("Unsafe requests answered on fresh bases, under the worst attack of 3 trials by TPE against each: sft ")
    told = json.loads(page.with_name("claims.json").read_text(encoding="utf-8"))["claims"]
    assert [one["name"] for one in told] == ["tuning against sft", "tuning against vaccine", "vaccine in its worst case"]
    results = pd.read_csv(page.with_name("results.csv"))
    kept = results[results.table == "attacks"]
    assert set(kept.seed) == {0}
    assert set(zip(kept.defence, kept.attack, strict=True)) == {(d, a) for d in ("sft", "vaccine") for a in (USUAL, TUNED)}
    again = Store(tmp_path)
    assert swept(ordered(tmp_path)).run(again, Listener(), "titer sweep huang2024") == (page, answer)
    assert again.made == []
    more = Store(tmp_path)
    _ = swept(ordered(tmp_path, trials=4)).run(more, Listener(), "titer sweep huang2024")
    assert sum(one.startswith("stages") for one in more.made) <= 2 * 3, "a longer search begins as the shorter one did"


@pytest.mark.long
@pytest.mark.usefixtures("tiny")
def test_a_grid_is_tried_whole(tmp_path: Path) -> None:
    ready = swept(ordered(tmp_path, over="lr=1e-4:1e-3,ratio=0.05,method=sft", attacker="grid"))
    _, answer = ready.run(Store(tmp_path), Listener(), "titer sweep huang2024")
    assert "under the worst attack of a grid of 2 trials against each: sft " in answer


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"recipe": "huang2042"}, "unknown recipe 'huang2042'.*did you mean 'huang2024'"),
        ({"attacker": "optima"}, "unknown attacker 'optima'.*did you mean 'optuna'"),
        ({"over": "rate=1e-4"}, "unknown setting of the attack 'rate'"),
        ({"over": "lr=fast"}, "--over lr=fast is no number"),
        ({"over": "lr=1e-3..1e-4"}, "--over lr: .*has no values"),
        ({"over": "lr=1e-4,lr=1e-3"}, "--over lr has two lists"),
        ({"over": "ratio="}, "--over ratio has no value"),
        ({"over": "ratio=0.1:0.1"}, "--over ratio: .*a value is given twice"),
        ({"over": "method=vacine"}, "unknown defence 'vacine'.*did you mean 'vaccine'"),
        ({"over": "method=1..2"}, "--over method is a range"),
        ({"scale": "paper"}, "unknown scale 'paper'"),
    ],
)
def test_wrong_words_are_told(more: dict[str, str], said: str) -> None:
    with pytest.raises(TiterError, match=said):
        swept(SweepRequest(**{"recipe": "huang2024", **more}))


def test_what_is_asked_for_is_what_is_searched() -> None:
    ready = swept(SweepRequest("huang2024", over="lr=1e-4..1e-3,examples=500:1000,method=sft:lisa", trials=30, on="ray", piece_cpus=2))
    search = ready.scale.search
    assert dict(search.over) == {"rate": LogRange(low=1e-4, high=1e-3), "examples": Choices(values=(500, 1000))}
    assert (search.methods, search.trials, ready.order.on, ready.order.piece_cpus) == (("sft", "lisa"), 30, "ray", 2)
    assert ready.scale.model_copy(update={"search": SCALES["nano"].search, "name": "nano"}) == SCALES["nano"]
    assert swept(SweepRequest("huang2024")).scale.name != ready.scale.name, "each sweep has a report of its own"


def test_harm_is_read_where_the_search_was_worst() -> None:
    points = pd.DataFrame([{"defence": "sft", "rate": 1e-3, "ratio": 0.05, "examples": 100, "step": 2, "harm": 0.9, "user": 1.0}])
    steps = [(USUAL, 2, 0.1), (USUAL, 4, 0.2), (TUNED, 2, 0.6), (TUNED, 4, 0.7)]
    attacks = pd.DataFrame([{"model": "m", "defence": "sft", "attack": a, "step": s, "worst": v} for a, s, v in steps])
    found = Found(0, TINY, {"attacks": attacks}, chosen=Worst(points, pd.DataFrame()))
    assert (harm("sft", TUNED)(found), harm("sft", USUAL)(found)) == (0.6, 0.2)
    with pytest.raises(module.UnsaidError, match="vaccine: no trial in which"):
        harm("vaccine", TUNED)(found)


def test_searches_side_by_side_choose_as_each_does_alone() -> None:
    space = {"lr": LogRange(low=1e-5, high=1.0)}
    values = {"up": lambda s: float(s["lr"]), "down": lambda s: -float(s["lr"])}
    rounds: list[dict[str, int]] = []
    found = side_by_side(
        values, space, 10, 0, at_once=4, ahead=lambda chosen: rounds.append({name: len(own) for name, own in chosen.items()})
    )
    assert rounds == [{"up": n, "down": n} for n in (4, 4, 2)]
    for name, value in values.items():
        alone = searched(value, space, 10, 0, at_once=4)
        assert found[name].trials.equals(alone.trials)
    assert found["up"].worst["lr"] > 10 * found["down"].worst["lr"]


def test_trials_of_a_round_are_told_before_the_first_is_judged() -> None:
    rounds: list[int] = []
    judged: list[float] = []

    def ahead(chosen: Any) -> None:
        assert len(judged) == sum(rounds)
        rounds.append(len(chosen[""]))

    def value(settings: dict[str, Any]) -> float:
        judged.append(settings["lr"])
        return float(settings["lr"])

    space = {"lr": LogRange(low=1e-5, high=1.0)}
    found = searched(value, space, 10, 0, at_once=AT_ONCE, ahead=ahead)
    assert rounds == [4, 4, 2]
    assert found.trials.lr.tolist() == judged
    assert searched(value, space, 14, 0, at_once=AT_ONCE).trials.lr.tolist()[:8] == judged[:8]
