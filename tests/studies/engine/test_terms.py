"""The vocabulary of claims on constructed tables: numbers of one base, and claims over bases and worlds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from titer.core.claims import Claim
from titer.core.stats import t_interval
from titer.studies.engine.claims import settled
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found
from titer.studies.engine.terms import (
    Term,
    by_layer,
    cell,
    combined,
    largest,
    last,
    log2_over_layers,
    mean,
    outcome_rate,
    rate,
    smallest,
)

RNG = np.random.default_rng(0)
SCORES = {name: RNG.normal(gap, 1.0, 40) for name, gap in {"a": 0.0, "b": 2.0, "c": 1.0}.items()}


def found(seed: int = 3, base: int = 0, more: float = 0.0) -> Found:
    """Three models with a probe's scores in two layers, and 40 answers each, of which a quarter, half and all are refused."""
    probe = [
        pd.DataFrame({"model": m, "layer": layer, "score": s + more * (m == "b") if layer == 2 else -s})
        for m, s in SCORES.items()
        for layer in (1, 2)
    ]
    outcomes = {"a": ["refused"] * 10 + ["complied"] * 30, "b": ["refused"] * 20 + ["partial"] * 20, "c": ["refused"] * 40}
    rates = [(m, "unsafe", "refused", o.count("refused"), 40) for m, o in outcomes.items()]
    tables = {
        "probe": pd.concat(probe, ignore_index=True),
        "sizes": pd.DataFrame({"model": ["a"] * 6, "layer": [1, 1, 2, 2, 3, 3], "old": [1.0] * 6, "new": [9.0, 9.0, 2.0, 2.0, 8.0, 8.0]}),
        "answers": pd.DataFrame([{"model": m, "outcome": o} for m, own in outcomes.items() for o in own]),
        "rates": pd.DataFrame(rates, columns=["model", "set", "outcome", "count", "n"]),
    }
    return Found(seed, None, tables, base=base)


def test_numbers_are_read_from_tables() -> None:
    one = found()
    assert last("probe", "score", model="b")(one) == pytest.approx(SCORES["b"].mean())
    assert cell("probe", "score", model="b", layer=1)(one) == pytest.approx(-SCORES["b"].mean())
    assert rate("a", "unsafe", "refused")(one) == 0.25
    assert outcome_rate("answers", "refused", model="b")(one) == 0.5
    assert outcome_rate("answers", "neither", model="b")(one) == 0.5  # what is partial too


def test_combinations_are_those_of_their_values() -> None:
    terms = [last("probe", "score", model=m) for m in SCORES]
    values = [float(s.mean()) for s in SCORES.values()]
    for made, expected in (
        (mean(*terms), sum(values) / 3),
        (largest(*terms), max(values)),
        (smallest(*terms), min(values)),
        (terms[0] - terms[1], values[0] - values[1]),
        (combined(lambda a, b: a * b, terms[1], terms[2]), values[1] * values[2]),
    ):
        assert made(found()) == pytest.approx(expected)


def test_a_ratio_over_layers_counts_them_alike_and_leaves_out_the_first() -> None:
    new, old = (by_layer("sizes", column, model="a") for column in ("new", "old"))
    assert log2_over_layers(new, old)(found()) == pytest.approx((1 + 3) / 2)  # not log2 of the mean, nor with layer 1's 9
    assert math.isnan(log2_over_layers(lambda one: -new(one), old)(found()))


def row(effect: Term, control: Term, **more: object) -> Row:
    return Row("score", "It moves.", "", "a statistic", effect, control, "a control", needs=("probe",), **more)  # type: ignore[arg-type]


def over(*bases: Found, **more: object) -> Claim:
    (claim,) = settled([row(last("probe", "score", model="b"), last("probe", "score", model="a"), **more)], bases, "a paper")
    return claim


def test_one_base_has_a_value_and_no_interval() -> None:
    claim = over(found())
    assert claim.value == pytest.approx(SCORES["b"].mean() - SCORES["a"].mean())
    assert (claim.interval, claim.verdict, claim.provisional) == (None, "inconclusive", True)
    assert "ask for more" in claim.reason


def test_bases_of_one_world_are_the_unit_of_its_interval() -> None:
    moves = (0.0, 0.1, 0.3)
    claim = over(*(found(base=i, more=more) for i, more in enumerate(moves)))
    values = [SCORES["b"].mean() - SCORES["a"].mean() + more for more in moves]
    assert claim.interval == pytest.approx(t_interval(values)[1:])
    assert claim.provisional
    assert "by base " in claim.reason


def test_several_worlds_count_once_each_however_many_bases_they_have() -> None:
    bases = [found(seed, base, more) for seed, base, more in ((0, 0, 0.0), (0, 1, 0.2), (1, 0, 0.3), (2, 0, 0.5))]
    start = SCORES["b"].mean() - SCORES["a"].mean()
    assert over(*bases).interval == pytest.approx(t_interval([start + 0.1, start + 0.3, start + 0.5])[1:])
    assert not over(*bases).provisional


def test_a_base_whose_model_is_not_what_it_should_be_is_left_out_and_named() -> None:
    broken = replace(found(1, more=5.0), faults={"b": "b: 3.0% of safe complied (95% needed)"})
    claim = over(found(0), broken, models=("b",))
    assert claim.value == pytest.approx(SCORES["b"].mean() - SCORES["a"].mean())
    assert "seed 1: b: 3.0% of safe complied" in claim.reason
    assert claim.seeds == (0,)


def test_an_effect_that_is_net_already_has_its_control_shown_alone() -> None:
    apart = [last("probe", "score", model=m) - last("probe", "score", model="a") for m in "bc"]
    (claim,) = settled([row(smallest(*apart), last("probe", "score", model="a"), whole=True)], [found()], "a paper")
    assert claim.value == pytest.approx(SCORES["c"].mean() - SCORES["a"].mean())
    assert claim.control.value == pytest.approx(SCORES["a"].mean())
    assert claim.source == "a paper"
