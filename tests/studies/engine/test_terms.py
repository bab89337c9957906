"""The vocabulary of claims on constructed tables: values, intervals, and which samples are drawn again in which order."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from titer.core.stats import bootstrap, d_prime, rate_difference
from titer.data.draws import seed_of
from titer.studies.engine.claims import settled
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found
from titer.studies.engine.terms import Term, answered, combined, largest, last, log2_ratio, mean, rate, resampled, smallest, value

RNG = np.random.default_rng(0)
SCORES = {name: RNG.normal(gap, 1.0, 40) for name, gap in {"a": 0.0, "b": 2.0, "c": 1.0}.items()}


def found(seed: int = 3) -> Found:
    """Three models with a probe's scores in two layers, and 40 answers each, of which a third, half and all are refused."""
    probe = [pd.DataFrame({"model": m, "layer": layer, "score": s if layer == 2 else -s}) for m, s in SCORES.items() for layer in (1, 2)]
    outcomes = {"a": ["refused"] * 10 + ["complied"] * 30, "b": ["refused"] * 20 + ["partial"] * 20, "c": ["refused"] * 40}
    verdicts = pd.concat([pd.DataFrame({"model": m, "kind": "unsafe", "outcome": o}) for m, o in outcomes.items()])
    rates = [(m, "unsafe", "refused", o.count("refused"), 40) for m, o in outcomes.items()]
    tables = {
        "probe": pd.concat(probe, ignore_index=True),
        "rates": pd.DataFrame(rates, columns=["model", "set", "outcome", "count", "n"]),
    }
    return Found(seed, None, tables, verdicts)


def test_a_probe_s_column_is_read_in_the_last_layer_or_before_it() -> None:
    assert last("probe", "score", model="b").read(found()).value == pytest.approx(SCORES["b"].mean())
    assert last("probe", "score", back=1, model="b").read(found()).value == pytest.approx(-SCORES["b"].mean())


def test_answers_are_counted_by_outcome_and_neither_is_what_is_partial_too() -> None:
    assert answered("a", "unsafe", "refused").read(found()).value == 0.25
    assert answered("b", "unsafe", "neither").read(found()).value == 0.5


def test_a_difference_of_rates_is_newcombe_s() -> None:
    net = rate("b", "unsafe", "refused") - rate("a", "unsafe", "refused")
    assert net.over_inputs(found(), "any") == net.read(found()) == rate_difference((20, 40), (10, 40))


def test_a_difference_of_samples_is_their_bootstrap_under_the_claim_s_name() -> None:
    """The samples of both sides in their order, drawn with the name's seed: the interval of the formula written out."""

    def apart(first: str, second: str) -> Term:
        return resampled(lambda one: [one.last("probe", "score", model=m) for m in (first, second)], d_prime)

    net = apart("b", "a") - largest(apart("c", "a"), apart("a", "a"))
    samples = [SCORES[name] for name in "bacaaa"]
    written = bootstrap(
        lambda *s: d_prime(s[0], s[1]) - max(d_prime(s[2], s[3]), d_prime(s[4], s[5])), samples, seed_of(3, "bootstrap", "clusters")
    )
    assert net.over_inputs(found(), "clusters") == written
    assert net.over_inputs(found(), "another name") != written
    assert math.isnan(net.read(found()).low)
    assert net.read(found()).value == written.value


def test_what_one_part_without_samples_enters_is_not_resampled() -> None:
    mixed = last("probe", "score", model="b") - value(lambda one: 1.0)
    assert mixed.sampled is None
    assert mixed.read(found()).value == pytest.approx(SCORES["b"].mean() - 1)
    assert math.isnan(mixed.over_inputs(found(), "any").low)


def test_an_empty_sample_has_no_interval() -> None:
    empty = resampled(lambda one: [np.empty(0), SCORES["a"]], lambda none, some: float(len(none)))
    assert empty.over_inputs(found(), "any").value == 0.0
    assert math.isnan(empty.over_inputs(found(), "any").low)


def test_combinations_are_those_of_their_values() -> None:
    terms = [last("probe", "score", model=m) for m in SCORES]
    values = [float(s.mean()) for s in SCORES.values()]
    for made, expected in (
        (mean(*terms), sum(values) / 3),
        (largest(*terms), max(values)),
        (smallest(*terms), min(values)),
        (log2_ratio(terms[1], terms[2]), math.log2(values[1] / values[2])),
        (combined(lambda a, b: a * b, terms[1], terms[2]), values[1] * values[2]),
    ):
        assert made.sampled is not None
        assert made.read(found()).value == pytest.approx(expected)
        assert made.over_inputs(found(), "any").low < expected < made.over_inputs(found(), "any").high
    assert math.isnan(log2_ratio(value(lambda _: -1.0), value(lambda _: 1.0)).read(found()).value)


def row(effect: Term, control: Term, **more: object) -> Row:
    return Row("score", "It moves.", "", "a statistic", effect, control, "a control", **more)  # type: ignore[arg-type]


def test_few_seeds_have_an_interval_over_inputs_and_three_one_over_seeds() -> None:
    one = row(last("probe", "score", model="b"), last("probe", "score", model="a"), needs=("probe",))
    (few,) = settled([one], [found()], "a paper")
    assert few.source == "a paper"
    assert few.interval == pytest.approx(one.net.over_inputs(found(), "score")[1:])
    (several,) = settled([one], [found(seed) for seed in range(3)], "a paper")
    assert several.interval == pytest.approx((several.value, several.value))  # the same in every seed


def test_an_effect_that_is_net_already_has_its_control_shown_alone() -> None:
    apart = [last("probe", "score", model=m) - last("probe", "score", model="a") for m in "bc"]
    whole = row(smallest(*apart), last("probe", "score", model="a"), whole=True, needs=("probe",))
    (claim,) = settled([whole], [found()], "a paper")
    assert claim.value == pytest.approx(SCORES["c"].mean() - SCORES["a"].mean())
    assert claim.control.value == pytest.approx(SCORES["a"].mean())
