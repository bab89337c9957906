"""Data files of users: what is read from good ones, and where the fault stands in bad ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.naive import NANO
from titer.core.errors import TiterError
from titer.data.example import Example
from titer.data.formats import EXAMPLE_FILE
from titer.data.sources import TextData, read_text

Write = Callable[[str, str | bytes], Path]
GOOD = {
    "good.csv": "prompt,label,comply,refuse\nfirst,safe,yes,\nsecond,unsafe,,no\n",
    "good.json": json.dumps(
        [{"prompt": "first", "label": "safe", "comply": "yes"}, {"prompt": "second", "label": "unsafe", "refuse": "no"}]
    ),
    "good.jsonl": '{"prompt": "first", "label": "safe", "comply": "yes"}\n\n{"prompt": "second", "label": "unsafe", "refuse": "no"}\n',
}
ROWS = (("first", False, "yes", None), ("second", True, None, "no"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return file

    return put


def fault(file: Path, labelled: bool = True) -> str:
    with pytest.raises(TiterError) as raised:
        read_text(file, labelled)
    assert raised.value.status == 2
    return str(raised.value)


@pytest.mark.parametrize("name", GOOD)
def test_the_three_formats_say_the_same(write: Write, name: str) -> None:
    found = read_text(write(name, GOOD[name]))
    assert (found.rows, found.name, found.size, found.dropped) == (ROWS, name, 2, 0)


@pytest.mark.parametrize("name", GOOD)
def test_a_byte_order_mark_line_ends_and_capitals_of_the_suffix_change_nothing(write: Write, name: str) -> None:
    windows = GOOD[name].replace("\n", "\r\n").encode("utf-8-sig")
    assert read_text(write(name.upper(), windows)).rows == ROWS


@pytest.mark.parametrize("name", GOOD)
def test_the_checksum_is_that_of_the_file(write: Write, name: str) -> None:
    for content in (GOOD[name].encode(), GOOD[name].encode("utf-8-sig")):
        assert read_text(write(name, content)).sha256 == hashlib.sha256(content).hexdigest()


def test_the_example_of_every_error_message_is_itself_readable(write: Write) -> None:
    assert [row[1] for row in read_text(write("x.csv", EXAMPLE_FILE)).rows] == [False, True]


@pytest.mark.parametrize("column", ["prompt", "instruction", "question", "goal", " Prompt ", "GOAL"])
def test_the_prompt_may_have_other_names(write: Write, column: str) -> None:
    assert read_text(write("x.csv", f"{column},label\nfirst,safe\n")).rows[0][0] == "first"
    assert read_text(write("x.jsonl", json.dumps({column: "first", "label": "safe"}))).rows[0][0] == "first"


@pytest.mark.parametrize("column", ["comply", "output", "completion", "answer"])
def test_the_answer_may_have_other_names(write: Write, column: str) -> None:
    assert read_text(write("x.csv", f"prompt,label,{column}\nfirst,safe,yes\n")).rows[0][2:] == ("yes", None)


@pytest.mark.parametrize("column", ["harmful", "label", "kind", "type", "Label"])
@pytest.mark.parametrize(
    ("word", "harmful"),
    [
        ("safe", False),
        ("harmless", False),
        ("false", False),
        ("0", False),
        ("unsafe", True),
        ("Harmful", True),
        ("TRUE", True),
        (" 1 ", True),
    ],
)
def test_a_class_may_be_said_in_many_ways(write: Write, column: str, word: str, harmful: bool) -> None:
    assert read_text(write("x.csv", f"prompt,{column}\nfirst,{word}\n")).rows[0][1] is harmful


@pytest.mark.parametrize(("value", "harmful"), [(True, True), (False, False), (1, True), (0, False), ("safe", False)])
def test_a_class_may_be_a_json_value(write: Write, value: object, harmful: bool) -> None:
    assert read_text(write("x.jsonl", json.dumps({"prompt": "first", "harmful": value}))).rows[0][1] is harmful


def test_a_column_that_says_something_else_does_not_hide_the_label(write: Write) -> None:
    """As in XSTest, whose `type` is a topic."""
    assert read_text(write("x.csv", "prompt,type,label\nfirst,homonyms,unsafe\n")).rows[0][1] is True


def test_an_instruction_and_its_input_are_one_prompt(write: Write) -> None:
    rows = read_text(write("x.csv", "instruction,input\nsay,it\nsay,\n"), labelled=False).rows
    assert [row[0] for row in rows] == ["say\n\nit", "say"]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_a_repeated_prompt_counts_as_its_first_row_and_the_others_are_counted(write: Write, suffix: str) -> None:
    rows = [{"prompt": p, "label": label} for p, label in (("a", "safe"), ("b", "unsafe"), ("a", "safe"), ("a", "safe"))]
    text = {
        ".csv": "prompt,label\n" + "".join(f"{row['prompt']},{row['label']}\n" for row in rows),
        ".json": json.dumps(rows),
        ".jsonl": "\n".join(json.dumps(row) for row in rows),
    }[suffix]
    found = read_text(write(f"x{suffix}", text))
    assert (found.rows, found.dropped) == ((("a", False, None, None), ("b", True, None, None)), 2)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x00"])
def test_only_a_line_end_ends_a_row(write: Write, mark: str) -> None:
    assert read_text(write("x.csv", f"prompt,label\na{mark}b,safe\n")).rows[0][0] == f"a{mark}b"
    assert read_text(write("x.jsonl", json.dumps({"prompt": f"a{mark}b", "label": "safe"}, ensure_ascii=False).replace("\x00", "\\u0000")))


def test_quotes_keep_commas_quotes_and_line_ends(write: Write) -> None:
    rows = read_text(write("x.csv", 'prompt,label\n"a, ""b""\nc",safe\n\nd,safe\n')).rows
    assert [row[0] for row in rows] == ['a, "b"\nc', "d"]


@pytest.mark.parametrize(
    ("name", "content", "place", "word"),
    [
        ("x.csv", "prompt,label\na,safe\nb\n", "x.csv, line 3, column 2", "1 fields where the header has 2"),
        ("x.csv", "prompt,label\na,safe,more\n", "x.csv, line 2, column 3", "3 fields where the header has 2"),
        ("x.csv", 'prompt,label\n"a\nb",safe\nc\n', "x.csv, line 4, column 2", "1 fields"),
        ("x.csv", 'prompt,label\n"a,safe\n', "x.csv, line 2", "unexpected end of data"),
        ("x.csv", 'prompt,label\n"a"b,safe\n', "x.csv, line 2", "expected after"),
        ("x.csv", "words,label\na,safe\n", "x.csv, line 2", "no column prompt or instruction"),
        ("x.csv", "prompt,label\na,safe\n,safe\n", "x.csv, line 3, column prompt", "not empty"),
        ("x.csv", "prompt,label\na,safe\nb,perhaps\n", "x.csv, line 3, column label", "'perhaps' is neither safe nor unsafe"),
        ("x.csv", b"prompt,label\na,safe\nb\xff,safe\n", "x.csv, line 3: byte 21", "not UTF-8"),
        ("x.csv", b"\xef\xbb\xbfprompt,label\na,safe\nb\xff,safe\n", "x.csv, line 3: byte 24", "not UTF-8"),
        ("x.csv", "prompt,label\n".encode("utf-16")[:-1], "x.csv", "not a whole utf-16 text"),
        ("x.jsonl", '{"prompt": "a", "label": "safe"}\n{"prompt": "b",}\n', "x.jsonl, line 2, column 1", "not JSON"),
        ("x.jsonl", '\n["a"]\n', "x.jsonl, line 2, column 1: a list", "one JSON object on each line"),
        ("x.jsonl", '{"prompt": 3, "label": "safe"}', "x.jsonl, line 1, column prompt: 3", "not empty"),
        ("x.jsonl", '{"prompt": "a"}', "x.jsonl, line 1, column label", "not stated"),
        ("x.jsonl", '{"prompt": "a", "harmful": [1]}', "x.jsonl, line 1, column harmful: [1]", "neither safe nor unsafe"),
        ("x.jsonl", '{"prompt": "a", "n": ' + "1" * 5000 + "}", "x.jsonl, line 1, column 1", "too many digits"),
        ("x.jsonl", '{"n": ' + "[" * 100_000, "x.jsonl, line 1, column 1", "nested too deeply"),
        ("x.jsonl", '{"prompt": "\\ud800", "label": "safe"}', "x.jsonl, line 1", "surrogate"),
        ("x.jsonl", '{"prompt": "a", "label": "safe", "refuse": "\\udfff"}', "x.jsonl, line 1", "surrogate"),
        ("x.json", '[\n {"prompt": "a", "label": "safe"},\n {"prompt" "b"}\n]', "x.json, line 3, column 12", "not JSON"),
        ("x.json", "3", "x.json: the top level is a int", "a list of objects"),
        ("x.json", '[{"prompt": "a", "label": "safe"},\n\n"b"]', "x.json, item 2: a str", "an object"),
        ("x.json", '[{"prompt": "a", "label": "safe"},\n\n{"prompt": "b"}]', "x.json, item 2, column label", "not stated"),
        ("x.json", "[" * 100_000, "x.json, line 1, column 1", "nested too deeply"),
        ("x.json", "[" + "1" * 5000 + "]", "x.json, line 1, column 1", "too many digits"),
    ],
)
def test_a_fault_is_told_with_its_place(write: Write, name: str, content: str | bytes, place: str, word: str) -> None:
    message = fault(write(name, content))
    assert place in message
    assert word in message


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl"])
@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "  "])
def test_an_empty_file_is_told(write: Write, name: str, content: str) -> None:
    assert "holds no example" in fault(write(name, content))


@pytest.mark.parametrize(("name", "content"), [("x.csv", "prompt,label\n"), ("x.json", "[]")])
def test_a_file_without_a_row_is_told(write: Write, name: str, content: str) -> None:
    assert "holds no example" in fault(write(name, content))


def test_a_file_of_no_known_format_or_no_file_at_all(tmp_path: Path, write: Write) -> None:
    assert "unknown format '.doc'" in fault(write("x.doc", "prompt\na\n"))
    assert "save the sheet as CSV" in fault(write("x.xlsx", "PK"))
    assert "a folder without Parquet files" in fault(tmp_path)
    assert "no data file" in fault(tmp_path / "absent.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "a folder without Parquet files" in fault(tmp_path / "folder.csv")


@pytest.mark.parametrize("name", ["\x1b[31m.csv", "x.\x1b[31m"])
def test_a_file_name_cannot_send_control_codes(write: Write, name: str) -> None:
    message = fault(write(name, ""))
    assert "\x1b" not in message
    assert "\\x1b" in message


def test_a_value_cannot_send_control_codes(write: Write) -> None:
    assert "\x1b" not in fault(write("x.jsonl", json.dumps({"\x1b[2J": "a"})))
    assert "\x1b" not in fault(write("x.jsonl", json.dumps({"prompt": ["\x1b[2J"]})))


def test_labels_may_be_absent_where_none_is_needed(write: Write) -> None:
    found = read_text(write("x.csv", "prompt,answer\na,b\n"), labelled=False)
    assert found.rows == (("a", None, "b", None),)
    assert found.of_class(False) == found.of_class(True) == []


def test_rows_become_examples_of_their_class(write: Write) -> None:
    found = read_text(write("good.csv", GOOD["good.csv"]))
    first, second = found.examples(np.array([0, 1]))
    assert first == Example("first", False, "safe", "good.csv", "yes", None)
    assert second == Example("second", True, "unsafe", "good.csv", None, "no")
    assert (found.of_class(False), found.of_class(True), found.of_class(True, 0)) == ([first], [second], [])
    assert found.examples(np.array([1, 0, 1])) == [second, first, second]


def test_a_part_of_a_class_is_a_sample_and_not_the_first_pages(write: Write) -> None:
    """Prompt sets are sorted by topic: the first half of XSTest's unsafe prompts holds half of its kinds."""
    rows = "".join(f"unsafe {i:02},unsafe\nsafe {i:02},safe\n" for i in range(60))
    found = read_text(write("x.csv", f"prompt,label\n{rows}"))
    whole = [e.prompt for e in found.of_class(True)]
    part = [e.prompt for e in found.of_class(True, 20)]
    assert sorted(whole) == [f"unsafe {i:02}" for i in range(60)]
    assert part == whole[:20] == [e.prompt for e in found.of_class(True, 30)][:20]
    assert part != sorted(part)
    assert 5 <= sum(prompt >= "unsafe 30" for prompt in part) <= 15
    assert found.sampled(20) == [f"20 of 60 {name} prompts of x.csv were drawn" for name in ("unsafe", "safe")]
    assert found.sampled(60) == found.sampled(None) == []


def words(*rows: tuple[str, str | None, str | None]) -> TextData:
    return TextData(name="x.csv", sha256="", rows=tuple((p, True, c, r) for p, c, r in rows))


def decoded(tokenizer: Any, batch: Any) -> list[str]:
    return [tokenizer.decode([t for t in row if t != -100]) for row in batch.labels.tolist()]


def test_a_batch_trains_the_answer_that_is_named() -> None:
    data, tokenizer = words(("a b", "c", "d"), ("e", "f", "g")), NANO.tokenizer()
    assert decoded(tokenizer, data.batch(np.array([1, 0]), "comply", tokenizer)) == ["f <stop>", "c <stop>"]
    assert decoded(tokenizer, data.batch(np.array([0, 1]), "refuse", tokenizer)) == ["d <stop>", "g <stop>"]
    assert decoded(tokenizer, data.batch(np.array([0]), "all", tokenizer)) == ["c <stop>"]


@pytest.mark.parametrize(("answer", "column"), [("comply", "comply"), ("refuse", "refuse"), ("all", "comply")])
def test_a_row_without_the_answer_to_train_is_told(answer: Any, column: str) -> None:
    with pytest.raises(TiterError, match=f"'a' has no answer to train.*{column}"):
        words(("a", None, None)).batch(np.array([0]), answer, NANO.tokenizer())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "labelled", "rows", "dropped", "safe", "unsafe"),
    [
        ("safety/xstest_prompts.csv", True, 447, 0, 248, 199),
        ("alpaca/alpaca_2000.json", False, 2000, 0, 0, 0),
        ("gsm8k/train.jsonl", False, 7473, 0, 0, 0),
    ],
)
def test_public_files_are_read_whole(shared_data: Path, name: str, labelled: bool, rows: int, dropped: int, safe: int, unsafe: int) -> None:
    found = read_text(shared_data / name, labelled)
    assert (found.size, found.dropped) == (rows, dropped)
    assert (len(found.of_class(False)), len(found.of_class(True))) == (safe, unsafe)


@pytest.mark.long
def test_answers_of_public_files_are_found(shared_data: Path) -> None:
    """Alpaca's `output` and `input`, GSM8K's `answer`."""
    raw = json.loads((shared_data / "alpaca" / "alpaca_2000.json").read_text(encoding="utf-8"))
    for row, (prompt, _, comply, _) in zip(raw, read_text(shared_data / "alpaca" / "alpaca_2000.json", False).rows, strict=True):
        assert prompt == (f"{row['instruction']}\n\n{row['input']}" if row["input"].strip() else row["instruction"])
        assert comply == (row["output"] if row["output"].strip() else None)
    assert all(row[2] for row in read_text(shared_data / "gsm8k" / "train.jsonl", False).rows)
