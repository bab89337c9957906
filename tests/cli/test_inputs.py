"""Wrong input: status 2, one clear message that names what was given, what was expected and the nearest name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import LETTERS, Titer

Wrong = Callable[..., str]
EVALUATE = ("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "3")
ALIGN = ("align", "m", "--data", "a.jsonl")


@pytest.mark.parametrize("command", [("evaluate", "m"), ("audit", "m"), ("align", "m")])
def test_no_data_names_the_format_and_shows_an_example(wrong: Wrong, command: tuple[str, ...]) -> None:
    message = wrong(*command)
    assert "no --data was given" in message
    example = ("prompt,comply", "refuse") if command[0] == "align" else ("prompt,label", "safe", "unsafe")
    for word in (".csv", ".json", ".jsonl", *example, "add --data FILE"):
        assert word in message


@pytest.mark.parametrize(("file", "words"), [("nowhere.csv", "no data file at 'nowhere.csv'"), ("d.doc", "unknown format '.doc'")])
def test_a_data_file_that_is_not_there_or_of_no_known_format(wrong: Wrong, file: str, words: str) -> None:
    message = wrong("evaluate", "m", "--data", file)
    assert words in message
    assert "prompt,label" in message


@pytest.mark.parametrize("command", ["evaluate", "audit"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bad.csv", "prompt,label\na b,safe\na,b,unsafe\n", "bad.csv, line 3, column 3: 3 fields where the header has 2"),
        ("bad.csv", 'prompt,label\n"a b,safe\n', "bad.csv, line 2"),
        ("bad.csv", "prompt,label\na b,maybe\n", "bad.csv, line 2, column label: 'maybe' is neither safe nor unsafe"),
        ("bad.csv", "words,label\na b,safe\n", "bad.csv, line 2: no column prompt"),
        ("bad.csv", "prompt,label\n,safe\n", "bad.csv, line 2, column prompt"),
        ("bad.jsonl", '{"prompt": "a", "label": "safe"}\n{"prompt": \n', "bad.jsonl, line 2, column"),
        ("bad.jsonl", '{"prompt": "a", "label": "safe"}\n[1]\n', "bad.jsonl, line 2, column 1"),
        ("bad.json", '[{"prompt": "a",\n "label" "safe"}]', "bad.json, line 2, column 10: not JSON"),
        ("bad.json", "3", "bad.json: the top level is a int"),
        ("empty.csv", "", "empty.csv holds no example"),
        ("empty.csv", "prompt,label\n", "empty.csv holds no example"),
        ("empty.jsonl", "\n\n", "empty.jsonl holds no example"),
        ("empty.json", "[]", "empty.json holds no example"),
    ],
)
def test_a_bad_line_is_told_by_file_line_and_column(wrong: Wrong, here: Path, command: str, name: str, content: str, words: str) -> None:
    (here / name).write_text(content, encoding="utf-8")
    assert words in wrong(command, "m", "--data", name)


def test_a_file_that_is_not_utf_8_is_told_by_its_line(wrong: Wrong, here: Path) -> None:
    (here / "bad.csv").write_bytes(b"prompt,label\na b,safe\n\xff\xfe,unsafe\n")
    assert "bad.csv, line 3: byte 22 is not UTF-8" in wrong("evaluate", "m", "--data", "bad.csv")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("evaluate", "smolm2-135m", "--data", "d.csv"),
            ("unknown model 'smolm2-135m'", "did you mean 'smollm2-135m'?", "a folder"),
        ),
        (
            (*EVALUATE, "--judge", "refusl"),
            ("unknown judge 'refusl'", "one of classifier, contains, exact, ", "did you mean 'refusal'?", ".py file"),
        ),
        ((*EVALUATE, "--attack", "prefil"), ("unknown attack 'prefil'", "did you mean 'prefill'?")),
        ((*ALIGN, "--method", "sfd"), ("unknown method 'sfd'", "did you mean 'sft'?")),
        (
            (*EVALUATE, "--attack", "prefill", "--set", "openin=a"),
            ("unknown setting 'openin'", "mean 'opening'?", "seed, k, opening"),
        ),
        ((*ALIGN, "--set", "rho=2"), ("method sft: unknown setting 'rho'", "its settings are none")),
        (("show", "prefil"), ("unknown name 'prefil'", "did you mean 'prefill'?")),
        (("list", "judge"), ("unknown kind 'judge'", "did you mean 'judges'?")),
        (("models", "get", "smolm2"), ("unknown model 'smolm2'", "did you mean 'smollm2-135m'?")),
        (("audi",), ("No such command 'audi'", "audit")),
        (("demo", "--sed", "1"), ("No such option", "--seed")),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_one(wrong: Wrong, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    message = wrong(*arguments)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*EVALUATE, "--temperature", "-1"), ("--temperature",)),
        ((*EVALUATE, "--temperature", "nan"), ("--temperature",)),
        ((*EVALUATE, "--temperature", "inf"), ("temperature",)),
        ((*EVALUATE, "--prompts", "0"), ("--prompts",)),
        (("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "0"), ("--max-new-tokens",)),
        (("evaluate", "m", "--data", "d.csv", "--max-new-tokens", "many"), ("--max-new-tokens",)),
        ((*EVALUATE, "--attack", "prefill", "--set", "k=0"), ("attack prefill: k", "greater than or equal to 1", "given 0")),
        ((*EVALUATE, "--attack", "prefill", "--set", "k=two"), ("attack prefill: k", "given 'two'")),
        ((*EVALUATE, "--attack", "prefill", "--set", "k"), ("--set 'k' is not NAME=VALUE", "--set beta=0.1")),
        ((*EVALUATE, "--set", "k=1"), ("--set was given without --attack",)),
        ((*ALIGN, "--lr", "-1"), ("--lr", "greater than 0", "given -1.0")),
        ((*ALIGN, "--lr", "nan"), ("--lr", "finite")),
        ((*ALIGN, "--steps", "0"), ("--steps",)),
        ((*ALIGN, "--batch", "0"), ("--batch",)),
        ((*ALIGN, "--lora", "-1"), ("--lora",)),
        (("demo", "--seed", "-1"), ("--seed",)),
        (("demo", "--seed", "x"), ("--seed",)),
        (("audit",), ("models",)),
    ],
)
def test_a_value_out_of_range_is_told(wrong: Wrong, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    message = wrong(*arguments)
    for word in words:
        assert word in message


def test_a_prompt_longer_than_the_window_is_told(wrong: Wrong, here: Path) -> None:
    long = " ".join(LETTERS * 5)
    (here / "long.csv").write_text(f"prompt,label\n{long},safe\na b,unsafe\n", encoding="utf-8")
    lines = "".join(f"{first} {letter},{label}\n" for first, label in (("a", "safe"), ("b", "unsafe")) for letter in LETTERS[:5])
    (here / "long.csv").write_text(f"prompt,label\n{long},safe\n{lines}", encoding="utf-8")
    for command in ("evaluate", "audit"):
        message = wrong(command, "m", "--data", "long.csv", "--max-new-tokens", "3")
        assert " 83 tokens" in message
        assert "longer than the model's window of 64: 'a b c d" in message
        assert len(message) < 400  # the prompt is not printed whole
    (here / "long.jsonl").write_text(json.dumps({"prompt": "a b", "comply": long}) + "\n", encoding="utf-8")
    assert "longer than the model's window of 64" in wrong("align", "m", "--data", "long.jsonl")
    assert not (here / "runs").exists()


@pytest.mark.parametrize("command", ["evaluate", "audit"])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_answers_longer_than_the_window_are_told_by_a_dry_run_as_by_the_run(wrong: Wrong, here: Path, command: str, dry: list[str]) -> None:
    message = wrong(command, "m", "--data", "d.csv", "--max-new-tokens", "1000", *dry)
    assert "with 1000 new tokens" in message
    assert "longer than the model's window of 64" in message
    assert "give a smaller --max-new-tokens" in message
    assert not (here / "runs").exists()


@pytest.mark.parametrize("label", ["safe", "unsafe"])
def test_an_audit_of_one_class_is_told(wrong: Wrong, here: Path, label: str) -> None:
    (here / "one.csv").write_text("prompt,label\n" + "".join(f"{c},{label}\n" for c in LETTERS), encoding="utf-8")
    message = wrong("audit", "m", "--data", "one.csv")
    assert f"0 {'unsafe' if label == 'safe' else 'safe'} prompts" in message
    assert "at least 4 of each class" in message


def test_a_row_without_an_answer_is_told_before_any_training(wrong: Wrong, here: Path) -> None:
    assert "has no answer" in wrong("align", "m", "--data", "d.csv")
    assert not (here / "runs").exists()


def test_an_attack_of_the_world_on_text_is_told(wrong: Wrong) -> None:
    message = wrong(*EVALUATE, "--attack", "jb_misgen")
    assert "exists on the synthetic world only" in message
    assert "--attack prefill" in message


def test_a_plug_in_file_that_does_not_load_is_told(wrong: Wrong, here: Path) -> None:
    (here / "mine.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    assert "mine.py does not load: ModuleNotFoundError" in wrong(*EVALUATE, "--judge", "mine.py")
    (here / "none.py").write_text('"""No class."""\n', encoding="utf-8")
    assert "none.py defines 0 classes derived from Judge" in wrong(*EVALUATE, "--judge", "none.py")
    assert "no file 'nowhere.py'" in wrong(*EVALUATE, "--judge", "nowhere.py")


def test_wrong_input_is_found_before_a_model_is_loaded(titer: Titer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titer.pipeline.load", lambda *_: pytest.fail("a model was loaded"))
    for more in (("--judge", "refusl"), ("--attack", "prefil"), ("--set", "k=1")):
        assert titer(*EVALUATE, *more).status == 2
    assert titer(*ALIGN, "--method", "stf").status == 2
