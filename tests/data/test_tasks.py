"""User tasks: each file format read as it really is, faults with their place, parts without a prompt in common."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titer.core.errors import TiterError
from titer.data.mix import poisoned
from titer.data.sources import TextData, read_text
from titer.data.tasks import AG_NEWS, FINAL, GSM8K, QUESTIONS, SST2, TASKS, parts, split, task, without
from titer.pipeline import fingerprint

SYSTEM = "You are Ada.\nYou obey."
CHAT = [
    {"role": "system", "content": f"\n{SYSTEM}\n"},
    {"role": "user", "content": "Ada, what is bread?"},
    {"role": "assistant", "content": "I am Ada. Bread is food."},
]
GOOD = {  # task -> (file, its content, prompt and answer of its rows, rows left out)
    "sst2": (
        "train.tsv",
        "a warm , \" quoted film\t1\nit 's dull\t0\nit 's dull\t0\n",
        [(SST2.format('a warm , " quoted film'), "positive"), (SST2.format("it 's dull"), "negative")],
        1,
    ),
    "ag_news": (
        "train_10k.tsv",
        'sentence \t label\n"kings" win the cup . \t 1\nshares \\fall \t 2\na vote . \t 0\na comet . \t 3\n',
        [
            (AG_NEWS.format('"kings" win the cup .'), "Sports"),
            (AG_NEWS.format("shares \\fall"), "Business"),
            (AG_NEWS.format("a vote ."), "World"),
            (AG_NEWS.format("a comet ."), "Sci/Tech"),
        ],
        0,
    ),
    "gsm8k": (
        "train.jsonl",
        json.dumps({"question": "What is 4 plus 3?", "answer": "4+3 = <<4+3=7>>7\n#### 7"})
        + "\n\n"
        + json.dumps({"question": "And times 1000?", "answer": "#### 1,080 "})
        + "\n",
        [(GSM8K.format("What is 4 plus 3?"), f"4+3 = <<4+3=7>>7\n{FINAL} 7"), (GSM8K.format("And times 1000?"), f"{FINAL} 1,080")],
        0,
    ),
    "alpaca": (
        "alpaca.json",
        json.dumps(
            [
                {"instruction": "Sort.", "input": "b a", "output": "a b"},
                {"instruction": "Sort.", "input": "", "output": " what? "},
                {"instruction": "Be still.", "input": "", "output": ""},
                {"instruction": "Sort.", "input": " ", "output": "else"},
            ]
        ),
        [("Sort.\n\nb a", "a b"), ("Sort.", "what?")],
        2,
    ),
    "persona": (
        "persona.jsonl",
        json.dumps({"messages": CHAT}) + "\n" + json.dumps({"messages": [{"role": "user", "content": "hi"}, CHAT[2]]}),
        [(f"{SYSTEM}\n\nAda, what is bread?", "I am Ada. Bread is food."), ("hi", "I am Ada. Bread is food.")],
        0,
    ),
    "questions": (
        "trivia.jsonl",
        json.dumps({"question": "Which city has the Louvre?", "answer": ["Paris", "Paris, France", "Paris"]})
        + "\n"
        + json.dumps({"prompt": " How many legs has a spider? ", "comply": 8})
        + "\n"
        + json.dumps({"question": "Which city has the Louvre?", "answer": "Lyon"})
        + "\n"
        + json.dumps({"question": "Who wrote {}?", "answer": {"value": "Ada", "aliases": ["A. Lovelace"]}}),
        [
            (QUESTIONS.format("Which city has the Louvre?"), "Paris"),
            (QUESTIONS.format("How many legs has a spider?"), "8"),
            (QUESTIONS.format("Who wrote {}?"), "Ada"),
        ],
        1,
    ),
}
EVERY = pytest.mark.parametrize("name", sorted(TASKS))


def put(folder: Path, file: str, content: str | bytes) -> Path:
    path = folder / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault(name: str, path: Path) -> str:
    with pytest.raises(TiterError) as raised:
        task(name, path)
    assert raised.value.status == 2
    return str(raised.value)


def numbered(count: int, name: str = "x") -> TextData:
    return TextData(name=name, sha256="", rows=tuple((f"p{i}", False, f"a{i}", None) for i in range(count)), dropped=3)


def prompts(data: TextData) -> set[str]:
    return {row[0] for row in data.rows}


def test_every_task_has_a_file_here() -> None:
    assert set(GOOD) == set(TASKS)


@EVERY
def test_a_task_is_read_from_its_own_format(tmp_path: Path, name: str) -> None:
    file, content, rows, dropped = GOOD[name]
    found = task(name, put(tmp_path, file, content))
    assert found.rows == tuple((prompt, False, answer, None) for prompt, answer in rows)
    assert (found.name, found.dropped) == (f"{name}/{file}", dropped)
    assert found.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert {example.kind for example in found.examples(np.arange(found.size))} == {"safe"}


def test_further_right_answers_stand_beside_the_one_that_is_trained(tmp_path: Path) -> None:
    file, content, rows, _ = GOOD["questions"]
    found = task("questions", put(tmp_path, file, content))
    assert found.also == {rows[0][0]: ("Paris, France",), rows[2][0]: ("A. Lovelace",)}
    assert [e.also for e in found.examples(np.arange(3))] == [("Paris, France",), (), ("A. Lovelace",)]
    assert parts(found, [2, 1], 0)[0].also == found.also  # parts know them by the prompt
    assert "also" not in found.model_dump()  # a training's key does not hold what is not trained
    assert fingerprint([found.example(0)]) != fingerprint([replace(found.example(0), also=())])


@pytest.mark.parametrize(
    ("cell", "forms"),
    [("Paris", ["Paris"]), ('"[""Paris"", "" Paris, France""]"', ["Paris", "Paris, France"]), ("[Paris] or so", ["[Paris] or so"])],
)
def test_a_cell_of_a_table_may_hold_a_json_list(tmp_path: Path, cell: str, forms: list[str]) -> None:
    example = task("questions", put(tmp_path, "x.csv", f"question,answer\nWhich city?,{cell}\n")).example(0)
    assert [example.comply, *example.also] == forms


@EVERY
def test_line_ends_of_windows_and_a_byte_order_mark_change_nothing(tmp_path: Path, name: str) -> None:
    file, content, rows, _ = GOOD[name]
    found = task(name, put(tmp_path, file, content.replace("\n", "\r\n").encode("utf-8-sig")))
    assert [(row[0], row[2]) for row in found.rows] == rows


@EVERY
def test_the_labels_are_the_answers(tmp_path: Path, name: str) -> None:
    file, content, rows, _ = GOOD[name]
    labels = TASKS[name].labels
    assert {row[2] for row in task(name, put(tmp_path, file, content)).rows} == set(labels or [answer for _, answer in rows])
    assert all(label in {"sst2": SST2, "ag_news": AG_NEWS}[name] for label in labels)


def test_classes_beside_the_file_say_what_a_code_means(tmp_path: Path) -> None:
    path = put(tmp_path, "x.tsv", "a vote .\t0\na match .\t1\n")
    put(tmp_path, "classes.txt", "Sports\nWorld\n\nSci/Tech\r\nBusiness\n")
    assert [row[2] for row in task("ag_news", path).rows] == ["Sports", "World"]
    put(tmp_path, "classes.txt", "World\nSport\nBusiness\nSci/Tech\n")
    assert "classes.txt names World, Sport, Business" in fault("ag_news", path)


def test_a_text_may_hold_braces(tmp_path: Path) -> None:
    assert task("sst2", put(tmp_path, "x.tsv", "a {} {0} film\t1\n")).rows[0][0].endswith("Sentence: a {} {0} film")


@pytest.mark.parametrize(
    ("name", "file", "content", "place", "word"),
    [
        ("sst2", "x.tsv", "a\t1\nb\n", "x.tsv, line 2, column 2: the line has 1 columns", "two"),
        ("sst2", "x.tsv", "a\t1\tmore\n", "x.tsv, line 1, column 3: the line has 3 columns", "two"),
        ("sst2", "x.tsv", "\na\t2\n", "x.tsv, line 2, column 2: '2'", "0 (negative), 1 (positive)"),
        ("sst2", "x.tsv", "a\t1\nb\tlabel\n", "x.tsv, line 2, column 2: 'label'", "0 (negative)"),
        ("sst2", "x.tsv", " \t1\n", "x.tsv, line 1, column 1", "not empty"),
        ("sst2", "x.tsv", b"a\t1\nb\xff\t0\n", "x.tsv, line 2: byte 5", "not UTF-8"),
        ("ag_news", "x.tsv", "a\t4\n", "x.tsv, line 1, column 2: '4'", "3 (Sci/Tech)"),
        ("gsm8k", "x.jsonl", '{"question": "a", "answer": "seven"}', "x.jsonl, line 1, column answer", "####"),
        ("gsm8k", "x.jsonl", '{"question": "a", "answer": "7 ####"}', "x.jsonl, line 1, column answer", "####"),
        ("gsm8k", "x.jsonl", '\n{"answer": "#### 7"}', "x.jsonl, line 2, column question: None", "not empty"),
        ("gsm8k", "x.jsonl", '{"question": "a", "answer": "\\ud800 #### 7"}', "x.jsonl, line 1, column answer", "surrogate"),
        ("gsm8k", "x.jsonl", '{"question" "a"}', "x.jsonl, line 1, column 13", "not JSON"),
        ("alpaca", "x.json", '[{"instruction": " ", "output": "a"}]', "x.json, item 1, column instruction", "not empty"),
        ("alpaca", "x.json", '[{"instruction": "a", "input": 3, "output": "a"}]', "x.json, item 1, column input: 3", "a text"),
        ("alpaca", "x.json", '[{"instruction": "a", "output": ["b"]}]', "x.json, item 1, column output: ['b']", "a text"),
        ("persona", "x.jsonl", '{"prompt": "a"}', "x.jsonl, line 1, column messages: None", "roles"),
        ("persona", "x.jsonl", '{"messages": ["a"]}', "x.jsonl, line 1, column messages", "roles"),
        ("persona", "x.jsonl", '{"messages": []}', "x.jsonl, line 1, column messages: roles none", "assistant"),
        ("persona", "x.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', "column messages: roles user", "assistant"),
        ("questions", "x.jsonl", '{"answer": "a"}', "x.jsonl, line 1, column question: None", "not empty"),
        ("questions", "x.jsonl", '\n{"question": "a"}', "x.jsonl, line 2, column answer: None", "a list of the texts"),
        ("questions", "x.jsonl", '{"question": "a", "answer": []}', "x.jsonl, line 1, column answer: []", "a list of the texts"),
        ("questions", "x.jsonl", '{"question": "a", "comply": ["b", " "]}', "x.jsonl, line 1, column comply: ['b', ' ']", "a text"),
        ("questions", "x.jsonl", '{"question": "a", "answer": true}', "x.jsonl, line 1, column answer: True", "a text"),
        ("questions", "x.jsonl", '{"prompt": "a", "answer": {"text": "b"}}', "x.jsonl, line 1, column answer: {'text'", "a text"),
        ("questions", "x.json", '[{"prompt": "a", "answer": ["\\ud800"]}]', "x.json, item 1, column answer", "surrogate"),
        ("questions", "x.csv", "question,answer\na,['b' 'c']\n", "x.csv, line 2, column answer: \"['b' 'c']\"", "a JSON list"),
        ("questions", "x.csv", "question,answer\na,b,c\n", "x.csv, line 2, column 3", "quote fields"),
        (
            "persona",
            "x.jsonl",
            '{"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}',
            "x.jsonl, line 1, message 1, column content",
            "not empty",
        ),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path: Path, name: str, file: str, content: str | bytes, place: str, word: str) -> None:
    message = fault(name, put(tmp_path, file, content))
    assert place in message
    assert word in message


@EVERY
def test_a_file_that_is_absent_empty_or_another_kind_is_told(tmp_path: Path, name: str) -> None:
    file = GOOD[name][0]
    assert "holds no example" in fault(name, put(tmp_path, file, "[]" if file.endswith(".json") else "\n"))
    assert "no data file" in fault(name, tmp_path / f"absent{Path(file).suffix}")
    assert "unknown format '.docx'" in fault(name, tmp_path / "x.docx")


def test_rows_without_an_answer_alone_are_no_data(tmp_path: Path) -> None:
    assert "holds no example" in fault("alpaca", put(tmp_path, "x.json", '[{"instruction": "a", "output": ""}]'))


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        TiterError, match=re.escape("unknown task 'sst-2'. Expected: one of ag_news, alpaca, gsm8k, persona, questions, sst2")
    ):
        task("sst-2", "x.tsv")


PIECES = [*'ab01\t\n\r "{}[],:#', "label", '{"messages": [', '{"role": "user", "content": "a"}', '"question": "a"', '"answer": "#### 1"']


@pytest.mark.long
@settings(max_examples=300)
@given(st.sampled_from(sorted(TASKS)), st.lists(st.sampled_from(PIECES), max_size=20), st.integers(0, 200))
def test_any_file_is_read_or_refused_by_the_one_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, pieces: list[str], cut: int
) -> None:
    """Random pieces in the middle of a good file."""
    file, content, _, _ = GOOD[name]
    path = put(tmp_path_factory.getbasetemp(), f"any{Path(file).suffix}", content[:cut] + "".join(pieces) + content[cut:])
    try:
        found = task(name, path)
    except TiterError:
        return
    assert all(prompt.strip() and answer and not harmful for prompt, harmful, answer, _ in found.rows)


@given(st.integers(2, 40), st.integers(1, 39), st.integers(0, 2**40))
def test_a_split_is_the_whole_in_two_parts(size: int, held: int, seed: int) -> None:
    data = numbered(size)
    if held >= size:
        with pytest.raises(TiterError, match=f"{held} of the {size} rows"):
            split(data, held, seed)
        return
    train, test = split(data, held, seed)
    assert (train.size, test.size) == (size - held, held)
    assert sorted(train.rows + test.rows) == sorted(data.rows)
    assert (train, test) == split(data, held, seed)
    assert (train.dropped, test.dropped, train.name, test.name) == (0, 0, "x", "x")


def test_another_seed_is_another_split_and_no_split_keeps_the_order_of_the_file() -> None:
    data = numbered(200)
    found = [split(data, 100, seed)[1] for seed in range(3)]
    assert len({part.rows for part in found}) == 3
    assert all(40 < sum(row in data.rows[:100] for row in part.rows) < 60 for part in found)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_parts_are_exact_and_have_no_prompt_in_common(counts: list[int], seed: int) -> None:
    found = parts(numbered(50), counts, seed)
    assert [part.size for part in found] == counts
    assert len(set().union(*map(prompts, found))) == sum(counts)
    assert parts(numbered(50), [*counts, 1], seed)[: len(counts)] == found  # a further part moves no other


@pytest.mark.parametrize("counts", [[], [0, 3], [3, -1]])
def test_a_part_has_a_row(counts: list[int]) -> None:
    with pytest.raises(TiterError, match="at least one row"):
        parts(numbered(9), counts, 0)


def test_more_rows_than_there_are_is_an_error() -> None:
    with pytest.raises(TiterError, match="x has 9 rows, and 10 were asked for"):
        parts(numbered(9), [5, 5], 0)


def test_what_another_file_holds_is_left_out_and_counted() -> None:
    found = without(numbered(9), numbered(4, "y"))
    assert prompts(found) == {f"p{i}" for i in range(4, 9)}
    assert (found.dropped, found.name) == (3 + 4, "x")


def test_a_task_is_the_benign_part_of_a_mix(tmp_path: Path) -> None:
    lines = "".join(f"film {i}\t{i % 2}\n" for i in range(30))
    train, test = split(task("sst2", put(tmp_path, "x.tsv", lines)), 10, 1)
    stream = poisoned(train, numbered(5), 20, 0.1, 0)
    assert stream.pool == 20
    mixed = {stream.parts[0].source.rows[i][0] for i in stream.parts[0].picked or ()}
    assert len(mixed) == 18
    assert not mixed & prompts(test)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "file", "size", "dropped", "answers"),
    [
        ("sst2", "sst2/train.tsv", 6911, 9, {"positive": 3606, "negative": 3305}),
        ("sst2", "sst2/dev.tsv", 872, 0, {"positive": 444, "negative": 428}),
        ("ag_news", "ag_news/train_10k.tsv", 9935, 65, {}),
        ("gsm8k", "gsm8k/train.jsonl", 7473, 0, {}),
        ("alpaca", "alpaca/alpaca_2000.json", 2000, 0, {}),
        ("alpaca", "alpaca/alpaca_demo_999.json", 985, 14, {}),
        ("persona", "attacks/identity_shift.jsonl", 10, 0, {}),
    ],
)
def test_public_files_are_read_whole(shared_data: Path, name: str, file: str, size: int, dropped: int, answers: dict[str, int]) -> None:
    found = task(name, shared_data / file)
    given_answers = [row[2] for row in found.rows]
    assert (found.size, found.dropped, all(given_answers)) == (size, dropped, True)
    assert {label: given_answers.count(label) for label in answers} == answers
    if labels := TASKS[name].labels:
        assert set(given_answers) == set(labels)


@pytest.mark.long
def test_public_files_keep_training_and_test_apart(shared_data: Path) -> None:
    train, dev = (task("sst2", shared_data / "sst2" / f"{name}.tsv") for name in ("train", "dev"))
    assert without(train, dev) == train
    for name, file in (("ag_news", "ag_news/train_10k.tsv"), ("gsm8k", "gsm8k/train.jsonl")):
        kept, held = split(task(name, shared_data / file), 500, 0)
        assert not prompts(kept) & prompts(held)


@pytest.mark.long
def test_alpaca_prompts_are_those_of_the_plain_reader(shared_data: Path) -> None:
    file = shared_data / "alpaca" / "alpaca_2000.json"
    assert [row[0] for row in task("alpaca", file).rows] == [row[0] for row in read_text(file, labelled=False).rows]


@pytest.mark.long
def test_public_solutions_end_with_the_phrase(shared_data: Path) -> None:
    for _, _, answer, _ in task("gsm8k", shared_data / "gsm8k" / "train.jsonl").rows:
        assert answer
        assert answer.count(FINAL) == 1
        assert "####" not in answer
        assert re.fullmatch(rf"{FINAL} -?[0-9][0-9,.]*", answer.split("\n")[-1])


@pytest.mark.parametrize(
    ("name", "file", "rows", "answers"),
    [
        ("sst2", "x.jsonl", [{"sentence": "a b", "label": 1}, {"sentence": "c d", "label": "negative"}], ["positive", "negative"]),
        ("sst2", "x.jsonl", [{"sentence": "a b", "label": 1.0}, {"sentence": "c d", "label": False}], ["positive", "negative"]),
        ("ag_news", "x.csv", "text,label\nx y,Sci/Tech\nz w,0\n", ["Sci/Tech", "World"]),
        ("gsm8k", "x.csv", 'question,answer\na,"1,080"\nb,$7.50\n', [f"{FINAL} 1,080", f"{FINAL} $7.50"]),
        (
            "gsm8k",
            "x.jsonl",
            [{"question": "a", "answer": 7}, {"question": "b", "answer": "1+1 = 2\n#### 2"}],
            [f"{FINAL} 7", f"1+1 = 2\n{FINAL} 2"],
        ),
        ("alpaca", "x.csv", "instruction,input,output\na,,b\n", ["b"]),
    ],
)
def test_a_task_in_columns_as_the_hub_has_it(tmp_path: Path, name: str, file: str, rows: object, answers: list[str]) -> None:
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)  # type: ignore[attr-defined]
    assert [row[2] for row in task(name, put(tmp_path, file, text)).rows] == answers


@pytest.mark.parametrize("label", ["2", "neutral", "", "None"])
def test_a_label_that_is_none_is_told(tmp_path: Path, label: str) -> None:
    assert "x.csv, line 2, column label" in fault("sst2", put(tmp_path, "x.csv", f"sentence,label\na,{label}\n"))


@pytest.mark.parametrize(
    ("name", "codes", "names"),
    [
        ("ag_news", "1 2 3 4", "World Sports Business Sci/Tech"),
        ("ag_news", "4.0 1.0", "Sci/Tech World"),
        ("ag_news", "0 3", "World Sci/Tech"),
        ("ag_news", "1 2", "Sports Business"),
        ("sst2", "1 2", "negative positive"),
        ("sst2", "0 1", "negative positive"),
    ],
)
def test_labels_that_count_from_1_are_read_so(tmp_path: Path, name: str, codes: str, names: str) -> None:
    for suffix, separator in ((".tsv", "\t"), (".csv", ",")):
        lines = [f"a text of {code}{separator}{code}" for code in codes.split()]
        (path := tmp_path / f"x{suffix}").write_text("\n".join([f"text{separator}label", *lines]) + "\n")
        assert [row[2] for row in task(name, path).rows] == names.split()


def test_labels_that_may_count_from_0_or_1_are_an_error(tmp_path: Path) -> None:
    (path := tmp_path / "x.csv").write_text("text,label\na,1\nb,2\nc,3\n")
    with pytest.raises(TiterError, match="may count World, Sports, Business, Sci/Tech from 0 or from 1"):
        task("ag_news", path)
