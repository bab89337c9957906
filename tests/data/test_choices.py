"""Multiple-choice files: every form of them is read alike, and an answer that is none is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from titer.core.errors import TiterError
from titer.data.choices import CHOICES, Question, read_choices

ONE = Question("What rises?", ("stone", "bread", "iron"), 1)


def put(folder: Path, row: object) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps(row if isinstance(row, list) else [row]))
    return path


@pytest.mark.parametrize("answer", ["B", "b", " B ", 1, "1", 1.0, "1.0"])
@pytest.mark.parametrize(
    "options",
    [
        {"choices": ONE.options},
        {"Options": ONE.options},
        {"choices": json.dumps(ONE.options)},
        {"choices": str(list(ONE.options))},  # as pandas writes a list
        dict(zip("ABC", ONE.options, strict=True)),
    ],
)
def test_the_forms_say_the_same(tmp_path: Path, options: dict[str, Any], answer: object) -> None:
    assert read_choices(put(tmp_path, {"question": " What rises?", **options, "answer": answer})).questions == (ONE,)


@pytest.mark.parametrize(
    ("row", "text", "right"),
    [
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}, "q", 1),  # ARC, CommonsenseQA
        ({"question_stem": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}, "q", 0),  # OpenBookQA, older ARC
        ({"ctx": "q", "endings": ["x", "y"], "label": "1"}, "q", 1),  # HellaSwag
        ({"goal": "q", "sol1": "x", "sol2": "y", "label": 0}, "q", 0),  # PIQA
        ({"sentence": "q", "option1": "x", "option2": "y", "answer": "2"}, "q", 1),  # WinoGrande
        ({"question": "q", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 3}, "q", 3),  # MedMCQA
        ({"article": "p", "question": "q", "options": ["x", "y"], "answer": "A"}, "p\n\nq", 0),  # RACE
        ({"question": "q", "choices": ["x", "y"], "answer": "y"}, "q", 1),
        ({"question": "q", "choices": [1, 2, 3], "answer": 1}, "q", 1),
    ],
)
def test_published_forms(tmp_path: Path, row: dict[str, Any], text: str, right: int) -> None:
    (found,) = read_choices(put(tmp_path, row)).questions
    assert (found.text, found.right) == (text, right)


def test_the_example_of_the_error_message_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(CHOICES.partition("\n\n")[2])
    found = read_choices(path)
    assert found.questions == (Question("What rises in an oven?", ("stone", "bread", "iron", "glass"), 1),)
    path.write_text("question,A,B,C,answer,subject\nx,1,2,,A,sums\n")
    assert read_choices(path).questions == (Question("x", ("1", "2"), 0, "sums"),)


def test_equal_questions_count_once(tmp_path: Path) -> None:
    row = {"question": "a", "choices": ["b", "c"], "answer": 0}
    found = read_choices(put(tmp_path, [row, {**row, "choices": ["c", "b"]}, row]))
    assert (len(found.questions), found.dropped) == (2, 1)
    with pytest.raises(TiterError, match="item 2: an earlier equal question has another answer"):
        read_choices(put(tmp_path, [row, {**row, "answer": 1}]))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"answer": 4}, "column answer: 4 is no answer. Expected: a letter from A to C, an index from 0 to 2, or the option's text"),
        ({"answer": 3}, "an index from 0"),
        ({"answer": "D"}, "'D' is no answer"),
        ({"answer": -1}, "-1 is no answer"),
        ({"choices": "['stone' 'bread']"}, "is not JSON"),  # as numpy prints an array: Python would read one text
        ({"answer": None}, "None is no answer"),
        ({"answer": True}, "True is no answer"),
        ({"answer": "glass"}, "'glass' is no answer"),
        ({"choices": ["1", "2", "3"], "answer": "2"}, "'2' is the text of one option and the name of another"),
        ({"answer": "9" * 5000}, "is no answer"),
        ({"answer": "١"}, "is no answer"),
        ({"question": " "}, "column question"),
        ({"question": "\ud800"}, "surrogate"),
        ({"choices": ["a"]}, "1 options"),
        ({"choices": ["a", "a", "b"]}, "3 options, 2 of them different"),
        ({"choices": "a, b"}, "a JSON list of texts"),
        ({"choices": ["a", ""]}, "none of them empty"),
        ({"choices": {"a": 1}}, "a list of texts"),
        ({"choices": None, "A": "x", "C": "y"}, "the options are A, C"),
    ],
)
def test_a_faulty_row_is_told_with_its_place(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    row = {"question": "What rises?", "choices": list(ONE.options), "answer": 1}
    with pytest.raises(TiterError) as raised:
        read_choices(put(tmp_path, [{**row, "question": "Another?"}, {**row, **change}]))
    assert word in str(raised.value)
    assert "x.json, item 2" in str(raised.value)


def test_no_question_is_told(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="holds no question"):
        read_choices(put(tmp_path, []))
