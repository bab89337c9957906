"""How the audited models are asked: chat templates that differ or are missing, room for worked answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import llama
from tests.models.gguf_made import as_gguf, model_of
from titer.attacks.base import Attempt
from titer.audit.advice import advice
from titer.audit.answers import Asked, cut_short
from titer.audit.headline import answer, below
from titer.audit.report import audit_report
from titer.audit.roles import audited, reading_notes
from titer.audit.study import Question, measured
from titer.commands.measuring import EvaluationRequest, prepared
from titer.data.example import Example
from titer.data.sources import read_text
from titer.data.world import World
from titer.judges.base import Judge, Verdict, unjudged
from titer.judges.number import Number
from titer.judges.refusal import Refusal
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import Completion, Decoding, read_tokenizer
from titer.pipeline import Pipeline

Saved = Callable[..., Checkpoint]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %} b"


def templated(world: World, folder: Path, seed: int) -> Checkpoint:
    lm = llama(world, seed)
    lm.tokenizer.chat_template = TEMPLATE
    lm.save(folder)
    return open_checkpoint(folder)


@pytest.fixture
def asked(prompts: Path) -> Question:
    data = read_text(prompts)
    return Question(data.of_class(False), data.of_class(True), Refusal(), {}, Decoding(max_new_tokens=4))


@pytest.mark.long
def test_a_template_that_one_model_lacks_is_told_and_compares_no_activations(
    world: World, pipeline: Pipeline, saved: Saved, asked: Question, prompts: Path, tmp_path: Path
) -> None:
    found = audited([saved("base", 0), saved("aligned", 1), templated(world, tmp_path / "chatty", 2)])
    every = [e.prompt for e in (*asked.safe, *asked.unsafe)]
    told = reading_notes(found, every)
    assert told[0] == "base, aligned: no chat template, so the prompts are given as plain text"
    assert [line.partition(":")[0] for line in told[1:]] == ["aligned → chatty"]
    f = measured(pipeline, found, asked, None)
    assert set(f.drift.change) == set(f.rotation.change) == {"base → aligned"}
    assert set(f.gains.change) == set(f.shifts.change) == {"base → aligned", "aligned → chatty"}
    page, said = audit_report(found, asked, f, read_text(prompts), {}, "titer audit", tmp_path / "page", told)
    assert "turned the refusal direction" not in said
    assert said.endswith("Their chat templates differ (aligned has none): that alone may change answers.")
    assert "read a prompt as different tokens" in page.read_text(encoding="utf-8")


def test_a_merge_without_a_chat_template_is_told_to_be_given_one(world: World, saved: Saved, tmp_path: Path) -> None:
    moved = pd.DataFrame(
        [{"change": "chatty → merged", "kind": "unsafe", "outcome": "refused", "difference": 0.0, "low": -0.1, "high": 0.1}]
    )
    for seed in (2, 3):  # equal weights, and others
        found = audited([templated(world, tmp_path / "chatty", 2), saved("merged", seed)])
        (told,) = advice(found, moved, pd.DataFrame())
        assert told.why.startswith("merged has no chat template, so it was asked in plain text; chatty has one.")
        assert told.command == f"titer audit {tmp_path / 'chatty'} FOLDER --no-base --data PROMPTS.csv"
    assert advice(audited([saved("merged", 3), templated(world, tmp_path / "chatty", 2)]), moved, pd.DataFrame()) == []


@pytest.mark.long
def test_a_gguf_without_a_chat_template_is_told_to_be_given_one(tmp_path: Path) -> None:
    lm = model_of()
    template, lm.tokenizer.chat_template = lm.tokenizer.chat_template, ""
    as_gguf(lm, tmp_path / "copy.gguf", "F16")
    lm.tokenizer.chat_template = template
    lm.save(tmp_path / "whole")
    found = audited([open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "copy.gguf")])
    (told,) = advice(found, pd.DataFrame([{"change": "whole → copy"}]), pd.DataFrame())
    beside, file, made = told.command.removeprefix("gguf-new-metadata --chat-template-file ").split()
    assert (beside, file) == (str(tmp_path / "whole" / "chat_template.jinja"), str(tmp_path / "copy.gguf"))
    subprocess.run([Path(sys.executable).with_name("gguf-new-metadata"), *told.command.split()[1:-1], tmp_path / made], check=True)
    assert read_tokenizer(open_checkpoint(tmp_path / made)).chat_template == template


@pytest.mark.long
def test_equal_weights_behind_another_template_are_no_claim_of_no_change(
    world: World, pipeline: Pipeline, prompts: Path, tmp_path: Path
) -> None:
    """The weights are equal, the answers are not: that is what a reader must see."""

    class First(Judge):
        SOURCE, VERSION = "this test", 1

        def judge(self, example: Example, completion: Completion) -> Verdict:
            return Verdict("refused" if completion.text[:1] < "h" else "complied", 0.0, "")

    llama(world, 2).save(tmp_path / "plain")
    data = read_text(prompts)
    asked = Question(data.of_class(False), data.of_class(True), First(), {}, Decoding(max_new_tokens=4))
    found = audited([open_checkpoint(tmp_path / "plain"), templated(world, tmp_path / "chatty", 2)])
    f = measured(pipeline, found, asked, None)
    assert found.changes[0].same
    assert len(f.flips)
    said = answer(found, f)
    assert "No change" not in said
    assert said.endswith("The weights are the same; the two are asked differently (chat template).")
    assert "answers to unsafe and safe prompts are degenerate" in below(found, f)  # it is empty where nothing changed


def test_one_model_whose_answers_could_not_be_judged_has_no_rate(pipeline: Pipeline, saved: Saved, prompts: Path) -> None:
    class Lost(Judge):
        SOURCE, VERSION = "this test", 1

        def judge(self, example: Example, completion: Completion) -> Verdict:
            return unjudged("no reply")

    data = read_text(prompts)
    found = audited([saved("aligned", 1)])
    f = measured(pipeline, found, Question(data.of_class(False), data.of_class(True), Lost(), {}, Decoding(max_new_tokens=2)), None)
    said = answer(found, f)
    assert said.startswith("aligned refuses no unsafe prompt whose answer could be judged and no safe prompt whose answer could be judged.")
    assert "nan" not in said


def test_models_that_read_alike_need_no_note(world: World, asked: Question, tmp_path: Path) -> None:
    found = audited([templated(world, tmp_path / str(seed), seed) for seed in (1, 2)])
    assert not reading_notes(found, [e.prompt for e in asked.safe])


def test_a_sum_has_room_to_be_worked_out() -> None:
    """GSM8K's own answers are longer than the audit's usual 48 tokens: cut before the number, every model would be wrong."""
    short, long = Decoding(max_new_tokens=48), Decoding(max_new_tokens=300)
    assert Asked([], Number()).decoding(short).max_new_tokens == 256
    assert Asked([], Number()).decoding(long) == long
    assert Asked([], Refusal()).decoding(short) == short


def test_an_evaluation_gives_a_sum_room_unless_its_user_says_otherwise(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "sums.csv").write_text("prompt,comply\na b,4\n", encoding="utf-8")
    order = EvaluationRequest(str(saved("base", 0).path), tmp_path / "sums.csv", judge="number")
    assert prepared(order).decoding.max_new_tokens == 256
    assert prepared(replace(order, max_new_tokens=2)).decoding.max_new_tokens == 2
    (tmp_path / "asked.csv").write_text("prompt,label\na b,safe\n", encoding="utf-8")
    assert prepared(EvaluationRequest(order.model, tmp_path / "asked.csv")).decoding.max_new_tokens == 64


def test_answers_that_were_cut_are_counted_where_they_cost_a_right_answer() -> None:
    attempts = [Attempt(Example(str(i), False, "gsm8k", "", "The final answer is: 1")) for i in range(3)]
    rows = [
        ("gsm8k", True, "partial", 9),
        ("gsm8k", False, "partial", 256),
        ("gsm8k", False, "complied", 256),
        ("unsafe", False, "refused", 48),
    ]
    verdicts = pd.DataFrame(rows, columns=["kind", "ended", "outcome", "tokens"])
    sets = {"unsafe": Asked(attempts, Refusal()), "gsm8k": Asked(attempts, Number())}
    assert cut_short(verdicts, sets) == ["gsm8k: 1 of 3 answers were cut off at 256 tokens and count as wrong"]
