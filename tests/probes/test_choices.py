"""Multiple choice by log-likelihood: each option's score is that of its tokens, one by one, whatever shares its batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tests.data.spoken import bytewise, metaspace
from titer.core.errors import TiterError
from titer.data.choices import Question, read_choices
from titer.data.encode import prompt_text
from titer.models.lm import LM
from titer.probes.choices import asked, choices, picked

QUESTIONS = (
    Question("What rises in an oven?", ("stone", "bread", "iron", "glass"), 1),
    Question("Which is green? " * 4, ("the garden", "a stone"), 0),
    Question("How many?", ("1", "a hundred and one", "ten"), 2),
)


def made(tokenizer: Any, seed: int = 0) -> LM:
    """A tiny Llama with lively weights over a tokenizer of its own."""
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.5}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LM(
            LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes, **ids)).eval(), tokenizer, "tiny"
        )


@torch.no_grad()
def naive(lm: LM, before: str, answer: str, templated: bool) -> tuple[float, int]:
    """One row, one pass a token."""
    ids = lm.tokenizer([before], add_special_tokens=not templated)["input_ids"][0]
    tail = lm.tokenizer([answer], add_special_tokens=False)["input_ids"][0]
    total = 0.0
    for token in tail:
        total += float(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])
        ids = [*ids, token]
    return total, len(tail)


@pytest.mark.parametrize("template", ["strict", "inst", None])
@pytest.mark.parametrize("room", [1, 150, 100_000])
def test_the_score_is_that_of_the_options_tokens(template: str | None, room: int) -> None:
    lm = made(bytewise(template))
    table = choices(lm, QUESTIONS, room)
    assert [(int(q), int(o)) for q, o in zip(table["question"], table["option"], strict=True)] == [
        (i, k) for i, q in enumerate(QUESTIONS) for k in range(len(q.options))
    ]
    assert table["right"].tolist() == [q.right == k for q in QUESTIONS for k in range(len(q.options))]
    for row in table.itertuples():
        question = QUESTIONS[row.question]
        text = "ABCD"[row.option]
        before = prompt_text(lm.tokenizer, asked(question, template is not None))
        total, tokens = naive(lm, before, text if template == "strict" else f" {text}", template is not None)
        assert row.tokens == tokens
        assert row.total == pytest.approx(total, abs=2e-4)


def test_a_tokenizer_that_adds_blanks_scores_the_text_behind_the_prompt() -> None:
    lm = made(metaspace("strict"))
    row = choices(lm, QUESTIONS[:1]).iloc[1]
    head = prompt_text(lm.tokenizer, asked(QUESTIONS[0]))
    whole = lm.tokenizer([head, f"{head}B"], add_special_tokens=False)["input_ids"]
    assert whole[1][: len(whole[0])] == whole[0]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([whole[0]])).logits[0, -1]
    assert row["total"] == pytest.approx(float(logits.log_softmax(-1)[whole[1][-1]]), abs=1e-4)


def test_a_model_that_always_says_b_is_right_where_b_is() -> None:
    """Known answer: the output's bias is planted."""
    tokenizer = bytewise("strict")
    lm = made(tokenizer)
    with torch.no_grad():
        lm.model.model.norm.weight.zero_()  # every logit is 0 ...
    flat = picked(choices(lm, QUESTIONS))
    assert flat.right.tolist() == [False] * 3  # ... and a tie is no choice
    assert flat.options.tolist() == [[0, 1, 2, 3], [0, 1], [0, 1, 2]]
    (letter,) = tokenizer("B", add_special_tokens=False)["input_ids"]

    class Biased(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            out[..., letter] += 3
            return out

    lm.model.lm_head.__class__ = Biased
    found = picked(choices(lm, QUESTIONS))
    assert found.options.tolist() == [[1]] * 3
    assert found.right.tolist() == [q.right == 1 for q in QUESTIONS]


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(-3, 0), min_size=2, max_size=5), st.integers(0, 4)), min_size=1, max_size=8))
def test_the_right_option_must_win_alone(drawn: list[tuple[list[int], int]]) -> None:
    sets = [(values, right % len(values)) for values, right in drawn]
    rows = [(i, k, k == right, float(v)) for i, (values, right) in enumerate(sets) for k, v in enumerate(values)]
    found = picked(pd.DataFrame(rows, columns=["question", "option", "right", "total"]))
    assert found.right.tolist() == [all(values[right] > v for k, v in enumerate(values) if k != right) for values, right in sets]
    assert found.options.tolist() == [[k for k, v in enumerate(values) if v == max(values)] for values, _ in sets]


def test_a_question_without_a_number_has_no_choice() -> None:
    """A model of which every logit is NaN: the question still has its row."""
    rows = [(0, 0, True, float("nan")), (0, 1, False, float("nan")), (1, 0, True, -1.0), (1, 1, False, -2.0)]
    found = picked(pd.DataFrame(rows, columns=["question", "option", "right", "total"]))
    assert found[["options", "right"]].values.tolist() == [[[], False], [[0], True]]


def test_the_options_are_listed_by_letter() -> None:
    assert asked(QUESTIONS[0]).startswith("What rises in an oven?\nA. stone\nB. bread\nC. iron\nD. glass\n\nAnswer with the letter")
    assert asked(QUESTIONS[0], templated=False).endswith("D. glass\nAnswer:")


def test_no_question_or_one_too_long_is_told() -> None:
    lm = made(bytewise())
    with pytest.raises(TiterError, match="no question"):
        choices(lm, [])
    with pytest.raises(TiterError, match="window of 512"):
        choices(lm, [QUESTIONS[0]._replace(text="bread? " * 600)])


def test_from_a_file_to_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"question": q.text, "choices": q.options, "answer": q.right}) for q in QUESTIONS))
    found = picked(choices(made(bytewise("chatml")), read_choices(path).questions))
    assert found.question.tolist() == [0, 1, 2]
    assert all(found.options.map(len) >= 1)
