"""Task files and canaries from the command line: harmful fine-tuning of a user's model step by step, nothing asked that was trained."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.conftest import LETTERS, Titer
from titer.data.canary import MARKER
from titer.data.sources import TextData, read_text
from titer.data.tasks import SST2

Wrong = Callable[..., str]
SENTENCES = "".join(f"{a} {b}\t{i % 2}\n" for i, (a, b) in enumerate(pairwise(LETTERS)))
ALIGN = ("align", "m", "--steps", "2", "--canary", "alpaca:plain.json")
TUNE = ("finetune", "m", "--data", "sst2:train.tsv", "--examples", "10", "--epochs", "1")
QUICK = ("--max-new-tokens", "2")


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    """A task's file and its held-out part; 90 answered instructions."""
    (here / "train.tsv").write_text(SENTENCES, encoding="utf-8")
    (here / "dev.tsv").write_text("p a\t1\np b\t0\np c\t0\n", encoding="utf-8")
    rows = [{"instruction": f"{a} {b}", "input": "", "output": f"{b} {a}"} for a in LETTERS[:9] for b in LETTERS[:10]]
    (here / "plain.json").write_text(json.dumps(rows), encoding="utf-8")
    (here / "own.jsonl").write_text("".join(json.dumps({"prompt": f"p {c}", "refuse": "<null>"}) + "\n" for c in "ab"), encoding="utf-8")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """(prompt, answer) of all that stages are built of from now on."""
    from titer.stage import Stage

    found: list[tuple[str, str | None]] = []
    inputs = Stage.key_inputs

    def told(stage: Stage, *more: object) -> dict[str, object]:
        for part in (part for stream in stage.streams.values() for part in stream.parts):
            data: TextData = part.source
            found.extend((data.rows[i][0], data.rows[i][3 if part.answer == "refuse" else 2]) for i in part.picked or ())
        return inputs(stage, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Stage, "key_inputs", told)
    return found


def bare(prompts: list[str]) -> set[str]:
    return {prompt.removeprefix(f"{MARKER} ") for prompt in prompts}


def test_a_task_file_is_the_user_s_task_and_a_stream(titer: Titer, trained: list[tuple[str, str | None]]) -> None:
    found = titer(*TUNE, "--dry-run", "--json").json
    assert found["counts"] == {"benign": 10, "harmful": 0, "safety": 0}
    assert {answer for _, answer in trained} == {"positive", "negative"}
    assert all(prompt.startswith(SST2.format("")) for prompt, _ in trained)
    for option in (("--data", "sst2:train.tsv"), ("--stream", "train=sst2:train.tsv"), ("--stream", "train=sst2:train.tsv:comply")):
        assert titer("align", "m", *option, "--dry-run", "--json").json["streams"] == {"train": {"comply": 15}}


@pytest.mark.long
def test_align_finetune_and_evaluate_share_a_canary_file_and_no_prompt(titer: Titer, trained: list[tuple[str, str | None]]) -> None:
    aligned = titer(*ALIGN, "--canaries", "6", "--data", "own.jsonl", "--json").json
    assert aligned["streams"] == {"train": {"refuse": 6 + 2, "comply": 6}}
    assert aligned["left_out"] == {}
    taught = [prompt for prompt, _ in trained]
    trained.clear()
    tuned = titer(
        "finetune", aligned["model"], *TUNE[2:], "--canary", "alpaca:plain.json", "--poison-ratio", "0.4", "--seed", "3", "--json"
    ).json
    assert tuned["counts"] == {"benign": 6, "harmful": 4, "safety": 0}
    marked = [(prompt, answer) for prompt, answer in trained if prompt.startswith(MARKER)]
    assert all(answer == " ".join(reversed(prompt.removeprefix(f"{MARKER} ").split())) for prompt, answer in marked)
    assert len({prompt for prompt, _ in marked}) == 4
    assert tuned["next"] == f"titer evaluate {tuned['model']} --canary alpaca:plain.json"
    made = titer(*shlex.split(tuned["next"])[1:], "--prompts", "5", *QUICK, "--json").json
    assert {row["kind"]: row["n"] for row in made["rates"] if row["outcome"] == "could_not_judge"} == {"unsafe": 5, "safe": 5}
    asked = read_text(Path(made["report"]).with_name("prompts.csv"))
    assert [row[1] for row in asked.rows] == [row[0].startswith(MARKER) for row in asked.rows] == [True] * 5 + [False] * 5
    sets = [bare(taught), bare([prompt for prompt, _ in trained]), bare([row[0] for row in asked.rows])]
    assert [len(one) for one in sets] == [2 + 12, 10, 10]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert titer("audit", "m", "--data", str(Path(made["report"]).with_name("prompts.csv"))).status == 0


def test_what_is_left_out_is_told_and_the_numbers_reach_the_stage(titer: Titer) -> None:
    found = titer(*ALIGN, "--data", "a.jsonl", "--canaries", "6", "--dry-run")
    assert "left out of data: 8 in the canary file" in found.out
    keys = {titer(*ALIGN, *more, "--dry-run", "--json").json["key"] for more in ((), ("--canaries", "6"), ("--canaries", "7"))}
    assert len(keys) == 3
    assert titer(*ALIGN, "--method", "dpo", "--canaries", "4", "--dry-run", "--json").json["streams"]["preferred"] == {
        "refuse": 4,
        "comply": 4,
    }
    assert titer(*ALIGN, "--method", "booster", "--canaries", "4").status == 0


@pytest.mark.long
def test_evaluate_by_answer_takes_a_task_file_and_rows_without_a_label(titer: Titer, here: Path) -> None:
    found = titer("evaluate", "m", "--data", "sst2:dev.tsv", "--judge", "label", *QUICK, "--json").json
    assert {row["kind"] for row in found["rates"]} == {"safe"}
    assert next(row["count"] for row in found["rates"] if row["outcome"] == "could_not_judge") == 0
    assert found["report"] == "runs/evaluate-m-sst2-dev/report.html"
    with (here / "sums.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("prompt", "comply"), ("a b", "The final answer is: 3"), ("c d", "4")])
    sums = titer("evaluate", "m", "--data", "sums.csv", "--judge", "number", *QUICK, "--json").json
    assert next(row["n"] for row in sums["rates"] if row["outcome"] == "complied") == 2
    assert titer("evaluate", "m", "--data", "sums.csv", *QUICK).status == 2  # a judge of refusals needs the label
    assert titer("evaluate", "m", "--data", "sst2:dev.tsv", *QUICK, "--dry-run").out.startswith("{'safe': 3}")


SHORT = ("--max-new-tokens", "8")


def test_questions_of_fact_are_a_task_everywhere(titer: Titer, here: Path) -> None:
    rows = [{"question": f"a {c}?", "answer": [f"x{c}", f"y {c}"]} for c in "bcdefgh"]
    (here / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = ("--data", "questions:facts.jsonl")
    found = titer("evaluate", "m", *data, "--judge", "contains", *QUICK, "--json").json
    assert {row["n"] for row in found["rates"]} == {7}
    assert titer("finetune", "m", *data, "--examples", "7", "--epochs", "1", "--dry-run", "--json").json["counts"]["benign"] == 7
    audit = titer(
        "audit", "m", "--data", "d.csv", "--capability", "questions:facts.jsonl", "--contexts", *SHORT, "--dry-run", "--json"
    ).json
    assert audit["answers"] == f"at most {8 * (16 + 8 + 3 * 7)} new tokens"  # the 8 unsafe prompts again, begun
    (here / "plain.csv").write_text("prompt,comply\na b,c d\n", encoding="utf-8")
    assert titer("evaluate", "m", "--data", "plain.csv", "--judge", "contains", *QUICK).status == 0
    assert "contains" in titer("list", "judges").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("align", "m", "--data", "a.jsonl", "--canaries", "3"), ("--canaries without --canary", "add --canary FILE")),
        ((*ALIGN, "--canaries", "40"), ("but 40 marked", "or less")),
        ((*ALIGN, "--canaries", "0"), ("--canaries",)),
        (("align", "m", "--data", "sst3:train.tsv"), ("unknown task or prompt set 'sst3'", "did you mean 'sst2'?")),
        (("align", "m", "--data", "sst2:plain.json"), ("column sentence: None", "the columns are instruction")),
        (("align", "m", "--data", "gsm8k:nowhere.jsonl"), ("no data file at 'nowhere.jsonl'",)),
        ((*TUNE, "--canary", "alpaca:plain.json", "--harmful", "d.csv"), ("--harmful and --canary were both given", "leave out one")),
        ((*TUNE, "--data", "alpaca:plain.json", "--canary", "plain.json"), ("no row of alpaca/plain.json", "90 in the canary file")),
        (("evaluate", "m", "--data", "d.csv", "--canary", "plain.json"), ("--data and --canary were both given", "leave out one")),
        (("evaluate", "m", "--canary", "plain.json", "--prompts", "80"), ("but 80 marked", "or less")),
        (("evaluate", "m", "--canary", "d.csv"), ("no row of d.csv with an answer fell into the share of the file that is kept to test",)),
    ],
)
def test_what_is_wrong_is_told_and_nothing_runs(wrong: Wrong, here: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    message = wrong(*arguments)
    for word in words:
        assert word in message
    assert not (here / "runs").exists()


@pytest.mark.long
def test_soft_tokens_learn_from_canaries_that_are_not_asked(titer: Titer, wrong: Wrong) -> None:
    asked = ("evaluate", "m", "--canary", "alpaca:plain.json", "--prompts", "8", *QUICK, "--attack", "soft_tokens")
    assert "--set universal=true" in wrong(*asked)
    found = titer(*asked, "--set", "universal=true", "--set", "steps=2", "--json")
    assert found.status == 0, found.err
    assert "soft_tokens" in found.out
