"""Cells that hold no text: ids, flags, a sheet's errors, texts that a template wrote; and tables below a title."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from titer.core.errors import TiterError
from titer.data.sources import TextData, read_text


def read(folder: Path, text: str, name: str = "prompts.csv") -> TextData:
    (folder / name).write_text(text, encoding="utf-8")
    return read_text(folder / name)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("prompt,text,label\n1,Bake bread?,safe\n2,Bake rolls?,unsafe\n", "text"),
        ("prompt,completion,label\n17,I bake bread.,safe\n18,I bake rolls.,unsafe\n", "completion"),
        ("prompt,request,label\np-01,Bake bread?,safe\np-02,Bake rolls?,unsafe\n", "request"),
    ],
)
def test_ids_in_place_of_prompts_are_refused(tmp_path: Path, text: str, column: str) -> None:
    with pytest.raises(TiterError, match=f"column prompt holds .* and column {column} sentences"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "prompt,label\n17,safe\n18,unsafe\n",
        "prompt,comply,label\n17,seventeen,safe\n21,twenty one,safe\n",
        "prompt,comply,label\nq1,I bake bread.,safe\nq2,I bake rolls.,safe\n",
        "prompt,note,label\n2+2,a sum,safe\n3+3,a sum,safe\n",
    ],
)
def test_short_prompts_are_prompts(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).size == 2


def test_a_flag_in_refuse_is_no_refusal(tmp_path: Path) -> None:
    rows = read(tmp_path, "prompt,refuse,label\nBake?,FALSE,safe\nBreak?,TRUE,unsafe\nBurn?,No.,unsafe\n").rows
    assert [row[3] for row in rows] == [None, None, "No."]


@pytest.mark.parametrize("shown", ["#NAME?", "#REF!", "#N/A"])
def test_what_a_sheet_shows_in_place_of_a_text_is_no_prompt(tmp_path: Path, shown: str) -> None:
    good = "prompt,label\n" + "".join(f"Bake {i} rolls?,safe\n" for i in range(20))
    assert any("a spreadsheet's error" in note for note in read(tmp_path, f"{good}{shown},safe\n").notes)
    with pytest.raises(TiterError, match="a spreadsheet's error"):
        read(tmp_path, f"prompt,label\n{shown},safe\nBake?,safe\n")


def test_prompts_that_a_template_wrote_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"<|im_start|>user\nBake {i}?<|im_end|>\n<|im_start|>assistant\n", "label": "safe"} for i in range(3)]
    notes = read(tmp_path, "\n".join(map(json.dumps, rows)), "rows.jsonl").notes
    assert [note for note in notes if "by a chat template already (<|im_start|>)" in note] == notes
    assert not read(
        tmp_path, "\n".join(map(json.dumps, [*rows[:1], *({**rows[0], "prompt": f"Bake {i}?"} for i in range(3))])), "rows.jsonl"
    ).notes


@pytest.mark.parametrize(
    "text",
    [
        '\ufeff\ufeff"prompt",label\nBake, mix,safe\n'.replace("Bake, mix", '"Bake, mix"'),
        'prompt, label\n"Bake, mix", "safe"\n',
        'prompt\u200b,label\u00a0\n"Bake, mix",safe\n',
        'My prompts,,\n\nprompt,label,\n"Bake, mix",safe,\n',
        'Request,,Class\nprompt,language,label\n"Bake, mix",en,safe\n',
        "# made by hand, twice\nprompt;label\nBake, mix;safe\n",
    ],
)
def test_a_header_is_found_below_a_title_and_behind_marks(tmp_path: Path, text: str) -> None:
    assert [row[:2] for row in read(tmp_path, text).rows] == [("Bake, mix", False)]


def test_a_first_line_that_no_one_knows_may_be_the_header_all_the_same(tmp_path: Path) -> None:
    head = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    assert [row[0] for row in read(tmp_path, head + '"a prompt, label, text",standard,x,,,y\n').rows] == ["a prompt, label, text"]


TWO = '{"prompt": "Bake?", "label": "safe"}', '{"prompt": "Break?", "label": "unsafe"}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.jsonl", "\n".join(json.dumps(json.loads(one), indent=1) for one in TWO)),  # as jq prints them
        ("x.jsonl", "[" + ",\n".join(TWO) + "]"),
        ("x.jsonl", ",\n".join(TWO)),
        ("x.json", "".join(TWO)),
    ],
)
def test_objects_over_several_lines_or_beside_each_other(tmp_path: Path, name: str, text: str) -> None:
    assert [row[:2] for row in read(tmp_path, text, name).rows] == [("Bake?", False), ("Break?", True)]
    for torn in (text[:-9], text.replace('"Bake?"', '"Bake?", "prompt": "Burn?"')):
        with pytest.raises(TiterError, match=r"not JSON|two columns"):
            read(tmp_path, torn, name)


@pytest.mark.parametrize("text", ["1. Bake?\n2) Break?\n", "- Bake?\n\u2022 Break?\n", "Bake?\nBreak?\n"])
def test_a_list_in_a_text_file_has_numbers_or_bullets(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    assert [row[0] for row in read_text(f"safe:{tmp_path / 'x.txt'}").rows] == ["Bake?", "Break?"]
    (tmp_path / "x.txt").write_text(f"{text}2. or so?\nno\n", encoding="utf-8")
    assert read_text(f"safe:{tmp_path / 'x.txt'}").rows[2][0] == "2. or so?"


def test_a_context_that_is_not_read_is_told(tmp_path: Path) -> None:
    assert any("context is not read" in note for note in read(tmp_path, "question,context,label\nHow hot?,It is winter.,safe\n").notes)
    rows = read(tmp_path, "instruction,context,label\nHow hot?,It is winter.,safe\n").rows
    assert rows[0][0] == "How hot?\n\nIt is winter."


def test_headings_among_prompts_are_an_error(tmp_path: Path) -> None:
    (path := tmp_path / "x.txt").write_text("# Safe\n- Tell me a tale\n## Unsafe\n- Tell me another\n")
    with pytest.raises(TiterError, match=r"line 1: a heading among the prompts, 2 in all"):
        read_text(path, False)
    for text in ("# Tell me a tale\n# Tell me another\n", "What is #include?\n#include is what?\n"):
        path.write_text(text)
        assert len(read_text(path, False).rows) == 2
