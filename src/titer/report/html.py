"""Writes report.html, a single page, and beside it results.csv, claims.json, answers.jsonl, summary.json and figures/*.svg. L5.

The page loads nothing from the network, and every text of a model is escaped. The page contains its one script and allows only that
script, by its sha256. Charts run without eval (Vega's expression interpreter).
With scripts off, the same figures are shown as static drawings.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from filelock import FileLock

from titer.core.claims import Claim, write_claims
from titer.core.errors import visible
from titer.core.run import write_text
from titer.data.turns import joined, turns
from titer.report import drawing

TEMPLATES = Path(__file__).parent / "templates"
ANSWERS = "answers.jsonl"  # every judged answer, as the models wrote it: model, kind, harmful, prompt, completion, outcome ...
SAMPLES_SHOWN = 6
FORMULA = ("=", "+", "-", "@")  # a spreadsheet runs a cell that begins with one of these


@dataclass(frozen=True)
class Figure:
    """A chart with its file name, its title, and a caption that says how to read it."""

    name: str
    title: str
    caption: str
    chart: Any


@dataclass(frozen=True)
class Tile:
    """One headline number: `label` says what it is, `detail` gives its interval."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading: sentences, a table, commands to copy (why, command), and folded tables by name."""

    title: str
    lines: Sequence[str] = ()
    table: pd.DataFrame | None = None
    commands: Sequence[tuple[str, str]] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The content of a report's page and of the files beside it."""

    title: str
    answer: str
    about: str
    tiles: Sequence[Tile]
    claims: Sequence[Claim]
    figures: Sequence[Figure]
    tables: Mapping[str, pd.DataFrame]
    results: pd.DataFrame
    samples: pd.DataFrame
    commands: Sequence[str]
    provenance: Mapping[str, Any]
    notes: Sequence[str] = field(default_factory=tuple)
    more: str = ""  # the line below the answer
    before: Sequence[Section] = ()  # sections before the evidence
    after: Sequence[Section] = ()  # sections after it
    flipped: pd.DataFrame = field(
        default_factory=pd.DataFrame
    )  # samples with the column `flip`; the two answers to a prompt follow each other
    legends: Mapping[str, str] = field(default_factory=dict)  # folded table -> what its columns mean
    roles: Mapping[str, str] = field(default_factory=dict)  # model -> what it is here: base, before, after, benign control


def write_report(report: Report, folder: Path) -> Path:
    """Writes the page and the files beside it, under a lock (one process at a time). Returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".report.lock"):
        return _written(report, folder)


def _written(report: Report, folder: Path) -> Path:
    specs = {figure.name: _shown(figure.chart.to_dict(validate=False)) for figure in report.figures}
    drawn = drawing.drawn(specs)
    for name, svg in drawn.drawings.items():
        write_text(folder / "figures" / f"{name}.svg", svg)
    safe = report.results.map(lambda cell: shown_text(cell) if isinstance(cell, str) else cell)
    write_text(folder / "results.csv", safe.to_csv(index=False, lineterminator="\n"))
    write_claims(folder / "claims.json", report.claims)
    write_text(folder / ANSWERS, report.samples.to_json(orient="records", lines=True))
    summary = {  # the page's texts for other programs, such as `card.py`
        "version": 1,
        "title": report.title,
        "answer": report.answer,
        "commands": list(report.commands),
        "provenance": {name: str(value) for name, value in report.provenance.items()},
        "roles": {shown_text(model): role for model, role in report.roles.items()},  # as results.csv names them
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    page = folder / "report.html"
    write_text(page, _page(report, specs if drawn.drawings else {}, drawn))
    return page


def shown_text(cell: str) -> str:
    """Returns a text in the form that it has in results.csv, where it is safe for a spreadsheet."""
    shown = visible(cell, 100_000)
    return f"'{shown}" if shown.lstrip().startswith(FORMULA) else shown


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["visible"] = lambda value: visible(str(value), 2000)
    environment.filters["whole"] = lambda value: visible(str(value), 100_000)  # commands are copied by the reader, so they are never cut
    environment.filters["number"] = number
    return environment.get_template("report.html")


def _page(report: Report, specs: Mapping[str, Any], drawn: drawing.Drawn) -> str:
    allowed = base64.b64encode(hashlib.sha256(drawn.script.encode()).digest()).decode()
    return _template().render(
        report=report,
        samples=_chosen(report.samples, report.flipped),
        prompts_flipped=len(report.flipped) // 2,
        shown=SAMPLES_SHOWN,
        specs=specs,
        drawings=drawn.drawings,
        fault=drawn.fault,
        script=drawn.script,
        allowed=allowed,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
    )


def number(value: Any) -> str:
    """Returns a table cell as text: fractional numbers with three significant digits, a dash for a missing value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _chosen(samples: pd.DataFrame, flipped: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the samples to show: the first few of every model and set, not selected by outcome, with `flip` ""; then the flipped ones."""
    if samples.empty:
        return []
    first = samples.groupby(["model", "kind"], sort=False).head(SAMPLES_SHOWN).assign(flip="")
    rows = pd.concat([first, flipped], ignore_index=True) if len(flipped) else first
    return [{**{str(k): v for k, v in row.items()}, "prompt": joined(turns(str(row["prompt"])))} for row in rows.to_dict("records")]


def _shown(value: Any) -> Any:
    """Returns a chart's specification with control codes in its texts spelt out, as on the whole page. NaN and infinity become null."""
    if isinstance(value, dict):
        return {key: _shown(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    return visible(value, 2000) if isinstance(value, str) else value
