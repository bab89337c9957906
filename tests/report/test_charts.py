"""Every chart function gives a figure that is drawn from a small table: its marks, its words, its scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

import altair as alt
import pandas as pd
import pytest
import vl_convert

from titer.report import charts, style

MODELS = ["base", "aligned"]
KINDS = ["safe", "unsafe", "jb_misgen"]


def rates() -> pd.DataFrame:
    """Rates of two models on three sets."""
    outcomes = ("complied", "refused", "neither", "partial")
    rows = [(m, k, o, i + 1, 20, 0.05 * (i + 1), 0.01, 0.5) for m in MODELS for k in KINDS for i, o in enumerate(outcomes)]
    return pd.DataFrame(rows, columns=["model", "kind", "outcome", "count", "n", "rate", "low", "high"])


def shared() -> pd.DataFrame:
    """Shares of two models in two measures."""
    rows = [(m, what, 0.1, 0.05, 0.2, 10, 100) for m in MODELS for what in ("canaries answered", "safe refused")]
    return pd.DataFrame(rows, columns=["model", "what", "rate", "low", "high", "count", "n"])


def poisoned() -> pd.DataFrame:
    """Rates against the poison ratio."""
    rows = [(f"user p={p:g}", p, m, 4, 20, 0.2 + p, 0.1, 0.4) for p in (0.0, 0.05) for m in ("refused", "answered")]
    return pd.DataFrame(rows, columns=["model", "ratio", "measure", "count", "n", "rate", "low", "high"])


def layers() -> pd.DataFrame:
    """The layer tables' columns of two models."""
    rows = [(m, i, 0.1 * i + n) for n, m in enumerate(MODELS) for i in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["model", "layer", "d_prime"])
    for offset, column in enumerate(["auroc", "tau_safe", "tau_unsafe", "ratio", "ratio_random", "null_share", "null_share_random"]):
        table[column] = table.d_prime + offset
    return table


MADE: dict[str, Callable[[], Any]] = {
    "outcomes": lambda: charts.outcomes(rates(), MODELS, KINDS),
    "jailbreaks": lambda: charts.jailbreaks(rates(), MODELS, KINDS[1:]),
    "shares": lambda: charts.shares(shared(), MODELS, {"canaries answered": "#c0392b", "safe refused": "#e08a1e"}),
    "poisoning": lambda: charts.poisoning(poisoned()),
    "separation": lambda: charts.separation(layers(), MODELS),
    "tau": lambda: charts.tau(layers(), MODELS),
    "specificity": lambda: charts.specificity(layers(), MODELS[1:]),
    "null_space": lambda: charts.null_space(layers(), MODELS),
}
WORDS = {
    "outcomes": {"complied", "refused", "neither", "jb_misgen", "base", "aligned", "share of answers"},
    "jailbreaks": {"unsafe", "jb_misgen", "base", "aligned", "unsafe requests answered"},
    "shares": {"base", "aligned", "canaries answered", "safe refused"},
    "poisoning": {"refused", "answered", "5.0%"},
    "separation": {"base", "aligned", "layer", "3"},
    "tau": {"safe", "unsafe", "mean τ", "base", "aligned"},
    "specificity": {"aligned", "layer", "‖ΔW a‖ / ‖a‖, unsafe over safe"},
    "null_space": {"ΔW", "random ΔW (same singular values)", "base", "aligned"},
}
MARKS = {"outcomes": 18, "jailbreaks": 4, "shares": 4, "poisoning": 4, "separation": 6, "tau": 12, "specificity": 3, "null_space": 12}
KIND_OF_MARK = {"outcomes": "mark-rect", "jailbreaks": "mark-rect", "shares": "mark-rect"}


def drawn(name: str) -> ET.Element:
    """The chart's drawing."""
    return ET.fromstring(vl_convert.vegalite_to_svg(json.dumps(MADE[name]().to_dict())))  # noqa: S314  our own drawing


def test_every_chart_function_is_tried_here() -> None:
    public = {name for name, value in vars(charts).items() if callable(value) and getattr(value, "__module__", "") == charts.__name__}
    assert {name for name in public if not name.startswith("_")} == set(MADE)


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_drawing_has_its_words_and_its_marks(name: str) -> None:
    drawing = drawn(name)
    texts = {"".join(element.itertext()) for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= WORDS[name]
    groups = [e for e in drawing.iter("{http://www.w3.org/2000/svg}g") if "role-mark" in e.get("class", "")]
    wanted = KIND_OF_MARK.get(name, "mark-symbol")
    marks = [child for group in groups if wanted in group.get("class", "") for child in group if child.get("aria-roledescription")]
    assert len(marks) == MARKS[name]


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_specification_is_json_with_its_data_inside(name: str) -> None:
    spec = MADE[name]().to_dict()
    json.loads(json.dumps(spec, allow_nan=False))
    assert spec["datasets"]
    assert '"url"' not in json.dumps(spec)


@pytest.mark.parametrize("name", ["jailbreaks", "poisoning"])
def test_rates_carry_their_intervals(name: str) -> None:
    drawing = drawn(name)
    rules = [e for e in drawing.iter("{http://www.w3.org/2000/svg}g") if "mark-rule role-mark" in e.get("class", "")]
    assert sum(len(list(rule)) for rule in rules) == 4


def test_safe_is_green_and_unsafe_is_red() -> None:
    scale = charts.tau(layers(), MODELS).to_dict()["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True)) == {"safe": style.GREEN, "unsafe": style.RED}


def test_a_model_keeps_its_colour_in_every_chart_of_a_page() -> None:
    scales = []
    for name in ("jailbreaks", "separation"):
        spec = MADE[name]().to_dict()
        layer = spec["layer"][0] if "layer" in spec else spec
        scales.append(layer["encoding"]["color"]["scale"])
    assert scales[0]["domain"] == scales[1]["domain"] == MODELS
    assert scales[0]["range"][:2] == scales[1]["range"][:2]


def test_numbers_that_are_missing_are_drawn_as_gaps() -> None:
    table = layers()
    table.loc[0, "d_prime"] = float("nan")
    spec = charts.separation(table, MODELS).to_dict()
    json.dumps(spec, allow_nan=False)
    vl_convert.vegalite_to_svg(json.dumps(spec))


def test_a_chart_of_one_model_and_of_one_set_is_drawn() -> None:
    vl_convert.vegalite_to_svg(json.dumps(charts.outcomes(rates(), ["base"], ["safe"]).to_dict()))


def test_tables_longer_than_altair_s_own_limit_are_drawn() -> None:
    table = pd.concat([rates()] * 300, ignore_index=True)
    assert len(table) > 5000
    assert isinstance(charts.outcomes(table, MODELS, KINDS), alt.Chart)
    charts.outcomes(table, MODELS, KINDS).to_dict()
