"""Files as people have them: the same rows are the same data in every form; what is dropped is counted; nothing is guessed."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from titer.core.errors import TiterError
from titer.data.sources import detected, preferences, read_text
from titer.data.tables import named
from titer.data.turns import Turn, written

Rows = list[dict[str, Any]]
USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00\x1e"), min_size=1, max_size=12).filter(str.strip)
ROWS = st.lists(
    st.fixed_dictionaries({"prompt": TEXT, "label": st.sampled_from(["safe", "unsafe"]), "comply": TEXT}),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row["prompt"],
)


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: Rows) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    body = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows), body)
    return body.getvalue()


def columns(rows: Rows) -> bytes:
    return json.dumps({key: {str(i): row[key] for i, row in enumerate(rows)} for key in rows[0]}).encode()


FORMS: dict[str, Callable[[Rows], bytes]] = {
    "x.jsonl": lines,
    "lines.json": lines,
    "x.ndjson": lines,
    "x.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "in.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "columns.json": columns,
    "x.csv": table,
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + table(rows),
    "wide.csv": lambda rows: table(rows).decode().encode("utf-16"),
    "bare.csv": lambda rows: table(rows).decode().encode("utf-16-le"),
    "split.json": lambda rows: json.dumps(
        {"columns": list(rows[0]), "index": [*range(len(rows))], "data": [[row[key] for key in rows[0]] for row in rows]}
    ).encode(),
    "index.json": lambda rows: json.dumps({str(i): row for i, row in enumerate(rows)}).encode(),
    "tabs.csv": lambda rows: table(rows, "\t"),
    "semicolons.csv": lambda rows: table(rows, ";"),
    "x.tsv": lambda rows: table(rows, "\t"),
    "x.parquet": parquet,
    "x.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "x.csv.gz": lambda rows: gzip.compress(table(rows)),
    "x.json.xz": lambda rows: lzma.compress(json.dumps(rows).encode()),
    "x.tsv.bz2": lambda rows: bz2.compress(table(rows, "\t")),
    "x.parquet.gz": lambda rows: gzip.compress(parquet(rows)),
}


@pytest.mark.long
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS)
def test_the_same_rows_are_the_same_data_in_every_form(tmp_path: Path, rows: Rows) -> None:
    pytest.importorskip("pyarrow")
    expected = tuple((row["prompt"], row["label"] == "unsafe", row["comply"], None) for row in rows)
    for name, write in FORMS.items():
        (tmp_path / name).write_bytes(write(rows))
        assert read_text(tmp_path / name).rows == expected, name


def put(folder: Path, *rows: Any, name: str = "x.jsonl") -> Path:
    path = folder / name
    path.write_bytes(lines(list(rows)))
    return path


def wrong(path: Path | str, **how: Any) -> str:
    with pytest.raises(TiterError) as raised:
        read_text(path, **how)
    return str(raised.value)


def classes(folder: Path, names: list[str], codes: list[Any]) -> Path:
    """A Parquet file as `datasets` writes one with a column of classes."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    features = {"prompt": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    rows = pyarrow.Table.from_pylist([{"prompt": f"p{i}", "label": code} for i, code in enumerate(codes)])
    path = folder / "x.parquet"
    write_table(rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ["harmful", "harmless"],
        ["Unsafe", "Safe"],
        ["malicious", "benign"],
        ["toxic", "non-toxic"],
        ["Toxic", "not_toxic"],
        ["jailbreak", "benign"],
        ["not safe", "safe"],
        ["non-safe", "safe"],
    ],
)
def test_the_names_of_classes_decide_and_not_their_numbers(tmp_path: Path, names: list[str]) -> None:
    assert [row[1] for row in read_text(classes(tmp_path, names, [0, 1, 0])).rows] == [True, False, True]
    assert [row[1] for row in read_text(classes(tmp_path, names[::-1], [0, 1, 0])).rows] == [False, True, False]


@pytest.mark.parametrize("names", [["world", "sports"], ["0", "1"], ["LABEL_0", "LABEL_1"], ["neg", "pos"]])
def test_classes_whose_names_do_not_say_it_are_refused(tmp_path: Path, names: list[str]) -> None:
    assert "neither safe nor unsafe" in wrong(classes(tmp_path, names, [0, 1]))
    assert [row[1] for row in read_text(tmp_path / "x.parquet", labelled=False).rows] == [None, None]


@pytest.mark.parametrize("codes", [[0.0, None, 1.0], ["0", None, "1"]])
def test_a_class_may_be_numbered_in_fractions_or_digits(tmp_path: Path, codes: list[Any]) -> None:
    """A table with gaps holds fractions; what the numbers mean stands in the names alone."""
    found = read_text(classes(tmp_path, ["harmful", "harmless"], codes), labelled=False)
    assert [row[1] for row in found.rows] == [True, None, False]
    from_card = named({"label": {"names": {"0": "harmful", "1": "harmless"}}}, [{"label": 0}, {"label": 1}], "x")
    assert [row["label"] for row in from_card] == ["harmful", "harmless"]


def test_a_class_beyond_the_names_or_none(tmp_path: Path) -> None:
    assert "row 2, column label: class 2" in wrong(classes(tmp_path, ["safe", "unsafe"], [0, 2]))
    assert "not stated" in wrong(classes(tmp_path, ["safe", "unsafe"], [0, -1]))


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        (True, False),
        (1, 0),
        (1.0, 0.0),
        ("true", "false"),
        ("1", "0"),
        (1, -1),
        ("desirable", "undesirable"),
        ("chosen", "rejected"),
        ("preferred", "dispreferred"),
    ],
)
def test_unpaired_preferences_are_a_form_of_their_own(tmp_path: Path, yes: Any, no: Any) -> None:
    path = put(
        tmp_path,
        {"prompt": "a", "completion": "b", "label": yes},
        {"prompt": "a", "completion": "c", "label": no},
        {"prompt": "d", "completion": "e", "label": no},
    )
    assert "label says which completions are wanted" in wrong(path)
    found = read_text(path, labelled=False)
    assert found.rows == (("a", None, "b", None),)
    assert found.notes == ["2 rows of x.jsonl whose completion is not wanted were left out"]
    assert read_text(path, False, need="prompts").rows == (("a", None, "b", None), ("d", None, None, None))
    assert "unpaired preferences" in detected(path).lines()[0]
    assert {row[1] for row in read_text(f"unsafe:{path}").rows} == {True}


def test_unpaired_preferences_in_other_columns(tmp_path: Path) -> None:
    for row in ({"messages": [USER, BOT]}, {"prompt": "a", "response": "b"}, {"prompt": [USER], "completion": [BOT]}):
        path = put(tmp_path, {**row, "label": True}, {**row, "label": False})
        assert "label says which completions are wanted" in wrong(path)
        found = read_text(path, labelled=False)
        assert (found.rows, found.left_out) == ((("a", None, "b", None),), {"whose completion is not wanted": 1})
    assert read_text(put(tmp_path, {"prompt": "a", "label": True})).rows == (("a", True, None, None),)  # no answer: it is of the prompt


def test_a_tag_of_wish_stands_beside_a_class(tmp_path: Path) -> None:
    turns = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    path = put(tmp_path, {**turns, "kto_tag": True, "label": "unsafe"}, {**turns, "kto_tag": False, "label": "unsafe"})
    assert read_text(path, labelled=False).rows == (("a", True, "b", None),)
    assert ("kto_tag", "whether the completion is wanted") in detected(path).form.used
    assert {row[1] for row in read_text(path).rows} == {True}


@pytest.mark.parametrize("column", ["desirable", "is_preferred", "accepted"])
def test_a_column_whose_name_says_which_completions_are_wanted(tmp_path: Path, column: str) -> None:
    path = put(tmp_path, {"prompt": "a", "response": "b", column: True}, {"prompt": "a", "response": "c", column: False})
    found = read_text(path, labelled=False)
    assert (found.rows, found.left_out) == ((("a", None, "b", None),), {"whose completion is not wanted": 1})
    assert read_text(put(tmp_path, {"prompt": "a", "label": "unsafe", column: True})).rows == (("a", True, None, None),)


def test_numbers_that_count_as_classes_are_told(tmp_path: Path) -> None:
    found = read_text(put(tmp_path, {"prompt": "a", "label": 1}, {"prompt": "b", "label": 0}))
    assert found.notes == ["x.jsonl has numbers or true/false in label: 1 and true count as unsafe, 0 and false as safe"]
    assert read_text(put(tmp_path, {"prompt": "a", "harmful": 1}, {"prompt": "b", "is_harmful": "no"})).notes == []


@pytest.mark.parametrize("column", ["is_unsafe", "unsafe", "toxic", "is_toxic", "jailbreak", "is_safe", "safe", "is_benign", "harmless"])
@pytest.mark.parametrize(("yes", "no"), [(True, False), (1, 0), ("True", "False"), ("yes", "no")])
def test_a_column_whose_name_says_what_true_means(tmp_path: Path, column: str, yes: Any, no: Any) -> None:
    harm = column not in ("is_safe", "safe", "is_benign", "harmless")
    found = read_text(put(tmp_path, {"prompt": "a", column: yes}, {"prompt": "b", column: no}))
    assert ([row[1] for row in found.rows], found.notes) == ([harm, not harm], [])
    rows = [{"prompt": f"caf{letter} now", "label": label} for letter, label in (("\u00e9", "safe"), ("e\u0301", "unsafe"))]
    assert "is safe in one row and unsafe in another" in wrong(put(tmp_path, *rows))
    assert "safe and unsafe at once" in wrong(put(tmp_path, {"prompt": "a", column: yes, "label": "safe" if harm else "unsafe"}))


@pytest.mark.parametrize("column", ["is_safe", "unsafe", "toxic", "jailbreak", "is_unsafe", "is_harmful"])
@pytest.mark.parametrize("answer", [{"response": "b"}, {"chosen": "b", "rejected": "c"}])
def test_beside_an_answer_such_a_column_may_be_of_the_answer(tmp_path: Path, column: str, answer: dict[str, str]) -> None:
    path = put(tmp_path, {"prompt": "a", **answer, column: True}, {"prompt": "d", **answer, column: False})
    assert f"column {column}: safe or unsafe is not stated (the row has an answer" in wrong(path)
    assert {row[1] for row in read_text(path, labelled=False).rows} == {None}
    assert [row[1] for row in read_text(put(tmp_path, {"prompt": "a", **answer, column: True, "label": "unsafe"})).rows] == [True]


def test_a_score_and_a_word_of_neither_are_no_class(tmp_path: Path) -> None:
    assert "0.37 is neither safe nor unsafe" in wrong(put(tmp_path, {"prompt": "a", "toxic": 0.37}))
    assert "'maybe' is neither safe nor unsafe" in wrong(put(tmp_path, {"prompt": "a", "is_safe": "maybe"}))


def test_words_beside_a_completion_are_classes_as_ever(tmp_path: Path) -> None:
    path = put(tmp_path, {"prompt": "a", "completion": "b", "label": "unsafe"}, {"prompt": "c", "completion": "d", "label": "safe"})
    assert read_text(path).rows == (("a", True, "b", None), ("c", False, "d", None))


SYSTEM = written((Turn("system", "s"), Turn("user", "a")))
EARLIER = written([Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")])
HH = "\n\nHuman: a\n\nAssistant: {}"


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": [USER], "completion": [BOT]}, "a", "b"),
        ({"prompt": "a", "completion": [BOT]}, "a", "b"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, BOT]}, "a", "b"),
        ({"messages": [{"role": "developer", "content": "s"}, USER, BOT]}, SYSTEM, "b"),
        ({"messages": [USER, BOT], "system": "s"}, SYSTEM, "b"),
        ({"prompt": "a", "comply": "b", "system": "s"}, SYSTEM, "b"),
        ({"system_prompt": "s", "question": "a", "response": "b"}, SYSTEM, "b"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "system": "s"}, SYSTEM, "b"),
        ({"instruction": "a", "context": "more", "response": "b", "category": "x"}, "a\n\nmore", "b"),
        ({"conversations": ["a", "b"], "source": "lima"}, "a", "b"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}, SYSTEM, "b"),
        ({"contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "b"}]}]}, "a", "b"),
        ({"system": [{"type": "text", "text": "s"}], "messages": [USER, BOT]}, SYSTEM, "b"),
        ({"systemInstruction": {"parts": [{"text": "s"}]}, "contents": [{"role": "user", "parts": [{"text": "a"}]}]}, SYSTEM, None),
        ({"chosen": HH.format("b"), "rejected": HH.format("c")}, "a", "b"),
        ({"prompt": HH.format("").strip(" "), "chosen": "b", "rejected": "c"}, "a", "b"),
        ({"prompt": "a", "chosen": [USER, BOT], "rejected": [USER, BOT], "messages": [USER, BOT]}, "a", "b"),
        ({"prompt": "other", "messages": [USER, BOT]}, "a", "b"),
        ({"messages": [USER, BOT, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 0}]}, "a", "b"),
        ({"messages": [USER, BOT, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "train": False}]}, "a", "b"),
        ({"messages": [USER, {**BOT, "loss": True}, {"role": "user", "content": "c"}, {**BOT, "loss": False}]}, "a", "b"),
        ({"messages": [{"role": "system", "content": ""}, USER, BOT]}, "a", "b"),
        ({"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]}, EARLIER, "d"),
        ({"instruction": "c", "output": "d", "history": [USER, BOT]}, EARLIER, "d"),
        ({"instruction": "a", "output": "b", "history": []}, "a", "b"),
        ({"prompt": json.dumps([USER]), "completion": json.dumps([BOT])}, "a", "b"),
        ({"messages": str([USER, BOT])}, "a", "b"),
        ({"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}, "a", "b"),
        ({"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}, "a", "b"),
        ({"messages": str(np.array([USER, BOT]))}, "a", "b"),  # as pandas writes a column that it read from Parquet
        ({"input": "a", "output": "b"}, "a", "b"),
        ({"messages": [USER, {"role": "assistant", "content": None, "refusal": "b"}]}, "a", "b"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "b"}]}]}, "a", "b"),
        ({"text": "a"}, "a", None),
    ],
)
def test_the_forms_that_trainers_take(tmp_path: Path, row: dict[str, Any], prompt: str, answer: str | None) -> None:
    assert read_text(put(tmp_path, row), labelled=False).rows == ((prompt, None, answer, None),)


@pytest.mark.parametrize("blank", ["", " ", None])
def test_an_empty_last_answer_is_the_place_of_the_answer_where_prompts_are_wanted(tmp_path: Path, blank: str | None) -> None:
    path = put(tmp_path, {"messages": [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": blank}], "label": "safe"})
    assert read_text(path).rows == ((SYSTEM, False, None, None),)
    assert "turn 3" in wrong(path, labelled=False)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [USER, {**BOT, "weight": 0}]}, "whose answers all have the weight 0"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, BOT]}, "with turns of tools"),
        ({"messages": [USER, {"role": "function", "content": "3"}, BOT]}, "with turns of tools"),
        ({"image": "a.png", "messages": [USER, BOT]}, "with an image, a video or a sound"),
        (
            {"messages": [{**USER, "content": [{"type": "image_url"}, {"type": "text", "text": "a"}]}, BOT]},
            "with an image, a video or a sound",
        ),
        ({"messages": [{**USER, "content": [{"type": "input_audio"}]}, BOT]}, "with an image, a video or a sound"),
    ],
)
def test_rows_of_no_use_are_left_out_counted_and_told(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    found = read_text(put(tmp_path, {"messages": [USER, BOT]}, row, row), labelled=False)
    assert (len(found.rows), found.left_out) == (1, {why: 2})
    assert found.notes == [f"2 rows of x.jsonl {why} were left out"]
    assert f"holds no example that can be used (1 rows {why})" in wrong(put(tmp_path, row), labelled=False)


def test_what_of_turns_is_not_read_and_whose_class_a_label_is_are_told(tmp_path: Path) -> None:
    thought = put(tmp_path, {"messages": [{**USER, "name": None}, {**BOT, "reasoning_content": "hm"}]})
    assert read_text(thought, labelled=False).notes == ["x.jsonl: in its turns, reasoning_content is not read"]
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}]
    found = read_text(put(tmp_path, {"messages": [USER, {**BOT, "content": parts}]}), labelled=False)
    assert (found.rows, found.notes) == ((("a", None, "b", None),), ["x.jsonl: in its turns, thinking is not read"])
    beside = read_text(put(tmp_path, {"prompt": "a", "response": "b", "label": "unsafe"}))
    assert beside.notes == ["x.jsonl: label counts as the class of the prompt, not of the answer beside it"]
    assert read_text(put(tmp_path, {"prompt": "a", "comply": "b", "label": "unsafe"})).notes == []
    for held in ("x", [USER], ["a", "b"]):
        assert "history: " in wrong(put(tmp_path, {"instruction": "a", "output": "b", "history": held}), labelled=False)


def test_pairs_whose_prompts_differ_are_left_out_of_transcripts(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        {"chosen": HH.format("b"), "rejected": HH.format("c")},
        {"chosen": HH.format("b"), "rejected": "\n\nHuman: z\n\nAssistant: c"},
        {"chosen": HH.format("b"), "rejected": HH.format("").rstrip()},
    )
    good, bad = preferences(path)
    assert (good.rows, bad.rows) == ((("a", None, "b", None),), (("a", None, "c", None),))
    assert good.left_out == {"whose two answers follow different prompts": 1, "with an empty turn": 1}


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        {"input": {"messages": [USER], "tools": []}, "preferred_output": [BOT], "non_preferred_output": [{**BOT, "content": "c"}]},
    ],
)
def test_pairs_in_the_forms_of_trainers(tmp_path: Path, row: dict[str, Any]) -> None:
    path = put(tmp_path, {**row, "harmful": True})
    good, bad = preferences(path)
    assert (good.rows, bad.rows) == ((("a", True, "b", None),), (("a", True, "c", None),))
    assert read_text(path, True).rows == (("a", True, "c", "b"),)


def test_what_is_needed_decides_between_readings_and_an_option_overrides(tmp_path: Path) -> None:
    pair = {"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "c"}]}
    path = put(tmp_path, {"prompt": "a", **pair, "messages": [USER, {**BOT, "content": "d"}]})
    assert [detected(path, need=need).form.reading for need in ("pairs", "answers", "prompts")] == ["preference", "chat", "preference"]  # type: ignore[arg-type]
    assert read_text(path, False).rows == (("a", None, "d", None),)
    assert preferences(path)[1].rows == (("a", None, "c", None),)
    assert read_text(path, False, reading="preference").rows == (("a", None, "b", None),)
    assert "it could be read as preference (chosen, prompt, rejected)" in read_text(path, False).notes[0]


def test_a_prompt_that_is_safe_and_unsafe_is_an_error(tmp_path: Path) -> None:
    assert "'a' is safe in one row and unsafe in another" in wrong(
        put(tmp_path, {"prompt": "a", "label": "safe"}, {"prompt": "a", "label": "unsafe"})
    )
    rows = [{"prompt": f"caf{letter} now", "label": label} for letter, label in (("\u00e9", "safe"), ("e\u0301", "unsafe"))]
    assert "is safe in one row and unsafe in another" in wrong(put(tmp_path, *rows))
    assert "safe and unsafe at once" in wrong(put(tmp_path, {"prompt": "a", "label": "safe", "harmful": True}))


def test_prompts_with_two_labels_that_differ_in_capitals_alone_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": text, "label": label} for text, label in (("Tell me.", "safe"), ("tell  me", "unsafe"), ("tell us", "unsafe"))]
    assert read_text(put(tmp_path, *rows)).notes == [
        "1 prompts of x.jsonl have the other label than a prompt that differs in capitals, spaces or punctuation alone, such as 'tell  me'"
    ]
    systems = [{"system": system, "prompt": "Tell me.", "label": label} for system, label in (("s", "safe"), ("t", "unsafe"))]
    assert read_text(put(tmp_path, *systems)).notes == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "prompt,label,Prompt\na,safe,b\n", "line 1: there are two columns 'prompt'"),
        ("x.csv", "prompt,label\na,safe\nprompt,label\nb,unsafe\n", "line 3: the header is repeated"),
        ("x.jsonl", '{"prompt": "a", "Prompt ": "b"}\n', "line 1: there are two columns 'prompt'"),
        ("x.jsonl", '{"prompt": "a", "label": "safe", "label": "unsafe"}\n', "line 1: there are two columns 'label'"),
        ("x.csv", "prompt,label\na,2.0\n", "column label: '2.0' is neither safe nor unsafe"),
        ("x.csv", "prompt,label\na,\n", "column label: safe or unsafe is not stated"),
        ("x.txt", "a\n\nb\n", "x.txt, line 1, column label: safe or unsafe is not stated"),
        ("x.jsonl", '{"message_id": "1", "parent_id": null, "text": "a", "role": "prompter"}\n', "one row for each message"),
        ("x.json", '{"a": [{"prompt": "a"}], "b": [{"prompt": "b"}]}', "x.json has several lists of objects: a, b"),
        ("x.jsonl", '{"messages": [{"role": "user", "content": [{"type": "file"}]}]}\n', "no text ('file')"),
        ("x.jsonl", "{'prompt': 'a', 'label': 'safe'}\n", "json.dumps"),
        ("x.csv", "prompt,class\na,unsafe\n", "call the column class label"),
        ("x.csv", "prompt,label\na\0b\0c\0,unsafe\n", "every other character is a NUL"),
        ("x.txt", "a\tsafe\nb\tunsafe\n", "each line has a tab, as in a table"),
        ("x.jsonl.gz", "not packed", "not a whole .gz file"),
        ("x.pkl", "", "a pickle runs code"),
    ],
)
def test_what_could_mislead_is_refused_with_its_place(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    assert words in wrong(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.txt", "prompt\tlabel\na, a\tsafe\nb b\tunsafe\n"),
        ("x.txt", '"prompt";"label"\n"a, a";safe\nb b;unsafe\n'),
        ("x.txt", 'prompt,label\n"a, a",safe\nb b,unsafe\n'),
        ("x.csv", "prompt|label\na, a|safe\nb b|unsafe\n"),
        ("x.csv", 'prompt,label\n"a, a",safe\n,\nb b,unsafe\n , \n'),
    ],
)
def test_a_table_is_read_under_another_suffix_or_mark_and_empty_rows_are_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert [row[:2] for row in read_text(tmp_path / name).rows] == [("a, a", False), ("b b", True)]


def test_lines_of_text_may_hold_a_tab_and_stand_below_a_name(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("prompt\na, a\nb\tb\n")
    assert [row[0] for row in read_text(tmp_path / "x.txt", labelled=False).rows] == ["a, a", "b\tb"]


@pytest.mark.parametrize(
    "bad",
    [
        {"messages": None},
        {"messages": []},
        {"messages": [{"role": "user", "content": "z"}, {"role": "assistant", "content": ""}]},
        {"messages": [{"role": "user", "content": "z"}, {"role": "user", "content": "y"}, {"role": "assistant", "content": "v"}]},
        {"messages": [{"role": "narrator", "content": "z"}, {"role": "assistant", "content": "v"}]},
        {"messages": [{"role": "assistant", "content": "v"}]},
    ],
)
def test_one_faulty_row_of_many_is_left_out_and_told_and_more_are_an_error(tmp_path: Path, bad: dict[str, Any]) -> None:
    good = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(9)]
    data = read_text(put(tmp_path, *good, bad), labelled=False)
    assert data.size == 9
    assert "1 rows of " in data.notes[0]
    assert "line 10, column messages" in data.notes[0]
    with pytest.raises(TiterError, match="line 9, column messages"):
        read_text(put(tmp_path, *good[:8], bad), labelled=False)


def test_numbers_as_pandas_leaves_them_and_long_fields(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f'prompt,label\n"{"a" * 150_000}",1.0\nb,0.0\n')
    assert [row[1] for row in read_text(tmp_path / "x.csv").rows] == [True, False]
    (tmp_path / "x.txt").write_text("a\r\n\r\nb")
    assert read_text(tmp_path / "x.txt", labelled=False).rows == (("a", None, None, None), ("b", None, None, None))
    assert [row[1] for row in read_text(f"safe:{tmp_path / 'x.txt'}").rows] == [False, False]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "sep=;\r\nprompt;label\r\na, b;safe\r\nc;unsafe\r\n"),
        ("x.csv", '"sep=\t"\nprompt\tlabel\na, b\tfalse\nc\ttrue\n'),
        ("x.json", '{"prompt": ["a, b", "c"], "label": ["safe", "unsafe"]}'),
    ],
)
def test_tables_as_programs_write_them(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_text(tmp_path / name).rows == (("a, b", False, None, None), ("c", True, None, None))


def test_a_table_of_one_column_is_no_conversation(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"prompt": ["a", "b", "c"]}')
    assert [row[0] for row in read_text(tmp_path / "x.json", labelled=False).rows] == ["a", "b", "c"]


def test_a_folder_that_datasets_wrote(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.Features({"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["harmful", "harmless"])})
    one = datasets.Dataset.from_dict({"prompt": ["a", "b"], "label": [0, 1]}, features=names)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one}).save_to_disk(tmp_path / "split")
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "splits")
    (tmp_path / "tables").mkdir()
    one.to_parquet(tmp_path / "tables" / "train-00000-of-00001.parquet")
    expected = (("a", True, None, None), ("b", False, None, None))
    for place in ("one", "split", "splits/test", "tables"):
        assert read_text(tmp_path / place).rows == expected, place
    assert "splits has several parts: test, train" in wrong(tmp_path / "splits")
    one.to_parquet(tmp_path / "tables" / "test-00000-of-00001.parquet")
    assert "expected: one of them" in wrong(tmp_path / "tables").lower()
