"""Hub data sets and Parquet: what is asked of the library, and one clear error for whatever it answers. No network here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from titer.core.errors import TiterError
from titer.data.hub import Place, is_hub, place_of
from titer.data.sources import detected, read_text

ROWS = [{"prompt": "a", "label": "safe", "Output": None}, {"prompt": "b", "label": "unsafe", "Output": "c"}]
PARSED = (("a", False, None, None), ("b", True, "c", None))


class Table:
    """What the library returns, as far as it is used."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.to_list = lambda: rows


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, made up: `answer` is what it returns or raises, `asked` what it was asked."""
    made = ModuleType("datasets")

    def load(*given: Any, **named: Any) -> Any:
        made.asked.append((given, named))  # type: ignore[attr-defined]
        if isinstance(made.answer, Exception):  # type: ignore[attr-defined]
            raise made.answer  # type: ignore[attr-defined]
        return made.answer  # type: ignore[attr-defined]

    made.__dict__.update(__version__="4.4.1", load_dataset=load, asked=[], answer=Table(ROWS))
    monkeypatch.setitem(sys.modules, "datasets", made)
    return made


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hub:owner/name", Place("owner/name", None, None, None)),
        ("hub:owner/name:test", Place("owner/name", None, None, "test")),
        ("hub:owner/name@v1.0/x", Place("owner/name", None, "v1.0/x", None)),
        ("hub:a.b-c/d_e/main@refs/pr/1:train[:10%]", Place("a.b-c/d_e", "main", "refs/pr/1", "train[:10%]")),
    ],
)
def test_a_place_has_its_parts(library: Any, text: str, place: Place) -> None:
    assert is_hub(text)
    assert place_of(Path(text)) == place
    read_text(Path(text))
    assert library.asked == [((place.id, place.config), {"split": place.split, "revision": place.revision})]


@pytest.mark.parametrize(
    "text", ["hub:", "hub:name", "hub:a/b/c/d", "hub:a/b@", "hub:a/b:", "hub:../b", "hub:a/..", "hub:a/b c", "hub:a/b\n", "hub:\x1b/b"]
)
def test_another_form_is_refused_before_the_library_is_asked(library: Any, text: str) -> None:
    with pytest.raises(TiterError, match=r"does not name a hub data set.*hub:OWNER/NAME") as raised:
        read_text(text)
    assert str(raised.value).isprintable()
    assert not library.asked


def test_rows_of_the_hub_are_rows(library: Any) -> None:
    library.answer = {"train": Table(ROWS)}  # one split: it needs no name
    found = read_text("hub:owner/name")
    assert (found.rows, found.name) == (PARSED, "hub:owner/name")
    assert any("2 rows (1 safe, 1 unsafe)" in line for line in detected("hub:owner/name").lines())
    library.answer = Table([*ROWS[:1], {**ROWS[1], "Output": "d"}])
    assert read_text("hub:owner/name").sha256 != found.sha256
    library.answer = Table(ROWS)
    assert read_text("hub:owner/name").sha256 == found.sha256


def test_several_splits_are_named(library: Any) -> None:
    library.answer = {"train": Table(ROWS), "test": Table(ROWS)}
    with pytest.raises(TiterError, match=r"several splits: train, test.*hub:owner/name:SPLIT"):
        read_text("hub:owner/name")


def error(name: str, text: str, *bases: type[Exception]) -> Exception:
    made: Exception = type(name, bases or (Exception,), {})(text)
    return made


@pytest.mark.parametrize(
    ("raised", "word", "status"),
    [
        (error("DatasetNotFoundError", "Dataset 'o/n' doesn't exist on the Hub or cannot be accessed."), "the hub has no data set o/n", 2),
        (error("DatasetNotFoundError", "Dataset 'o/n' is a gated dataset on the Hub."), "is gated.*ask for access", 2),
        (error("GatedRepoError", "401"), "is gated.*hf auth login", 2),
        (error("OfflineModeIsEnabled", "offline", ConnectionError), "hub cannot be reached.*or give the data as a file", 1),
        (error("ConnectTimeout", "slow", error("TransportError", "").__class__), "hub cannot be reached", 1),
        (error("RuntimeError", "Dataset scripts are no longer supported, but found n.py"), "can only be made by running its own code", 2),
        (
            error("ValueError", "Config name is missing. Pick one of ['main', 'socratic']\x1b[2J"),
            "cannot be read: ValueError: Config name",
            2,
        ),
        (error("RevisionNotFoundError", "404"), "no data set o/n@v9", 2),
    ],
)
def test_what_the_library_says_is_one_clear_error(library: Any, raised: Exception, word: str, status: int) -> None:
    library.answer = raised
    with pytest.raises(TiterError, match=word) as found:
        read_text("hub:o/n@v9" if "Revision" in type(raised).__name__ else "hub:o/n")
    assert found.value.status == status
    assert str(found.value).isprintable()


def test_a_library_that_may_run_code_is_refused(library: Any) -> None:
    library.__version__ = "3.6.0"
    with pytest.raises(TiterError, match="may run a repository's own code"):
        read_text("hub:o/n")
    assert not library.asked


@pytest.mark.parametrize(("missing", "place"), [("datasets", "hub:o/n"), ("pyarrow", "x.parquet")])
def test_an_extra_that_is_absent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, place: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(TiterError, match=r"pip install 'titer\[data\]'"):
        read_text(place if place.startswith("hub:") else tmp_path / place)


def test_the_library_itself_gives_such_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    assert read_text("hub:o/n").rows == PARSED


def test_the_library_offline_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(TiterError, match="o/none"):
        read_text("hub:o/none")


def test_parquet_says_the_same_as_json_lines(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [*ROWS, {"prompt": "é", "label": "safe", "Output": "x"}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_text(tmp_path / "x.parquet").rows == read_text(tmp_path / "x.jsonl").rows
    turns = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    parquet.write_table(arrow.Table.from_pylist(turns), tmp_path / "x.parquet")
    assert read_text(tmp_path / "x.parquet", labelled=False).rows == (("a", None, "b", None),)
    assert detected(tmp_path / "x.parquet").form.reading == "chat"


def test_a_faulty_parquet_file_or_row_is_told(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    parquet.write_table(arrow.Table.from_pylist([{"prompt": "a"}, {"prompt": None}]), path)
    with pytest.raises(TiterError, match=r"x\.parquet, row 2, column prompt: None"):
        read_text(path, labelled=False)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[:8] + b"\x00" * 40 + whole[48:], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(TiterError, match=r"x\.parquet"):
            read_text(path, labelled=False)
