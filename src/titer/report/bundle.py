"""Packs a report into one file that others can check (`titer report RUN --bundle FILE`, `titer verify FILE`); tables, figures. L5.

The file is a zip of the report's folder with `manifest.json`: the sha256 of each file (answers, verdicts, tables, page), the keys of the
models' contents and the sha256 of the data. Verifying hashes every file again, computes the outcome rates again from the answers, and
compares models and data with their keys where these are at hand. It shows that the file is complete and consistent, not who made it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from titer.core.claims import Claim
from titer.core.config import Record, build
from titer.core.errors import TiterError, unknown, visible
from titer.core.run import replaceable, sha256_of
from titer.evaluate import rates
from titer.models.fetch import resolve
from titer.report.card import AGAIN, read_report
from titer.report.html import ANSWERS, shown_text

MANIFEST = "manifest.json"
MADE = (1980, 1, 1, 0, 0, 0)  # date of every file in the zip, so that the same report gives the same bytes
KEPT = ("report.html", "summary.json", "results.csv", "claims.json", ANSWERS, "figures/*.svg")
NAMED, UNIT = ("model", "kind"), ("seed", "base")  # what a rate is of; the base of a study
NUMBERS = ("count", "n", "rate", "low", "high")
MOST = 2 << 30  # bytes: the largest file that is read


class Manifest(Record):
    """The list of a bundle's contents, stored in the bundle."""

    version: Literal[1] = 1
    files: dict[str, str] = Field(description="name -> sha256")
    models: dict[str, str] = Field(description="name -> key of weights, configuration and tokenizer")
    data: str = Field(description="sha256 of the prompts' file, or nothing")


class Check(Record):
    """The result of one check: what was checked, whether it holds (None: it could not be checked), and the finding in words."""

    what: str
    holds: bool | None
    said: str


def write_bundle(report: Path, file: Path) -> Manifest:
    """Packs a report's folder into a zip file. Errors: those of `read_report`; a report of an older version, which kept no answers; the
    file is there and is no bundle."""
    told = read_report(report, rated=False).summary.provenance
    if not (report / ANSWERS).is_file():
        raise TiterError(f"{report / ANSWERS} is missing", next_step=AGAIN)
    paths = sorted(path for pattern in KEPT for path in report.glob(pattern))
    manifest = Manifest(
        files={path.relative_to(report).as_posix(): sha256_of(path) for path in paths},
        models={name.removeprefix("model "): key for name, key in told.items() if name.startswith("model ")},
        data=told.get("data sha256", ""),
    )
    replaceable(file, b"PK", "bundle").parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(zipfile.ZipInfo(MANIFEST, MADE), manifest.model_dump_json(indent=1), zipfile.ZIP_DEFLATED)
        for name, path in zip(manifest.files, paths, strict=True):
            out.writestr(zipfile.ZipInfo(name, MADE), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return manifest


def verify(file: Path, models: Sequence[str] = (), data: Path | None = None) -> list[Check]:
    """Checks a bundle's files and rates and, if they are given, models and data. Errors: the file is no zip or has no manifest of Titer."""
    if file.is_dir() or not file.exists():
        what = "is a folder" if file.is_dir() else "is not there"
        raise TiterError(f"{visible(str(file), 160)} {what}", expected="a bundle", next_step="write one: titer report RUN --bundle FILE.")
    try:
        with zipfile.ZipFile(file) as held:
            manifest = build(Manifest, json.loads(_read(held, MANIFEST)), f"manifest of {file.name}")
            return [*_whole(held, manifest), _rates(held), *_models_held(manifest, models), *_data_held(manifest, data)]
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RecursionError) as error:
        told = f"{visible(str(file), 160)} is not a bundle: {visible(str(error), 160)}"
        raise TiterError(told, expected="a file of titer report RUN --bundle FILE") from None


def _read(held: zipfile.ZipFile, name: str) -> bytes:
    if held.getinfo(name).file_size > MOST:
        raise ValueError(f"{name} would be larger than {MOST} bytes")
    return held.read(name)


def _whole(held: zipfile.ZipFile, manifest: Manifest) -> Iterator[Check]:
    names = [name for name in held.namelist() if name != MANIFEST]
    if more := sorted(set(names) - set(manifest.files)) or (len(names) != len(set(names)) and ["a name that occurs twice"]):
        yield Check(what="files", holds=False, said=f"not in the manifest: {', '.join(map(str, more[:5]))}")
    for name, stated in manifest.files.items():
        there = name in names
        holds = there and hashlib.sha256(_read(held, name)).hexdigest() == stated
        yield Check(what=name, holds=holds, said=f"sha256 {stated[:16]}" if holds else "changed" if there else "missing")


def _rates(held: zipfile.ZipFile) -> Check:
    """Checks that the outcome rates follow from the answers: count, n, rate and interval of each set of each model, and of each base."""
    table = pd.read_csv(io.BytesIO(_read(held, "results.csv")), dtype=str, keep_default_na=False)
    stated = table[table["table"] == "rates"].rename(columns={"measure": "outcome", "value": "rate"})
    lines = [json.loads(line) for line in _read(held, ANSWERS).decode().splitlines() if line]
    answers = pd.DataFrame(lines, columns=[*NAMED, *UNIT, "harmful", "outcome"]).dropna(axis=1, how="all")
    keys = [name for name in (*NAMED, *UNIT) if name in answers and name.replace("kind", "set") in stated]
    if not {*NAMED} <= {*keys}:
        return Check(what="rates", holds=None, said="not counted again: no rates or no answers are kept")
    texts = answers.assign(**{name: answers[name].astype(str).map(shown_text) for name in keys})
    texts = texts.assign(kind=texts.kind.replace(_called(texts.kind, stated.set)))
    counted = pd.concat([rates(own).assign(**dict(zip(keys, place, strict=True))) for place, own in texts.groupby(keys)], ignore_index=True)
    both = stated.rename(columns={"set": "kind"}).merge(counted, on=[*keys, "outcome"], suffixes=("", " again"))
    if both.empty:
        return Check(what="rates", holds=None, said="not counted again: the answers are not from the same models as the rates")
    apart = [~np.isclose(pd.to_numeric(both[name]), both[f"{name} again"], rtol=0, atol=1e-9, equal_nan=True) for name in NUMBERS]
    if wrong := int(np.any(apart, axis=0).sum()):
        return Check(what="rates", holds=False, said=f"{wrong} of {len(both)} differ from what the answers give")
    rest = f"; {len(stated) - len(both)} others have no answers here" if len(stated) > len(both) else ""
    return Check(what="rates", holds=True, said=f"{len(both)} counted again from {len(answers)} answers{rest}")


def _called(kinds: Iterable[str], sets: Iterable[str]) -> dict[str, str]:
    """Returns how the one set whose answers have a name of their own (an audit calls `prefill` "with the answer begun") is called among the
    rates; {} if there is none, or more than one."""
    own, theirs = sorted(set(kinds) - set(sets)), sorted(set(sets) - set(kinds))
    return {own[0]: theirs[0]} if len(own) == len(theirs) == 1 else {}


def _models_held(manifest: Manifest, models: Sequence[str]) -> Iterator[Check]:
    known = {key: name for name, key in manifest.models.items()}
    for given in models:
        key = resolve(given, trusted=True).key  # `trusted` is safe here: the model is only hashed
        yield Check(what=given, holds=key in known, said=f"is {known[key]}" if key in known else "is not one of the measured models")


def _data_held(manifest: Manifest, data: Path | None) -> Iterator[Check]:
    if data is not None:
        holds = sha256_of(data) == manifest.data
        yield Check(what=str(data), holds=holds, said="is the data that was asked" if holds else "is not the data that was asked")


def as_table(claims: Sequence[Claim], folder: Path, name: str) -> pd.DataFrame:
    """Returns a table of a report by its name: `claims`, or one of those in results.csv. Errors: an unknown name; a torn results.csv."""
    if name == "claims":
        rows = [(c.name, c.statement, c.paper_value, c.value, *(c.interval or (None, None)), c.control.name, c.verdict) for c in claims]
        return pd.DataFrame(rows, columns=["name", "statement", "paper", "value", "low", "high", "control", "verdict"])
    try:
        table = pd.read_csv(folder / "results.csv", keep_default_na=False, na_values=[""])  # a model may be called NA
        own = table[table["table"] == name]
    except (OSError, ValueError, KeyError) as error:
        raise TiterError(f"{folder / 'results.csv'} cannot be read ({visible(str(error), 120)})", next_step=AGAIN) from None
    if own.empty:
        unknown("table", name, ["claims", *dict.fromkeys(table["table"])])
    return own.drop(columns="table").dropna(axis=1, how="all")


def as_latex(table: pd.DataFrame) -> str:
    """Returns a table as LaTeX (needs the package booktabs): numbers with three significant digits, every text escaped."""
    worded = table.map(lambda cell: "" if pd.isna(cell) else f"{cell:.3g}" if isinstance(cell, float) else str(cell))
    return worded.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1).to_latex(hrules=True)


def as_pdf(folder: Path) -> list[Path]:
    """Writes every figure of a report's folder as PDF beside its SVG; returns the new files."""
    import vl_convert  # noqa: PLC0415  only this needs it

    made = []
    for drawing in sorted((folder / "figures").glob("*.svg")):
        file = drawing.with_suffix(".pdf")
        file.write_bytes(vl_convert.svg_to_pdf(drawing.read_text(encoding="utf-8")))
        made.append(file)
    return made
