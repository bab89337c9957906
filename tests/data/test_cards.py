"""A data set's card beside a file names the classes that the file numbers; a file that is not what its name says is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from titer.core.errors import TiterError
from titer.data.sources import preferences, read_text

FEATURES = (
    "dataset_info:\n{}  features:\n  - name: Label\n    dtype:\n      class_label:\n        names:\n          '0': {}\n          '1': {}\n"
)
ROWS = "prompt,label\na,0\nb,1\n"


def readme(*names: str, config: str = "") -> str:
    return f"---\nlicense: mit\n{FEATURES.format(config and f'  config_name: {config}' + chr(10), *names)}---\n# A data set\n"


@pytest.mark.parametrize("place", ["x.csv", "data/x.csv", "en/data/x.csv"])
def test_the_card_beside_a_file_says_what_its_numbers_mean(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ROWS)
    assert [row[1] for row in read_text(path).rows] == [False, True]
    (tmp_path / "README.md").write_text(readme("unsafe", "safe"))
    found = read_text(path)
    assert ([row[1] for row in found.rows], found.notes) == ([True, False], ["x.csv: README.md names the classes of label"])
    (tmp_path / "README.md").write_text(readme("world", "sports"))
    with pytest.raises(TiterError, match="neither safe nor unsafe"):
        read_text(path)


def test_older_cards_and_folders_and_files_that_have_the_names(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    (tmp_path / "data").mkdir()
    write_table(
        pyarrow.Table.from_pylist([{"prompt": "a", "label": 0}, {"prompt": "b", "label": 1}]), tmp_path / "data/train-0-of-1.parquet"
    )
    label = {"names": ["unsafe", "safe"], "_type": "ClassLabel"}
    (tmp_path / "dataset_infos.json").write_text(json.dumps({"default": {"features": {"prompt": {"dtype": "string"}, "label": label}}}))
    assert [row[1] for row in read_text(tmp_path).rows] == [True, False]
    (tmp_path / "words.csv").write_text("prompt,label\na,safe\nb,unsafe\n")
    found = read_text(tmp_path / "words.csv")
    assert ([row[1] for row in found.rows], found.notes) == ([False, True], [])


def test_of_several_configurations_the_one_in_the_path_counts(tmp_path: Path) -> None:
    one, other = ({"features": {"label": {"names": names}}} for names in (["unsafe", "safe"], ["safe", "unsafe"]))
    (tmp_path / "dataset_infos.json").write_text(json.dumps({"one": one, "other": other}))
    for name, said in (("one", [True, False]), ("other", [False, True]), ("third", [False, True])):
        (tmp_path / f"{name}.csv").write_text(ROWS)
        assert [row[1] for row in read_text(tmp_path / f"{name}.csv").rows] == said
    assert "has numbers" in read_text(tmp_path / "third.csv").notes[0]  # the card does not tell, so what the numbers count as is told


@pytest.mark.parametrize("text", ["# No front matter\n", "---\n[\n---\n", "---\ndataset_info: 3\n---\n", "\0", ""])
def test_a_readme_of_another_kind_changes_nothing(tmp_path: Path, text: str) -> None:
    for name in ("README.md", "dataset_infos.json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "x.csv").write_text(ROWS)
    assert [row[1] for row in read_text(tmp_path / "x.csv").rows] == [False, True]


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "git lfs pull"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "git lfs pull"),
        ("x.txt", b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "is a web page"),
        ("x.csv", gzip.compress(ROWS.encode(), mtime=0), "call it x.csv.gz"),
        ("x.csv", b"PK\x03\x04\x14\x00", "a zip archive or a spreadsheet"),
        ("x.jsonl", b"PAR1\x15", "is Parquet, which its name does not say"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told(tmp_path: Path, name: str, body: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(TiterError) as raised:
        read_text(tmp_path / name, labelled=False)
    assert words in str(raised.value)


def test_a_file_without_pairs_is_told_with_its_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompt,response_1,response_2\na,b,c\n")
    with pytest.raises(TiterError, match=r"x\.csv has no pairs of answers; its columns are prompt, response_1, response_2"):
        preferences(tmp_path / "x.csv")
