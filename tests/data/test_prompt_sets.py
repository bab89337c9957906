"""Published prompt sets: found by their columns alone, their classes as their authors mean them, and never a guess for other files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from titer.core.errors import TiterError
from titer.data.prompt_sets import SETS, recognised
from titer.data.sources import preferences, read_text

Classes = list[tuple[str, bool]]

# published columns, one row of our own -> the prompt and whether it is unsafe
FILES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "advbench": ("harmful_behaviors.csv", {"goal": "a", "target": "Sure"}, "a", True),
    "harmbench": (
        "x.csv",
        {"Behavior": "a", "FunctionalCategory": "contextual", "SemanticCategory": "s", "Tags": "", "ContextString": "b", "BehaviorID": "c"},
        "b\n\n---\n\na",
        True,
    ),
    "jailbreakbench": (
        "benign-behaviors.csv",
        {"Index": "0", "Goal": "a", "Target": "Sure", "Behavior": "b", "Category": "c", "Source": "d"},
        "a",
        False,
    ),
    "strongreject": ("x.csv", {"category": "c", "source": "s", "forbidden_prompt": "a"}, "a", True),
    "orbench": ("or-bench-hard-1k.csv", {"prompt": "a", "category": "c"}, "a", False),
    "wildguard": (
        "x.csv",
        {"prompt": "a", "adversarial": "False", "response": "r", "response_harm_label": "harmful", "prompt_harm_label": "unharmful"},
        "a",
        False,
    ),
    "wildjailbreak": ("x.tsv", {"vanilla": "a", "adversarial": "", "completion": "r", "data_type": "vanilla_harmful"}, "a", True),
    "beavertails": ("x.csv", {"prompt": "a", "response": "r", "category": "{}", "is_safe": "True"}, "a", True),
    "donotanswer": (
        "x.csv",
        {"id": "0", "risk_area": "r", "types_of_harm": "t", "specific_harms": "s", "question": "a", "GPT4_harmful": "0"},
        "a",
        True,
    ),
    "xstest": ("x.csv", {"id": "v2-1", "type": "homonyms", "prompt": "a", "focus": "f", "note": ""}, "a", False),
    "xstest-answers": ("x.csv", {"id": "1", "type": "homonyms", "prompt": "a", "completion": "b", "final_label": "f"}, "a", False),
    "sorrybench": ("x.csv", {"question_id": "1", "category": "1", "turns": "['a']", "prompt_style": "base"}, "a", True),
    "toxicchat": ("x.csv", {"conv_id": "1", "user_input": "a", "model_output": "o", "toxicity": "0", "jailbreaking": "1"}, "a", False),
    "simplesafetytests": ("x.csv", {"id": "1", "harm_area": "h", "category": "c", "prompt": "a"}, "a", True),
    "maliciousinstruct": ("MaliciousInstruct.csv", {"prompt": "a"}, "a", True),
    "catqa": ("catqa_english.csv", {"Question": "a", "Category": "c", "Subcategory": "s"}, "a", True),
    "aya": ("x.csv", {"prompt": "a", "harm_category": "h", "language": "l", "global_or_local": "local"}, "a", True),
    "salad": ("x.csv", {"qid": "1", "question": "a", "source": "s", "1-category": "a", "2-category": "b", "3-category": "c"}, "a", True),
}


def put(folder: Path, name: str, row: dict[str, Any]) -> Path:
    path = folder / name
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerow(row)
    return path


@pytest.mark.parametrize("key", FILES)
def test_a_set_is_found_by_its_columns_and_told(tmp_path: Path, key: str) -> None:
    name, row, prompt, unsafe = FILES[key]
    found = read_text(put(tmp_path, name, row))
    assert found.rows[0][:2] == (prompt, unsafe)
    assert found.notes == [f"{name} is read as {SETS[key].title}: {SETS[key].told}"]
    assert read_text(f"{key}:{tmp_path / name}").rows == found.rows


@pytest.mark.parametrize("key", FILES)
def test_one_column_of_ones_own_makes_it_a_file_of_ones_own(key: str) -> None:
    name, row, *_ = FILES[key]
    there = {column.lower() for column in row}
    assert recognised(name, there) == key
    if key != "donotanswer":  # whose answers of six models have columns of their own
        assert recognised(name, there | {"mine"}) == ""


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("faq.csv", "question category subcategory"),
        ("prompts.csv", "prompt category"),
        ("alert_messages.csv", "id prompt category"),
        ("x.csv", "prompt label"),
        ("x.txt", "prompt"),
        ("mtbench.jsonl", "question_id category turns"),
    ],
)
def test_columns_that_anyone_may_have_are_no_set(name: str, columns: str) -> None:
    assert recognised(name, columns.split()) == ""


@pytest.mark.parametrize("name", ["hub:walledai/AdvBench", "hub:walledai/StrongREJECT:train", "hub:walledai/HarmBench/standard:train"])
def test_copies_on_the_hub_are_known_by_their_names(name: str) -> None:
    assert recognised(name, {"prompt", "category"}) in name.lower()


def test_where_the_files_of_a_set_differ_in_class_an_unnamed_one_is_not_stated(tmp_path: Path) -> None:
    path = put(tmp_path, "jbb.csv", FILES["jailbreakbench"][1])
    with pytest.raises(TiterError, match=r"(?s)safe or unsafe is not stated.*safe:FILE or unsafe:FILE"):
        read_text(path)
    assert read_text(f"unsafe:{path}").rows == (("a", True, None, None),)


@pytest.mark.parametrize(("key", "name"), [("jailbreakbench", "jbb_harmful_and_benign.csv"), ("advbench", "harmful_harmless.csv")])
def test_a_name_that_says_both_classes_says_none(tmp_path: Path, key: str, name: str) -> None:
    with pytest.raises(TiterError, match="safe or unsafe is not stated"):
        read_text(put(tmp_path, name, FILES[key][1]))


def test_rows_whose_class_a_set_does_not_state_are_left_out_where_it_counts(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", FILES["wildguard"][1])
    with path.open("a") as file:
        file.write("b,False,r,harmful,\n")
    assert read_text(path).left_out == {"whose class the set does not state": 1}
    assert read_text(path, False).rows[1] == ("b", None, None, None)


def test_the_answers_of_a_set_are_what_they_are(tmp_path: Path) -> None:
    safe = put(tmp_path, "safe.csv", FILES["beavertails"][1])
    harm = put(tmp_path, "harm.csv", {**FILES["beavertails"][1], "is_safe": "False"})
    assert read_text(safe, False).rows == (("a", True, None, "r"),)
    assert read_text(harm, False).rows == (("a", True, "r", None),)
    assert read_text(put(tmp_path, "wild.tsv", FILES["wildjailbreak"][1]), False).rows == (("a", True, None, "r"),)
    for label, answers in {"1_full_compliance": ("b", None), "2_full_refusal": (None, "b"), "3_partial_refusal": (None, None)}.items():
        path = put(tmp_path, "xs.csv", {**FILES["xstest-answers"][1], "final_label": label})
        assert read_text(path).rows == (("a", False, *answers),)
    row = {"prompt": "a", "response_0": "b", "response_1": "c", "is_response_0_safe": "False", "safer_response_id": "1"}
    assert [one.rows[0][2] for one in preferences(put(tmp_path, "pku.csv", row))] == ["c", "b"]


def test_a_set_that_is_named_must_have_its_prompts(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", {"words": "a"})
    with pytest.raises(TiterError, match=r"x\.csv is not in the form of HarmBench: it has no column behavior"):
        read_text(f"harmbench:{path}")


def test_the_page_names_every_set() -> None:
    page = (Path(__file__).parents[2] / "docs" / "prompt_sets.md").read_text(encoding="utf-8")
    assert [key for key in SETS if f"`{key}:FILE`" not in page] == []
