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

from titer.report import forms, style

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


def inputs() -> pd.DataFrame:
    """A number of each input of two models in two classes."""
    rows = [(m, c, 0.1 * i + n) for n, m in enumerate(MODELS) for c in ("safe", "unsafe") for i in range(5)]
    return pd.DataFrame(rows, columns=["model", "class", "value"])


def layers() -> pd.DataFrame:
    """The layer tables' columns of two models."""
    rows = [(m, i, 0.1 * i + n) for n, m in enumerate(MODELS) for i in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["model", "layer", "d_prime"])
    for offset, column in enumerate(["auroc", "tau_safe", "tau_unsafe", "ratio", "ratio_random", "null_share", "null_share_random"]):
        table[column] = table.d_prime + offset
    return table


LINES = {"refused": "#e08a1e", "answered": "#c0392b"}
CLASSES = {"safe": style.GREEN, "unsafe": style.RED}


def answered() -> pd.DataFrame:
    """The rates of what was answered, on two sets."""
    table = rates()
    return table[(table.outcome == "complied") & table.kind.isin(KINDS[1:])]


def taus() -> pd.DataFrame:
    """tau of two classes, layer by layer."""
    names = {"tau_safe": "safe", "tau_unsafe": "unsafe"}
    return layers().melt(["model", "layer"], list(names), "class", "tau").replace({"class": names})


MADE: dict[str, Callable[[], Any]] = {
    "shares": lambda: forms.bars(shared(), "model", "what", {"canaries answered": "#c0392b", "safe refused": "#e08a1e"}),
    "separation": lambda: forms.lines(layers(), "layer", "d_prime", "model", forms.model_colours(MODELS), ("layer", "d′"), share=False),
    "log": lambda: forms.lines(layers(), "layer", "auroc", "model", forms.model_colours(MODELS), ("layer", "d′"), share=False, log=True),
    "bars": lambda: forms.bars(answered(), "kind", "model", forms.model_colours(MODELS)),
    "lines": lambda: forms.lines(poisoned(), "ratio", "rate", "measure", LINES, ("share p", "share of answers")),
    "panels": lambda: forms.lines(taus(), "layer", "tau", "class", CLASSES, ("layer", "mean τ"), share=False, panel="model", levels=[0.0]),
    "stacks": lambda: forms.stacks(rates(), "model", "kind", KINDS),
    "points": lambda: forms.points(answered(), "kind", "rate", "model", forms.model_colours(MODELS), ("set", "answered"), share=True),
    "matrix": lambda: forms.matrix(answered(), "kind", "model", "rate", ("set", "model")),
    "distributions": lambda: forms.distributions(inputs(), "model", "value", "class", CLASSES, "a number"),
}
OF_FORMS = {"panels", "separation", "log", "shares"}  # a form drawn in more than one way
WORDS = {
    "shares": {"base", "aligned", "canaries answered", "safe refused"},
    "separation": {"base", "aligned", "layer", "3"},
    "log": {"base", "aligned", "layer", "3"},
    "bars": {"unsafe", "jb_misgen", "base", "aligned"},
    "lines": {"refused", "answered", "share p", "share of answers"},
    "panels": {"safe", "unsafe", "mean τ", "base", "aligned", "3"},
    "stacks": {"complied", "refused", "neither", "jb_misgen", "base", "aligned", "share of answers"},
    "points": {"unsafe", "jb_misgen", "base", "aligned", "answered"},
    "matrix": {"unsafe", "jb_misgen", "base", "aligned", "5%"},
    "distributions": {"safe", "unsafe", "base", "aligned", "a number"},
}
MARKS = {"shares": 4, "separation": 6, "log": 6, "bars": 4, "lines": 4, "panels": 12, "stacks": 18, "points": 4, "matrix": 4}
KIND_OF_MARK = dict.fromkeys(("shares", "bars", "stacks", "matrix"), "mark-rect")


def drawn(name: str) -> ET.Element:
    """The chart's drawing."""
    return ET.fromstring(vl_convert.vegalite_to_svg(json.dumps(MADE[name]().to_dict())))  # noqa: S314  our own drawing


def test_every_chart_function_is_tried_here() -> None:
    made = {name for name, value in vars(forms).items() if getattr(value, "__module__", "") == forms.__name__}
    assert {name for name in made if not name.startswith("_")} - {"model_colours"} == set(MADE) - OF_FORMS


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(MADE))
def test_the_drawing_has_its_words_and_its_marks(name: str) -> None:
    drawing = drawn(name)
    texts = {"".join(element.itertext()) for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= WORDS[name]
    groups = [e for e in drawing.iter("{http://www.w3.org/2000/svg}g") if "role-mark" in e.get("class", "")]
    wanted = KIND_OF_MARK.get(name, "mark-symbol")
    marks = [child for group in groups if wanted in group.get("class", "") for child in group if child.get("aria-roledescription")]
    assert len(marks) == MARKS.get(name, len(marks))


@pytest.mark.parametrize("name", sorted(MADE))
def test_the_specification_is_json_with_its_data_inside(name: str) -> None:
    spec = MADE[name]().to_dict()
    json.loads(json.dumps(spec, allow_nan=False))
    assert spec["datasets"]
    assert '"url"' not in json.dumps(spec)


@pytest.mark.parametrize("name", ["bars", "lines", "points"])
def test_rates_carry_their_intervals(name: str) -> None:
    drawing = drawn(name)
    rules = [e for e in drawing.iter("{http://www.w3.org/2000/svg}g") if "mark-rule role-mark" in e.get("class", "")]
    assert sum(len(list(rule)) for rule in rules) == 4


def test_safe_is_green_and_unsafe_is_red() -> None:
    scale = MADE["panels"]().to_dict()["spec"]["layer"][0]["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True)) == {"safe": style.GREEN, "unsafe": style.RED}


def test_a_model_keeps_its_colour_in_every_chart_of_a_page() -> None:
    scales = []
    for name in ("points", "separation"):
        spec = MADE[name]().to_dict()
        layer = spec["layer"][0] if "layer" in spec else spec
        scales.append(layer["encoding"]["color"]["scale"])
    assert scales[0]["domain"] == scales[1]["domain"] == MODELS
    assert scales[0]["range"][:2] == scales[1]["range"][:2]


def test_numbers_that_are_missing_are_drawn_as_gaps() -> None:
    table = layers()
    table.loc[0, "d_prime"] = float("nan")
    spec = forms.lines(table, "layer", "d_prime", "model", forms.model_colours(MODELS), ("layer", "d′"), share=False).to_dict()
    json.dumps(spec, allow_nan=False)
    vl_convert.vegalite_to_svg(json.dumps(spec))


def test_a_chart_of_one_model_and_of_one_set_is_drawn() -> None:
    table = rates()
    vl_convert.vegalite_to_svg(json.dumps(forms.stacks(table[table.model == "base"], "model", "kind", ["safe"]).to_dict()))


def test_a_share_beyond_one_is_within_its_axis() -> None:
    for largest, top in ((0.4, 1.0), (1.7, 1.7), (float("nan"), 1.0)):
        table = poisoned().assign(rate=largest)
        spec = forms.lines(table, "ratio", "rate", "measure", LINES, ("share p", "share of answers")).to_dict()
        assert spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == [0, top]


def test_tables_longer_than_altair_s_own_limit_are_drawn() -> None:
    table = pd.concat([rates()] * 300, ignore_index=True)
    assert len(table) > 5000
    assert isinstance(forms.stacks(table, "model", "kind", KINDS), alt.Chart)
    forms.stacks(table, "model", "kind", KINDS).to_dict()
