"""The page: whole, escaped, and able to run or ask for nothing but its own script, whatever the models wrote."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import altair as alt
import pandas as pd
import pytest

from tests.conftest import draw, draw_once
from tests.report.conftest import FLIPPED, HOSTILE, hostile_report
from titer.core.errors import visible
from titer.report import drawing, html
from titer.report.html import Figure, Report, number, write_report

VOID = {"meta", "link", "input", "br", "img", "hr"}
FOREIGN = {"base", "iframe", "frame", "object", "embed", "img", "image", "video", "audio", "foreignobject", "animate", "set", "textarea"}
CLAIM = (
    *("name", "statement", "source", "paper_value", "statistic", "value", "interval"),
    *("seeds", "control", "margin", "verdict", "provisional", "reason"),
)


class Page(HTMLParser):
    """The elements of a page: (tag, attributes), scripts with their text, and whether every tag is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
        else:
            self.texts.append(data)


@pytest.fixture(scope="module")
def raw(hostile: Path) -> str:
    """The page as its bytes say, line ends untouched."""
    return hostile.read_bytes().decode()


@pytest.fixture(scope="module")
def page(raw: str) -> Page:
    return Page(raw)


@pytest.mark.long
def test_the_page_parses_and_every_element_is_closed(page: Page) -> None:
    assert page.open == []
    assert not {tag for tag, _ in page.elements} & FOREIGN


@pytest.mark.long
def test_one_script_runs_and_the_policy_names_it_alone(page: Page) -> None:
    running = [text for kind, text in page.scripts if kind.get("type") != "application/json"]
    (script,) = running
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = policy_of(page)
    assert policy["script-src"] == [f"'sha256-{digest}'"]
    assert "\r" not in script  # a browser would change it, and the sum with it
    assert len(page.scripts) == 2


def policy_of(page: Page) -> dict[str, list[str]]:
    """The content-security policy, directive by directive."""
    (content,) = [a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    parts = [part.split() for part in str(content).split(";")]
    return {part[0]: part[1:] for part in parts}


def test_the_policy_allows_no_request_and_no_eval(page: Page) -> None:
    policy = policy_of(page)
    assert policy["default-src"] == ["'none'"]
    assert policy["base-uri"] == ["'none'"]
    assert policy["form-action"] == ["'none'"]
    words = [word for values in policy.values() for word in values]
    assert not [word for word in words if "eval" in word or "http" in word or word in ("*", "'self'", "'strict-dynamic'")]
    assert "'unsafe-inline'" not in policy["script-src"]
    assert set(policy) <= {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}


def test_the_policy_comes_before_anything_that_it_guards(raw: str) -> None:
    assert raw.index("Content-Security-Policy") < min(raw.index("<style"), raw.index("<script"), raw.index("<link"))


def test_nothing_of_a_model_s_text_is_an_element_or_an_attribute(page: Page) -> None:
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcdoc", "autofocus", "formaction")], tag
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,")), (tag, name, value)
    assert not [a for tag, a in page.elements if tag == "meta" and a.get("http-equiv", "").lower() == "refresh"]


def test_no_address_is_fetched_from_anywhere(page: Page, raw: str) -> None:
    style = raw[raw.index("<style>") : raw.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    names = {name for _, attributes in page.elements for name, value in attributes.items() if "//" in (value or "")}
    assert names <= {"xmlns", "xmlns:xlink", "aria-label", "value", "data-model", "data-kind"}  # names of a format, and escaped text


def test_no_control_code_is_left(raw: str) -> None:
    assert {c for c in re.sub(r"<script>.*?</script>", "", raw, flags=re.DOTALL) if not c.isprintable()} <= {"\n"}
    assert "\x1b" not in raw
    assert "\u202e" not in raw


def test_the_texts_are_shown_in_full_as_text(page: Page) -> None:
    shown = "".join(page.texts)
    for text in HOSTILE:
        assert visible(text, 2000) in shown


def test_completions_of_harmful_prompts_are_blurred_and_no_others(page: Page) -> None:
    spans = [a for tag, a in page.elements if tag == "span" and a.get("tabindex") == "0"]
    blurred = [a for tag, a in page.elements if tag == "span" and "blurred" in (a.get("class") or "").split()]
    assert len(blurred) == len(HOSTILE) + FLIPPED
    assert spans == blurred  # each is reached by the keyboard


def test_every_filter_value_is_that_of_its_rows(page: Page) -> None:
    rows = [a for tag, a in page.elements if tag == "tr" and "data-model" in a]
    options = [a["value"] for tag, a in page.elements if tag == "option"]
    assert len(rows) == 2 * (len(HOSTILE) + FLIPPED)
    for field in ("data-model", "data-kind", "data-outcome", "data-flip"):
        assert {row[field] for row in rows} <= set(options)


def test_the_charts_specifications_are_json_a_browser_reads(page: Page) -> None:
    (specs,) = [json.loads(text, parse_constant=pytest.fail) for kind, text in page.scripts if kind.get("type") == "application/json"]
    assert set(specs) == {"outcomes", "jailbreaks"}
    containers = [a["id"] for tag, a in page.elements if tag == "div" and str(a.get("id")).startswith("chart-")]
    assert containers == [f"chart-{name}" for name in ("outcomes", "jailbreaks")]


def test_the_drawings_stand_in_the_page_for_readers_without_scripts(page: Page, hostile: Path) -> None:
    assert sum(tag == "svg" for tag, _ in page.elements) == 2
    for name in ("outcomes", "jailbreaks"):
        drawing = (hostile.parent / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        ET.fromstring(drawing)  # noqa: S314  our own drawing
        assert "<script" not in drawing
        assert {c for c in drawing if not c.isprintable()} <= {"\n"}


def test_the_files_beside_the_page_hold_the_numbers(hostile: Path) -> None:
    report = hostile_report()
    stored = json.loads((hostile.parent / "claims.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)["claims"]
    assert [claim["verdict"] for claim in stored] == ["supported", "not supported", "inconclusive", "inconclusive", "not testable"]
    assert all(claim["provisional"] and set(claim["control"]) == {"name", "value"} for claim in stored)
    assert [list(claim) for claim in stored] == [list(CLAIM)] * 5
    with open(hostile.parent / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.results)
    assert [row["model"] for row in rows] == [visible(name, 10_000) for name in report.results.model]
    answers = [json.loads(line) for line in (hostile.parent / "answers.jsonl").read_text(encoding="ascii").splitlines()]
    assert answers == report.samples.to_dict("records")
    assert sorted(p.name for p in hostile.parent.rglob("*.*") if p.suffix != ".lock") == sorted(
        ["claims.json", "results.csv", "answers.jsonl", "report.html", "summary.json", "outcomes.svg", "jailbreaks.svg"]
    )


@pytest.mark.long
def test_the_same_report_gives_the_same_bytes(hostile: Path, tmp_path: Path) -> None:
    again = write_report(hostile_report(), tmp_path)
    for file in ("report.html", "claims.json", "results.csv", "figures/outcomes.svg"):
        assert (again.parent / file).read_bytes() == (hostile.parent / file).read_bytes()


@pytest.mark.long
def test_the_samples_are_the_first_of_each_model_and_set(tmp_path: Path) -> None:
    rows = [
        {
            "model": m,
            "kind": k,
            "harmful": False,
            "prompt": f"{m} {k} {i}",
            "prefix": "",
            "completion": "c",
            "outcome": "complied",
            "reason": "",
        }
        for m in ("one", "two")
        for k in ("safe", "unsafe")
        for i in range(20)
    ]
    report = replace(hostile_report(), samples=pd.DataFrame(rows), figures=[])
    text = write_report(report, tmp_path).read_text(encoding="utf-8")
    for m in ("one", "two"):
        for k in ("safe", "unsafe"):
            assert [i for i in range(20) if f">{m} {k} {i}<" in text] == list(range(html.SAMPLES_SHOWN))


def made(child: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """A page whose charts another program draws."""
    monkeypatch.setattr(drawing, "CHILD", [sys.executable, "-c", child])
    return write_report(hostile_report(), folder).read_bytes().decode()


def test_a_script_that_speaks_of_scripts_does_not_end_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = {"script": 'const a = "</script><b>"; const b = "<!--";', "drawings": {}}
    page = Page(made(f"print({json.dumps(json.dumps(spoken))})", monkeypatch, tmp_path))
    test_one_script_runs_and_the_policy_names_it_alone(page)
    assert page.open == []


@pytest.mark.parametrize(
    "child", ["import os; os.abort()", "print('no JSON')", "raise MemoryError", "import sys; sys.exit(3)", "import nothing_of_that_name"]
)
def test_charts_that_cannot_be_drawn_do_not_take_the_page_with_them(child: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = made(child, monkeypatch, tmp_path)
    page = Page(text)
    assert "the charts could not be drawn" in text
    test_one_script_runs_and_the_policy_names_it_alone(page)
    assert "searc" in text
    assert "<svg" not in text


def test_a_drawing_that_came_out_blank_is_told_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = {"script": "", "drawings": {"outcomes": "<svg><g><text>a</text></g></svg>", "jailbreaks": "<svg><g/></svg>"}}
    text = made(f"print({json.dumps(json.dumps(spoken))})", monkeypatch, tmp_path)
    assert "the charts could not be drawn: jailbreaks came out blank" in text
    assert not (tmp_path / "figures").exists()


@pytest.mark.long
def test_a_process_of_its_own_draws_what_is_drawn_here() -> None:
    specs = {"one": alt.Chart(pd.DataFrame({"a": [1.0], "b": ["x"]})).mark_bar().encode(x="a:Q", y="b:N").to_dict()}
    asked, beside = {"live": drawing.LIVE.read_text(encoding="utf-8"), "specs": specs}, Path(drawing.__file__).parent
    child = subprocess.run(drawing.CHILD, input=json.dumps(asked), capture_output=True, text=True, check=True, cwd=beside)
    assert json.loads(child.stdout) == draw(asked)


@pytest.mark.long
def test_a_drawing_that_tests_share_has_the_words_of_its_own_chart() -> None:
    for word in ("capability", "coherent"):
        spec = alt.Chart(pd.DataFrame({"a": [1.0], "b": [word]})).mark_bar().encode(x="a:Q", y="b:N").to_dict()
        assert word in draw_once({"live": "", "specs": {"of one name": spec}})["drawings"]["of one name"]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_finite_number_reaches_no_chart(odd: float, tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.0, odd], "b": ["x", "y"]})
    chart = alt.Chart(table).mark_bar().encode(x=alt.X("a:Q", scale=alt.Scale(domain=[0, odd])), y="b:N")
    figures = [Figure("one", "One", "A chart.", chart)]
    text = write_report(replace(hostile_report(), figures=figures), tmp_path).read_text(encoding="utf-8")
    (specs,) = [json.loads(s, parse_constant=pytest.fail) for kind, s in Page(text).scripts if kind.get("type") == "application/json"]
    assert specs["one"]["encoding"]["x"]["scale"]["domain"] == [0, None]
    assert "<text" in (tmp_path / "figures" / "one.svg").read_text(encoding="utf-8")


def test_a_spreadsheet_runs_no_cell_and_no_control_code_is_left(tmp_path: Path) -> None:
    names = ["=1+2", "+1", "-1", "@a", " =1", "\t=1", "a\x1b[31mb", "a\u202eb", "plain", "a=b"]
    results = pd.DataFrame({"model": names, "value": [-0.5] * len(names)})
    write_report(replace(hostile_report(), results=results, figures=[]), tmp_path)
    with open(tmp_path / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == ["'=1+2", "'+1", "'-1", "'@a", "' =1", "\\t=1", "a\\x1b[31mb", "a\\u202eb", "plain", "a=b"]
    assert {row[1] for row in rows} == {"-0.5"}


def test_a_report_of_nothing_is_a_page_still(tmp_path: Path) -> None:
    nothing = pd.DataFrame()
    page = write_report(Report("t", "a", "b", [], [], [], {}, nothing, nothing, [], {}), tmp_path)
    text = page.read_text(encoding="utf-8")
    assert Page(text).open == []
    assert "What holds" not in text
    assert "What the models wrote" not in text
    assert json.loads((tmp_path / "claims.json").read_text()) == {"claims": []}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.123456, "0.123"), (1234.5, "1.23e+03"), (float("nan"), "–"), (None, "–"), (7, "7"), ("a", "a"), (True, "True")],
)
def test_numbers_have_three_digits_and_what_is_missing_is_a_dash(value: object, shown: str) -> None:
    assert number(value) == shown
