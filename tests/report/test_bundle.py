"""A report for others: the bundle that can be checked, and every way in which a changed one is found out; tables; figures."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import llama
from tests.report.conftest import hostile_report
from titer import api
from titer.core.errors import TiterError
from titer.core.run import replaceable
from titer.data.world import World
from titer.evaluate import rates
from titer.report import bundle
from titer.report.html import write_report

LETTERS = "abcdefghijklmnop"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit's report in runs/, its two models, its data and its bundle."""
    folder, world = tmp_path_factory.mktemp("bundle"), World(seed=1)
    for seed, name in enumerate(("m", "n")):
        llama(world, seed).save(folder / name)
    rows = [f"{LETTERS[i]} {LETTERS[15 - i]},{'unsafe' if i % 2 else 'safe'}" for i in range(16)]
    (folder / "d.csv").write_text("prompt,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    names = [str(folder / name) for name in ("m", "n")]
    api.audit(*names, data=folder / "d.csv", runs=folder / "runs", max_new_tokens=2, no_why=True, progress=False)
    api.bundle("audit-n", folder / "b.zip", folder / "runs")
    return folder


def changed(made: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes | None]) -> Path:
    """The bundle with one file changed, or without it; its manifest is told the new hash where it is still there."""
    with zipfile.ZipFile(made / "b.zip") as held:
        files = {one: held.read(one) for one in held.namelist()}
    new = change(files.pop(name))
    if new is not None:
        files[name] = new
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as out:
        for one, text in files.items():
            out.writestr(one, text)
    return tmp_path / "c.zip"


def rehashed(file: Path) -> Path:
    """The manifest as a forger writes it: of the files as they are."""
    with zipfile.ZipFile(file) as held:
        files = {one: held.read(one) for one in held.namelist()}
    manifest = json.loads(files.pop("manifest.json"))
    manifest["files"] = {one: hashlib.sha256(text).hexdigest() for one, text in files.items()}
    with zipfile.ZipFile(file, "w") as out:
        for one, text in {"manifest.json": json.dumps(manifest).encode(), **files}.items():
            out.writestr(one, text)
    return file


def failing(found: list[bundle.Check]) -> list[str]:
    return [one.what for one in found if one.holds is False]


@pytest.mark.long
def test_it_holds_with_its_models_and_data_and_says_the_same_bytes_again(made: Path, tmp_path: Path) -> None:
    found = api.verify(made / "b.zip", str(made / "m"), str(made / "n"), data=made / "d.csv")
    assert failing(found) == []
    said = {one.what: one.said for one in found}
    assert said[str(made / "n")] == "is n"
    assert said["rates"] == "42 counted again from 48 answers"  # 8 safe, 8 unsafe, 8 begun, of two models
    assert {"answers.jsonl", "claims.json", "results.csv", "report.html", "summary.json"} < set(said)
    api.bundle("audit-n", tmp_path / "again.zip", made / "runs")
    assert (tmp_path / "again.zip").read_bytes() == (made / "b.zip").read_bytes()


@pytest.mark.long
def test_another_model_or_other_data_is_told(made: Path, tmp_path: Path) -> None:
    llama(World(seed=1), 7).save(tmp_path / "other")
    (tmp_path / "d.csv").write_text("prompt,label\n")
    found = api.verify(made / "b.zip", str(tmp_path / "other"), data=tmp_path / "d.csv")
    assert failing(found) == [str(tmp_path / "other"), str(tmp_path / "d.csv")]


def test_a_changed_a_missing_and_a_further_file_are_told(made: Path, tmp_path: Path) -> None:
    assert failing(api.verify(changed(made, tmp_path, "report.html", lambda text: text + b" "))) == ["report.html"]
    assert failing(api.verify(changed(made, tmp_path, "claims.json", lambda _: None))) == ["claims.json"]
    more = changed(made, tmp_path, "claims.json", lambda text: text)
    with zipfile.ZipFile(more, "a") as out:
        out.writestr("more.txt", "x")
    assert failing(api.verify(more)) == ["files"]


@pytest.mark.parametrize("forged", ["count", "n", "rate", "high", "names"])
def test_rates_that_do_not_follow_from_the_answers_are_found_though_every_hash_fits(made: Path, tmp_path: Path, forged: str) -> None:
    def kinder(text: bytes) -> bytes:
        table = pd.read_csv(io.BytesIO(text))
        row = table.index[(table["table"] == "rates") & (table["count"] > 0)][0]
        if forged == "names":
            table["set"] = table["set"].replace({"safe": "unsafe", "unsafe": "safe"})
        else:
            table.loc[row, {"rate": "value"}.get(forged, forged)] /= 2
        return table.to_csv(index=False).encode()

    assert failing(api.verify(rehashed(changed(made, tmp_path, "results.csv", kinder)))) == ["rates"]


def test_a_left_out_answer_is_found(made: Path, tmp_path: Path) -> None:
    fewer = rehashed(changed(made, tmp_path, "answers.jsonl", lambda text: b"\n".join(text.splitlines()[1:])))
    assert failing(api.verify(fewer)) == ["rates"]


def test_the_rates_of_a_study_are_counted_again_base_by_base(tmp_path: Path) -> None:
    outcomes = [(0, "refused"), (0, "refused"), (0, "refused"), (0, "partial"), (1, "complied"), (1, "cut_in_thought")]
    same = {"model": "m", "kind": "unsafe", "harmful": True, "prompt": "p", "completion": ""}
    answers = pd.DataFrame([{**same, "outcome": outcome, "seed": seed} for seed, outcome in outcomes])
    own = [
        rates(part).rename(columns={"kind": "set"}).assign(model="m", seed=seed, table="rates") for seed, part in answers.groupby("seed")
    ]
    results = pd.concat([*own, own[0].assign(model="not asked")], ignore_index=True)
    write_report(replace(hostile_report(), results=results, samples=answers), tmp_path / "runs" / "s")
    api.bundle("s", tmp_path / "s.zip", tmp_path / "runs")
    said = {one.what: one for one in api.verify(tmp_path / "s.zip")}["rates"]
    assert (said.holds, said.said) == (True, "14 counted again from 6 answers; 7 others have no answers here")


@pytest.mark.parametrize("text", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 40])
def test_what_is_no_bundle_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(text)
    with pytest.raises(TiterError, match="is not a bundle"):
        api.verify(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as out:
        out.writestr("a", "b")
    with pytest.raises(TiterError, match="is not a bundle"):
        api.verify(tmp_path / "x.zip")


def test_a_file_of_the_users_own_is_not_overwritten(tmp_path: Path) -> None:
    for name, held in (("d.csv", "prompt,label\n"), ("b.zip", ""), ("new/b.zip", None)):
        if held is not None:
            (tmp_path / name).write_text(held)
        if held:
            with pytest.raises(TiterError, match="is there, and is no bundle: it would be lost"):
                replaceable(tmp_path / name, b"PK", "bundle")
        else:
            assert replaceable(tmp_path / name, b"PK", "bundle") == tmp_path / name
    assert (tmp_path / "d.csv").read_text() == "prompt,label\n"
    with pytest.raises(TiterError, match="is there"):
        replaceable(tmp_path, b"PK", "bundle")
    for place, said in ((tmp_path, "is a folder"), (tmp_path / "none.zip", "is not there")):
        with pytest.raises(TiterError, match=f"{said}.*--bundle FILE"):
            api.verify(place)


@pytest.mark.long
def test_tables_for_a_paper(tmp_path: Path) -> None:
    report = hostile_report()
    rates = report.results.rename(columns={"kind": "set", "outcome": "measure", "rate": "value"}).assign(table="rates")
    write_report(replace(report, results=rates), tmp_path)
    told = api.report(tmp_path)
    assert len(told.table("rates")) == len(rates)
    claims = told.table("claims")
    assert list(claims.verdict) == ["supported", "not supported", "inconclusive", "inconclusive", "not testable"]
    assert claims.loc[0, "low"] < claims.loc[0, "value"] < claims.loc[0, "high"]
    latex = bundle.as_latex(pd.DataFrame({"a_b": ["50 % & $x$ \\input{y}", None], "v": [0.123456, float("nan")]}))
    assert "a\\_b & v" in latex
    assert "50 \\% \\& \\$x\\$ \\textbackslash input\\{y\\} & 0.123" in latex
    assert "nan" not in latex
    with pytest.raises(TiterError, match="unknown table"):
        told.table("claim")
    write_report(replace(report, results=rates.assign(model="NA")), tmp_path)
    assert set(told.table("rates").model) == {"NA"}
    for torn in (b"", b"null", b"layer\xe9"):
        (tmp_path / "results.csv").write_bytes(torn)
        with pytest.raises(TiterError, match="cannot be read"):
            told.table("rates")


def test_figures_as_pdf(made: Path) -> None:
    files = bundle.as_pdf(made / "runs" / "audit-n")
    assert files
    assert all(file.read_bytes().startswith(b"%PDF") for file in files)
