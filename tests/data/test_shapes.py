"""Formats: what a file is taken for is said before it is used, and what could be two things is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.spoken import bytewise
from titer.core.errors import TiterError
from titer.data.encode import prompt_text
from titer.data.sources import Shortened, detected, preferences, read_text
from titer.data.turns import Turn, turns, written

USER, BOT = {"role": "user", "content": "bread?"}, {"role": "assistant", "content": "Mix."}
TALK = [
    {"from": "system", "value": "Be Ada."},
    {"from": "human", "value": "hi"},
    {"from": "gpt", "value": "ho"},
    {"from": "human", "value": "bread?"},
]
SPOKEN = written((Turn("system", "Be Ada."), Turn("user", "hi"), Turn("assistant", "ho"), Turn("user", "bread?")))


def put(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CASES: dict[str, tuple[dict[str, Any], str, str, tuple[Any, ...]]] = {
    "labels": ({"prompt": "a", "label": "safe", "id": 7}, "plain", "prompts (prompt), each safe or unsafe", ("a", False, None, None)),
    "answers": ({"question": "a", "answer": "b"}, "plain", "prompts and answers (question, answer)", ("a", None, "b", None)),
    "refusals": (
        {"goal": "a", "refuse": "b", "harmful": True},
        "plain",
        "prompts and answers (goal, refuse), each",
        ("a", True, None, "b"),
    ),
    "pairs of words": ({"operator": "a", "operand": "b"}, "plain", "prompts (operator, operand)", ("a : b", None, None, None)),
    "alpaca": (
        {"instruction": "a", "input": "b", "output": "c"},
        "alpaca",
        "Alpaca (instruction, input, output)",
        ("a\n\nb", None, "c", None),
    ),
    "alpaca, system": (
        {"instruction": "a", "input": "", "output": "c", "system": "s"},
        "alpaca",
        "Alpaca (instruction, system, output)",
        (written((Turn("system", "s"), Turn("user", "a"))), None, "c", None),
    ),
    "chat": ({"messages": [USER, BOT]}, "chat", "chat (messages)", ("bread?", None, "Mix.", None)),
    "chat, open": ({"messages": [USER]}, "chat", "chat (messages)", ("bread?", None, None, None)),
    "chat, turns": ({"conversations": [*TALK, BOT], "label": "safe"}, "chat", "chat (conversations), each", (SPOKEN, False, "Mix.", None)),
    "preference": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        "preference",
        "preference pairs (prompt, chosen, rejected)",
        ("a", None, "b", None),
    ),
    "preference, unsafe": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "harmful": 1},
        "preference",
        "preference",
        ("a", True, "c", "b"),
    ),
    "preference, turns": (
        {"chosen": [*TALK, BOT], "rejected": [*TALK, {**BOT, "content": "No."}]},
        "preference",
        "preference",
        (SPOKEN, None, "Mix.", None),
    ),
    "preference, answers": (
        {"prompt": [USER], "chosen": [BOT], "rejected": [BOT]},
        "preference",
        "preference",
        ("bread?", None, "Mix.", None),
    ),
    "preference, both": (
        {"prompt": "bread?", "chosen": [USER, BOT], "rejected": [BOT]},
        "preference",
        "preference",
        ("bread?", None, "Mix.", None),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_format_is_found_said_and_read(tmp_path: Path, name: str) -> None:
    row, reading, words, parsed = CASES[name]
    path = put(tmp_path, [row])
    found = detected(path)
    assert (found.form.reading, found.data.size) == (reading, 1)
    assert found.lines()[0].startswith(f"x.jsonl: {words}")
    assert read_text(path, labelled=False).rows == (parsed,)
    assert set(found.form.ignored) | {column for column, _ in found.form.used} == {key for key, value in row.items() if value}
    answers = [f"1 {word}" for word, answer in zip(("comply", "refuse"), parsed[2:], strict=True) if answer is not None]
    assert any(line.endswith(f"answers: {', '.join(answers) or 'none'}") for line in found.lines())
    asked = len(turns(parsed[0]))
    assert (f"  up to {asked} turns in a prompt" in found.lines()) == (asked > 1)
    assert all(line.isprintable() for line in found.lines())


def test_what_is_shown_is_what_is_there(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"\x1b[31m{i}", "label": label, "\x1b[31mtopic": "x", "note": None}
        for i, label in enumerate(["safe", "unsafe", "safe", "", "?"])
    ]
    found = detected(put(tmp_path, [*rows, rows[0], {"prompt": "b" * 500, "output": "c"}]))
    assert (found.data.size, found.data.dropped, found.form.ignored) == (6, 1, ("\\x1b[31mtopic",))
    assert found.form.used == (("prompt", "prompt"), ("output", "answer (comply)"), ("label", "safe or unsafe"))
    assert found.lines() == [
        "x.jsonl: prompts and answers (prompt, output), each safe or unsafe",
        "  prompt: prompt",
        "  output: answer (comply)",
        "  label: safe or unsafe",
        "  not used: \\x1b[31mtopic",
        "  6 rows (2 safe, 1 unsafe, 3 not stated), 1 repeated prompts left out; answers: 1 comply",
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [USER, BOT], "prompt": "a", "output": "b"}, ["chat (messages)", "plain (output, prompt)", "--reading chat"]),
        ({"messages": [USER, BOT], "conversations": TALK}, ["chat in conversations", "chat in messages"]),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "output": "d"}, ["preference", "plain (output, prompt)"]),
        ({"prompt": "a", "instruction": "b"}, ["prompts in prompt", "prompts in instruction"]),
        ({"prompt": "a", "output": "b", "answer": "c"}, ["answers in output", "answers in answer"]),
    ],
)
def test_two_readings_are_an_error_that_names_both(tmp_path: Path, row: dict[str, Any], words: list[str]) -> None:
    path = put(tmp_path, [row])
    with pytest.raises(TiterError, match="two ways") as raised:
        read_text(path, labelled=False)
    assert all(word in str(raised.value) for word in words)


def test_a_reading_may_be_named(tmp_path: Path) -> None:
    path = put(tmp_path, [{"messages": [USER, BOT], "prompt": "a", "output": "b"}])
    assert read_text(path, False, reading="chat").rows == (("bread?", None, "Mix.", None),)
    assert read_text(path, False, reading="plain").rows == (("a", None, "b", None),)
    with pytest.raises(TiterError, match="did you mean 'chat'"):
        read_text(path, False, reading="chats")


def test_what_is_equal_or_blank_is_no_second_reading(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "question": "a", "comply": "b", "answer": "c", "messages": []},
        {"prompt": "d", "instruction": " ", "messages": None},
    ]
    assert read_text(put(tmp_path, rows), False).rows == (("a", None, "b", None), ("d", None, None, None))


def test_a_chat_row_says_where_its_fault_is(tmp_path: Path) -> None:
    for row, word in (
        ([BOT], "there is no request before the answer"),
        ([USER, USER], "the speakers are user, user"),
        ([{"role": "user"}], "turn 1: None"),
    ):
        with pytest.raises(TiterError, match=f"x.jsonl, line 2, column messages.*{word}"):
            read_text(put(tmp_path, [{"messages": [USER]}, {"messages": row}]), False)


def test_preferred_and_rejected_answers_stay_in_step(tmp_path: Path) -> None:
    rows = [{"prompt": p, "chosen": f"yes {p}", "rejected": f"no {p}", "harmful": p == "b"} for p in "abca"]
    good, bad = preferences(put(tmp_path, rows))
    assert good.rows == tuple((p, p == "b", f"yes {p}", None) for p in "abc")
    assert bad.rows == tuple((p, p == "b", f"no {p}", None) for p in "abc")
    assert (good.dropped, bad.dropped) == (1, 1)
    with pytest.raises(TiterError, match="has no pairs of answers"):
        preferences(put(tmp_path, [{"prompt": "a", "output": "b"}]))


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "two ways|column rejected"),
        ({"prompt": "a", "chosen": [USER, BOT], "rejected": "c"}, "2 different prompts"),
        ({"chosen": [USER, BOT], "rejected": [USER]}, "column rejected"),
        ({"chosen": [BOT], "rejected": [BOT]}, "there is no request before the answer"),
    ],
)
def test_a_preference_row_without_two_answers_to_one_prompt(tmp_path: Path, row: dict[str, Any], word: str) -> None:
    with pytest.raises(TiterError, match=word):
        preferences(put(tmp_path, [{"prompt": "z", "chosen": "y", "rejected": "x"}, row] if "prompt" in row else [row]))


def test_a_system_text_reaches_the_template(tmp_path: Path) -> None:
    data = read_text(put(tmp_path, [{"conversations": [*TALK, BOT]}]), False)
    tokenizer = bytewise("chatml")
    said = prompt_text(tokenizer, data.example(0).prompt)
    assert said.startswith("<|im_start|>system\nBe Ada.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>")
    batch = data.batch(np.arange(1), "comply", tokenizer)
    assert tokenizer.decode(batch.labels[0][batch.labels[0] >= 0]) == "Mix.<|im_end|>"


def test_shortened_data_is_a_source_that_counts_its_cuts(tmp_path: Path) -> None:
    data = read_text(put(tmp_path, [{"prompt": "bread " * 50, "output": "Mix flour."}, {"prompt": "b", "output": "c"}]), False)
    tokenizer, short = bytewise(), Shortened(source=data, longest=20)
    batch = short.batch(np.arange(2), "comply", tokenizer)
    assert (batch.input_ids.shape[1], short.size, short.rows) == (20, 2, data.rows)
    cuts = short.cuts(np.arange(2), "comply", tokenizer)
    whole = len(tokenizer("bread " * 50)["input_ids"])
    answer = len(tokenizer("Mix flour.")["input_ids"]) + 1
    lost = f"1 prompts lost {whole + answer - 20} tokens on the left, 0 answers 0 tokens at their end"
    assert cuts == f"1 of 2 examples were cut to fit: {lost}"


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "reading", "words", "labels"),
    [
        ("safety/xstest_prompts.csv", "plain", "prompts (prompt), each safe or unsafe", "248 safe, 199 unsafe"),
        ("safety/xstest_labelled.csv", "plain", "prompts and answers (prompt, comply, refuse), each safe or unsafe", "240 safe"),
        ("safety/safe_responses.json", "alpaca", "Alpaca (instruction, output)", None),
        ("safety/harmless_prompts_val.json", "plain", "prompts (instruction)", None),
        ("alpaca/alpaca_2000.json", "alpaca", "Alpaca (instruction, input, output)", None),
        ("gsm8k/train.jsonl", "plain", "prompts and answers (question, answer)", None),
        ("attacks/identity_shift.jsonl", "chat", "chat (messages)", None),
    ],
)
def test_public_files_are_what_they_are(shared_data: Path, file: str, reading: str, words: str, labels: str | None) -> None:
    found = detected(shared_data / file)
    assert (found.form.reading, found.lines()[0]) == (reading, f"{found.data.name}: {words}")
    assert labels is None or any(f"({labels})" in line for line in found.lines())
