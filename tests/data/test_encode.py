"""Text as token batches: the answer alone is trained, whichever side is padded, and nothing is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import titer
from tests.data.naive import NANO
from titer.core.errors import TiterError
from titer.data.encode import answer_ids, check_length, encode, pad, prompt_ids, prompt_text
from titer.data.example import IGNORE

TEMPLATE = "{% for m in messages %}<bos> f0 {{ m['content'] }} <sot> {% endfor %}{% if add_generation_prompt %}<eot> {% endif %}"
WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return NANO.tokenizer()


@pytest.fixture
def chat() -> Any:
    """A tokenizer with a chat template, and with one that would add a second <bos> if it were asked to."""
    from tokenizers.processors import TemplateProcessing

    found = NANO.tokenizer()
    found.chat_template = TEMPLATE
    found.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return found


def trained(batch: Any) -> list[list[tuple[int, int]]]:
    """(position, token) of every labelled token of each row."""
    places = batch.position_ids if batch.position_ids is not None else torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
    return [[(int(p), int(t)) for p, t in zip(*pair, strict=True) if t != IGNORE] for pair in zip(places, batch.labels, strict=True)]


@pytest.mark.long
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_the_answer_and_its_end_are_labelled_and_nothing_else(tokenizer: Any, rows: list[tuple[str, str]]) -> None:
    prompts, answers = [p for p, _ in rows], [a for _, a in rows]
    batch = encode(tokenizer, prompts, answers, np.arange(len(rows)))
    for (prompt, answer), found in zip(rows, trained(batch), strict=True):
        ids = [*tokenizer.convert_tokens_to_ids(answer.split()), tokenizer.eos_token_id]
        first = len(prompt.split())
        assert found == [(first + i, token) for i, token in enumerate(ids)]


@pytest.mark.long
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_the_padding_side_changes_no_label_and_no_position(tokenizer: Any, rows: list[tuple[str, str]]) -> None:
    prompts, answers = [p for p, _ in rows], [a for _, a in rows]
    right, left = (encode(tokenizer, prompts, answers, np.arange(len(rows)), side=side) for side in ("right", "left"))  # type: ignore[arg-type]
    assert trained(right) == trained(left)
    assert right.input_ids.shape == left.input_ids.shape
    if right.attention_mask is None or left.attention_mask is None:
        assert torch.equal(right.input_ids, left.input_ids)
        return
    assert torch.equal(left.attention_mask, right.attention_mask.flip(1))
    for i in range(len(rows)):
        one, two = (b.input_ids[i][b.attention_mask[i].bool()].tolist() for b in (left, right))  # type: ignore[index]
        assert one == two
    for batch in (left, right):
        assert (batch.input_ids[batch.attention_mask == 0] == tokenizer.pad_token_id).all()  # type: ignore[operator]
        assert (batch.labels[batch.attention_mask == 0] == IGNORE).all()  # type: ignore[operator]


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6), min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_padded_rows_hold_their_rows(rows: list[list[int]], side: Any) -> None:
    ids, mask = pad(rows, 0, side)
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    for row, padded, real in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        rest = [0] * (len(padded) - len(row))
        assert padded == (rest + row if side == "left" else row + rest)
        assert real == [int(token != 0) for token in padded]


def test_an_answer_that_ends_itself_is_not_ended_twice(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    assert answer_ids(tokenizer, ["a b", "a b <stop>", ""]) == [[*tokenizer.convert_tokens_to_ids(["a", "b"]), end]] * 2 + [[end]]


def test_a_prompt_goes_through_the_chat_template_once(chat: Any, tokenizer: Any) -> None:
    assert prompt_text(chat, "a b").split() == ["<bos>", "f0", "a", "b", "<sot>", "<eot>"]
    assert chat.convert_ids_to_tokens(prompt_ids(chat, ["a b"])[0]) == ["<bos>", "f0", "a", "b", "<sot>", "<eot>"]
    assert prompt_text(tokenizer, "a b") == "a b"


def test_without_a_template_the_tokenizer_adds_its_own_special_tokens(chat: Any) -> None:
    chat.chat_template = None
    assert chat.convert_ids_to_tokens(prompt_ids(chat, ["a b"])[0]) == ["<bos>", "a", "b"]
    assert chat.convert_ids_to_tokens(answer_ids(chat, ["a"])[0]) == ["a", "<stop>"]


def test_templated_rows_train_the_answer_alone(chat: Any) -> None:
    batch = encode(chat, ["a b", "c"], ["d", "e f"], np.arange(2))
    assert [[chat.convert_ids_to_tokens(token) for _, token in row] for row in trained(batch)] == [["d", "<stop>"], ["e", "f", "<stop>"]]


def test_a_row_longer_than_the_window_is_refused_not_cut(tokenizer: Any) -> None:
    assert encode(tokenizer, ["a b c"], ["d"], np.arange(1), window=5).input_ids.shape == (1, 5)
    with pytest.raises(TiterError, match=r"5 tokens \(answer included\).*window of 4.*'a b c'"):
        encode(tokenizer, ["a b c"], ["d"], np.arange(1), window=4)


def test_a_window_is_only_a_limit_where_there_is_one() -> None:
    check_length(10**9, None, "x")
    check_length(3, 3, "x")
    with pytest.raises(TiterError) as raised:
        check_length(4, 3, "\x1b[31m" * 100)
    assert "\x1b" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_the_indices_are_the_callers(tokenizer: Any) -> None:
    assert encode(tokenizer, ["a", "b"], ["c", "d"], np.array([41, 7])).indices.tolist() == [41, 7]


def test_nothing_padded_needs_no_mask(tokenizer: Any) -> None:
    batch = encode(tokenizer, ["a", "b"], ["c", "d"], np.arange(2))
    assert (batch.attention_mask, batch.position_ids) == (None, None)


def test_a_tokenizer_without_its_token_for_unknown_words_is_an_error() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="[UNK]")), eos_token="a")
    assert prompt_ids(bare, ["a"]) == [[0]]
    with pytest.raises(TiterError, match=r"the tokenizer cannot read a text: Exception: WordLevel error.*unk_token"):
        prompt_ids(bare, ["b"])
    with pytest.raises(TiterError, match="cannot read a text"):
        answer_ids(bare, ["b"])


def test_texts_become_tokens_in_one_place_which_tells_a_failing_tokenizer() -> None:
    source = Path(titer.__file__).parent
    calls = {str(file.relative_to(source)) for file in source.rglob("*.py") if "add_special_tokens=" in file.read_text(encoding="utf-8")}
    assert calls == {"data/encode.py", "judges/classifier.py"}  # a classifier has a tokenizer of its own, and a judge that fails is told
