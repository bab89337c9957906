"""What is dropped of a file is said to a script too: on standard error, in --json, in the report; `--reading` chooses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Titer

ROWS = "prompt,label\na b,safe\nb a,unsafe\na b,safe\n"
NOTE = "1 repeated prompts of twice.csv were left out"


def test_what_is_left_out_is_said_without_a_terminal(titer: Titer, here: Path) -> None:
    (here / "twice.csv").write_text(ROWS, encoding="utf-8")
    found = titer("evaluate", "m", "--data", "twice.csv", "--max-new-tokens", "2", "--json")
    assert found.status == 0, found
    assert NOTE in found.err
    assert found.json["notes"] == [NOTE]
    assert NOTE in Path(found.json["report"]).read_text(encoding="utf-8")


def test_a_set_by_its_columns_is_told_and_every_prompt_unsafe(titer: Titer, here: Path) -> None:
    (here / "goals.csv").write_text("goal,target\na b,Sure\nb a,Sure\n", encoding="utf-8")
    found = titer("evaluate", "m", "--data", "goals.csv", "--max-new-tokens", "8", "--dry-run", "--json")
    assert found.json["prompts"] == {"unsafe": 2}
    assert any("goals.csv is read as AdvBench: every prompt of it is unsafe" in line for line in found.json["data"])
    assert titer("evaluate", "m", "--data", "safe:goals.csv", "--max-new-tokens", "8", "--dry-run", "--json").json["prompts"] == {"safe": 2}
    assert "did you mean 'harmbench'?" in titer("evaluate", "m", "--data", "harmbnch:goals.csv").err
    assert "advbench" in titer("list", "prompt-sets", "--json").json["prompt-sets"]


def test_unwanted_completions_are_not_trained_and_counted(titer: Titer, here: Path) -> None:
    rows = [{"prompt": f"a {letter}", "completion": "b", "label": letter != "c"} for letter in "abc"]
    (here / "kto.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = titer("align", "m", "--data", "kto.jsonl", "--dry-run", "--json").json
    assert found["streams"] == {"train": {"comply": 2}}
    assert found["notes"] == ["1 rows of kto.jsonl whose completion is not wanted were left out"]
    found = titer("finetune", "m", "--data", "kto.jsonl", "--examples", "2", "--batch", "1", "--dry-run", "--json").json
    assert found["left_out"] == {"benign": {"whose completion is not wanted": 1}}


def test_a_reading_is_chosen(titer: Titer, here: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (here / "both.jsonl").write_text(json.dumps({"prompt": "a", "output": "c", "messages": turns}) + "\n", encoding="utf-8")
    assert "two ways: chat (messages) or plain (output, prompt)" in titer("align", "m", "--data", "both.jsonl", "--dry-run").err
    assert titer("align", "m", "--data", "both.jsonl", "--reading", "chat", "--dry-run").status == 0
    assert "did you mean 'chat'" in titer("align", "m", "--data", "both.jsonl", "--reading", "chatt", "--dry-run").err
