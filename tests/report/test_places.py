"""Where reports go: one question keeps its folder, and no question's report is written over another's."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titer.core.config import digest
from titer.core.errors import TiterError
from titer.report.places import MARK, report_folder

Asked = dict[str, object]
ONE: Asked = {"models": ["a", "b"], "data": "1"}
OTHER: Asked = {"models": ["a", "c"], "data": "1"}


def test_one_question_has_one_folder_and_another_gets_a_suffix_of_its_content(tmp_path: Path) -> None:
    assert report_folder(tmp_path, "audit-tuned", ONE) == tmp_path / "audit-tuned"
    second = report_folder(tmp_path, "audit-tuned", OTHER)
    assert second == tmp_path / f"audit-tuned-{digest(OTHER, 6)}"
    for _ in range(2):
        assert report_folder(tmp_path, "audit-tuned", dict(reversed(ONE.items()))) == tmp_path / "audit-tuned"
        assert report_folder(tmp_path, "audit-tuned", OTHER) == second
    assert json.loads((second / MARK).read_text(encoding="utf-8"))["question"] == OTHER


def test_a_question_keeps_its_folder_when_the_plain_one_becomes_free(tmp_path: Path) -> None:
    report_folder(tmp_path, "audit-tuned", ONE)
    second = report_folder(tmp_path, "audit-tuned", OTHER)
    (tmp_path / "audit-tuned" / MARK).unlink()
    (tmp_path / "audit-tuned").rmdir()
    assert report_folder(tmp_path, "audit-tuned", OTHER) == second


@pytest.mark.parametrize("mark", [None, "", "[]", "{", '{"key": 3}', "\udcff"])
def test_an_older_report_or_a_torn_mark_is_never_written_over(tmp_path: Path, mark: str | None) -> None:
    old = tmp_path / "audit-tuned"
    old.mkdir()
    (old / "report.html").write_text("old", encoding="utf-8")
    if mark is not None:
        (old / MARK).write_bytes(mark.encode("utf-8", "surrogateescape"))
    assert report_folder(tmp_path, "audit-tuned", ONE) == tmp_path / f"audit-tuned-{digest(ONE, 6)}"


def test_a_file_of_the_name_and_what_a_failed_write_left(tmp_path: Path) -> None:
    (tmp_path / "audit-file").write_text("", encoding="utf-8")
    assert report_folder(tmp_path, "audit-file", ONE).name == f"audit-file-{digest(ONE, 6)}"
    (tmp_path / "audit-torn").mkdir()
    (tmp_path / "audit-torn" / f".{MARK}.tmp").write_text("{", encoding="utf-8")
    assert report_folder(tmp_path, "audit-torn", ONE).name == "audit-torn"


def test_of_two_questions_at_once_one_alone_has_the_plain_folder(tmp_path: Path) -> None:
    """Both asked by several at once, who begin together: each question has one folder, and one of them the plain one."""
    together = threading.Barrier(8)

    def asked(question: dict[str, Any]) -> tuple[str, str]:
        together.wait()
        return digest(question, 64), report_folder(tmp_path, "a", question).name

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(asked, [ONE, OTHER] * 4))
    assert len(found) == 2
    assert {name for _, name in found} in ({"a", f"a-{digest(ONE, 6)}"}, {"a", f"a-{digest(OTHER, 6)}"})


def test_a_suffix_that_is_taken_too_grows(tmp_path: Path) -> None:
    report_folder(tmp_path, "a", OTHER)
    report_folder(tmp_path, f"a-{digest(ONE, 6)}", OTHER)  # a model of that name
    assert report_folder(tmp_path, "a", ONE).name == f"a-{digest(ONE, 12)}"
    for digits in (24, 48):
        (tmp_path / f"a-{digest(ONE, digits)}").write_text("", encoding="utf-8")
    (tmp_path / f"a-{digest(ONE, 12)}" / MARK).write_text("", encoding="utf-8")
    with pytest.raises(TiterError, match="no free folder for the report a"):
        report_folder(tmp_path, "a", ONE)


@pytest.mark.long
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 4)), max_size=12))
def test_folders_and_questions_are_one_to_one(tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, int]]) -> None:
    runs = tmp_path_factory.mktemp("runs")
    found = {(name, number): report_folder(runs, name, {"n": number}) for name, number in asked}
    assert all(report_folder(runs, name, {"n": number}) == place for (name, number), place in found.items())
    assert len(set(found.values())) == len(found)
    assert {place.name for place in found.values()} >= {name for name, _ in asked}
