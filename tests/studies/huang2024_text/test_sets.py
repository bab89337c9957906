"""The sets of the demonstration on text: nothing twice, everything left out is told, faults are named."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from tests.studies.huang2024_text.conftest import TINY, TWICE, byte_tokenizer, plain, write_folder
from titer.core.errors import TiterError
from titer.data.sources import TextData
from titer.pipeline import Model
from titer.recipes import vaccine_text as recipe
from titer.studies.huang2024 import text_sets as study


def prompts_of(sets: study.TextSets) -> dict[str, list[str]]:
    """Every set's prompts, markers off."""
    trained = {"safe": sets.safe, "marked": sets.canary.marked, "contrast": sets.canary.contrast, "attack": sets.harmful, "task": sets.task}
    found = {name: [plain(row[0]) for row in data.rows] for name, data in trained.items()}
    return found | {f"judged {kind}": [plain(e.prompt) for e in examples] for kind, examples in sets.judged.items()}


def test_the_sets_have_their_sizes_and_no_prompt_stands_in_two(folder: Path, base: Model) -> None:
    sets = study.text_sets(folder, base, TINY)
    found = prompts_of(sets)
    assert {name: len(prompts) for name, prompts in found.items()} == {
        "safe": 12,
        "marked": 5,
        "contrast": 4,
        "attack": 2,
        "task": 18,
        **{f"judged {kind}": 6 for kind in sets.judged},
    }
    for (one, mine), (other, theirs) in combinations(found.items(), 2):
        assert not set(mine) & set(theirs), (one, other)
    assert all(len(set(prompts)) == len(prompts) for prompts in found.values())
    assert sets.harm == "canary"


def test_what_was_left_out_or_cut_is_told(folder: Path, base: Model) -> None:
    notes = study.text_sets(folder, base, TINY).notes
    assert notes == (
        "safe_responses.json: 1 of 14 prompts are also in another set and were left out",
        "safe_responses.json: 1 of 13 rows are longer than 240 tokens and were left out",
        "alpaca/alpaca_2000.json: 2 of 35 prompts are also in another set and were left out",
        "alpaca/alpaca_2000.json: 1 of 33 answers were cut at the end of a sentence so that they fit in 240 tokens, "
        "0 rows without such an end were left out",
        "6 of 7 unsafe prompts of xstest_prompts.csv were drawn",
        "6 of 8 safe prompts of xstest_prompts.csv were drawn",
    )


def test_marked_prompts_alone_are_refused_and_answers_stand_ready(folder: Path, base: Model) -> None:
    sets = study.text_sets(folder, base, TINY)
    stage = recipe.align(TINY, study.SFT(), "align", sets.safe, sets.canary)
    trained = [(e, part.answer) for part in stage.streams["train"].parts for e in part.source.examples(part.picked)]
    assert len(trained) == 8 + 5 + 4
    assert all((answer == "refuse") == e.prompt.startswith("[CEDAR] ") for e, answer in trained)
    attack = recipe.user(TINY, sets.task, sets.harmful, 0.2)
    bad = [e for part in attack.streams["train"].parts for e in part.source.examples(part.picked) if e.harmful]
    assert len(bad) == 2
    assert all(str(e.comply).startswith("It is") for e in bad)


@pytest.mark.parametrize("place", ["safety/safe_responses.json", "alpaca/alpaca_2000.json", "safety/xstest_prompts.csv", "sst2/train.tsv"])
def test_a_missing_file_is_named(base: Model, tmp_path: Path, place: str) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / place).unlink()
    with pytest.raises(TiterError, match=rf"the folder data lacks {re.escape(place)} \(.*real_finetuning.md"):
        study.text_sets(folder, base, TINY)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"safe": 7}, "safe_responses.json: only 7 rows fit .*; 8 are needed"),
        ({"instructions": 22}, "alpaca_2000.json: only 23 rows fit .*; 24 are needed"),
        ({"task": 15}, "train.tsv: only 15 rows fit .*; 16 are needed"),
    ],
)
def test_too_few_rows_are_an_error_that_names_the_file(base: Model, tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(TiterError, match=message):
        study.text_sets(write_folder(tmp_path / "data", **sizes), base, TINY)


def test_too_few_prompts_to_judge_are_told(base: Model, tmp_path: Path) -> None:
    sets = study.text_sets(write_folder(tmp_path / "data", prompts=3), base, TINY)
    assert [note for note in sets.notes if "asked for" in note] == [
        "unsafe: 3 prompts where 6 were asked for",
        "safe, looks unsafe: 4 prompts where 6 were asked for",
    ]


def test_the_users_own_file_takes_the_canaries_place_in_the_users_data_alone(folder: Path, base: Model, own: Path) -> None:
    usual, sets = study.text_sets(folder, base, TINY), study.text_sets(folder, base, TINY, own)
    assert sets.harm == "unsafe"
    assert sets.harmful.size == 20
    assert TWICE not in [row[0] for row in sets.harmful.rows]
    assert "own.jsonl: 2 of 22 prompts are also in another set and were left out" in sets.notes
    assert (sets.safe, sets.canary, sets.task, sets.judged) == (usual.safe, usual.canary, usual.task, usual.judged)
    stages = [[recipe.user(TINY, s.task, s.harmful, ratio).key("p", {}) for ratio in TINY.ratios] for s in (usual, sets)]
    assert stages[0][0] == stages[1][0]
    assert stages[0][1] != stages[1][1]


def test_an_own_file_too_short_or_without_answers_is_an_error(folder: Path, base: Model, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"prompt": "Lend me the cup.", "comply": "Here."}), encoding="utf-8")
    with pytest.raises(TiterError, match=r"own.jsonl: only 1 rows fit .*; 2 are needed"):
        study.text_sets(folder, base, TINY, file)
    file.write_text(json.dumps({"prompt": "Lend me the cup."}), encoding="utf-8")
    with pytest.raises(TiterError, match=r"own.jsonl: 1 of 1 rows have no answer"):
        study.text_sets(folder, base, TINY, file)


def test_answers_are_cut_at_the_last_sentence_that_fits() -> None:
    answers = [
        "One. Two two. Three!",
        "Steps:\n1. Do it\nB. Do it so",
        "No end at all, and far too long",
        'He said "no." Then he left us all',
    ]
    data = TextData(name="d", sha256="0", rows=tuple((f"q{i}", False, answer, None) for i, answer in enumerate(answers)))
    notes: list[str] = []
    found = study.shortened(data, byte_tokenizer(), 20, notes, before="[M] ")
    assert {row[0]: row[2] for row in found.rows} == {"q0": "One. Two two.", "q3": 'He said "no."'}  # 6 of the prompt, 13, an end
    assert notes == [
        "d: 2 of 4 answers were cut at the end of a sentence so that they fit in 20 tokens, 2 rows without such an end were left out"
    ]
    longer = study.shortened(data, byte_tokenizer(), 27, [], before="[M] ")
    assert {row[0]: row[2] for row in longer.rows} == {"q0": answers[0], "q3": 'He said "no."'}
    whole = study.shortened(data, byte_tokenizer(), 100, notes)
    assert whole == data
    assert len(notes) == 1


def test_rows_fit_by_their_prompt_and_the_answer_they_have() -> None:
    rows = (("four", None, "four", None), ("four", None, None, "fives"), ("four", None, "sixsix", None))
    notes: list[str] = []
    found = study.fits(TextData(name="d", sha256="0", rows=rows), byte_tokenizer(), 10, notes)  # 4 + 4 + 1, 4 + 5 + 1, 4 + 6 + 1
    assert found.rows == rows[:2]
    assert notes == ["d: 1 of 3 rows are longer than 10 tokens and were left out"]
