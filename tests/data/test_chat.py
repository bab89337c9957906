"""Chat templates: what is trained is what the template writes of the whole conversation, and the mask is the answer's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.spoken import ENDS, TEMPLATES, bytewise, metaspace
from titer.core.errors import TiterError
from titer.data.encode import answer_ids, encode, end_id, fitted, open_ids, prompt_ids, prompt_text
from titer.data.example import IGNORE
from titer.data.turns import Turn, turns, written

MADE = {name: bytewise(name) for name in TEMPLATES}
ASKED = "How do I bake bread?"
ANSWERS = ["Mix flour.", "  Mix flour and water. \n", "\n\nthe garden", "M", "is <|im_end|> green", "a\u00e9\u4e2d"]
TALK = (Turn("system", "You are Ada."), Turn("user", "the garden"), Turn("assistant", "is green"), Turn("user", ASKED))
TEXT = st.text(alphabet="abM \n.é", min_size=1, max_size=12).filter(str.strip)


def messages(said: Sequence[Turn]) -> list[dict[str, str]]:
    """The turns as transformers' own call takes them."""
    return [turn._asdict() for turn in said]


def whole_text(tokenizer: Any, prompt: str, answer: str) -> tuple[str, str]:
    """(prompt, rest) of the conversation as the tokenizer's own template writes it."""
    said = messages(turns(prompt))
    head = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*said, {"role": "assistant", "content": answer}], tokenize=False)
    assert whole.startswith(head)
    return head, whole[len(head) :]


def parts(tokenizer: Any, prompt: str, answer: str) -> tuple[str, str]:
    """(text of the unlabelled tokens, text of the labelled ones) of the one row that is trained."""
    batch = encode(tokenizer, [prompt], [answer], np.arange(1))
    ids, labels = batch.input_ids[0].tolist(), batch.labels[0].tolist()
    first = next(i for i, label in enumerate(labels) if label != IGNORE)
    assert labels == [IGNORE] * first + ids[first:]
    return tokenizer.decode(ids[:first]), tokenizer.decode(ids[first:])


@pytest.mark.parametrize("prompt", [ASKED, written(TALK[1:]), written(TALK)], ids=["one turn", "three turns", "a system text too"])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", ["chatml", "strip", "inst"])
def test_the_trained_text_is_the_templates_up_to_the_answers_end(name: str, answer: str, prompt: str) -> None:
    head, rest = whole_text(MADE[name], prompt, answer)
    last = rest.rindex(ENDS[name]) + len(ENDS[name])
    assert rest[last:].strip() == ""
    assert parts(MADE[name], prompt, answer) == (head, rest[:last])


@pytest.mark.long
@settings(max_examples=150)
@given(st.sampled_from(["chatml", "strip", "inst", "strict"]), TEXT, TEXT)
def test_any_answer_is_trained_as_the_template_writes_it(name: str, prompt: str, answer: str) -> None:
    head, rest = whole_text(MADE[name], prompt, answer)
    assert parts(MADE[name], prompt, answer) == (head, rest[: rest.rindex(ENDS[name]) + len(ENDS[name])])


@pytest.mark.parametrize("name", ["chatml", "strict"])
def test_the_labels_are_the_tokens_whose_offsets_lie_in_the_answer(name: str) -> None:
    """The other form: the whole conversation tokenised once, each token labelled by where it stands."""
    tokenizer, answer = MADE[name], "Mix flour and water."
    head, rest = whole_text(tokenizer, ASKED, answer)
    last = len(head) + rest.rindex(ENDS[name]) + len(ENDS[name])
    found = tokenizer(head + rest, add_special_tokens=False, return_offsets_mapping=True)
    kept = [(i, s) for i, (s, e) in zip(found["input_ids"], found["offset_mapping"], strict=True) if e <= last]
    batch = encode(tokenizer, [ASKED], [answer], np.arange(1))
    assert batch.input_ids[0].tolist() == [i for i, _ in kept]
    assert batch.labels[0].tolist() == [i if s >= len(head) else IGNORE for i, s in kept]


def test_a_merge_over_the_boundary_moves_no_label() -> None:
    """Where prefix counting goes wrong: the prompt's last token and the answer's first would be one."""
    tokenizer, answer = MADE["strip"], "Mix flour"
    head, rest = whole_text(tokenizer, ASKED, answer)
    whole = tokenizer(head + rest, add_special_tokens=False)["input_ids"]
    ids = prompt_ids(tokenizer, [ASKED])[0]
    assert whole[: len(ids)] != ids  # the case is real
    assert parts(tokenizer, ASKED, answer) == (head, f"{answer}<|im_end|>")


def test_a_tokenizer_that_begins_texts_with_a_blank_adds_none_to_an_answer() -> None:
    tokenizer, answer = metaspace("strict"), "Mix flour"
    head, _ = whole_text(tokenizer, ASKED, answer)
    batch = encode(tokenizer, [ASKED], [answer], np.arange(1))
    assert batch.input_ids[0].tolist() == tokenizer(f"{head}{answer}</s>", add_special_tokens=False)["input_ids"]
    alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert answer_ids(tokenizer, [answer])[0][:-1] != alone
    assert open_ids(tokenizer, [answer])[0] == answer_ids(tokenizer, [answer])[0][:-1]


def test_the_end_token_is_the_templates_own() -> None:
    for name, end in ENDS.items():
        assert end_id(MADE[name]) == MADE[name].convert_tokens_to_ids(end)
        assert answer_ids(MADE[name], ["Mix", ""])[1][-1] == end_id(MADE[name])
    for tokenizer in (MADE["words"], bytewise()):
        assert end_id(tokenizer) == tokenizer.eos_token_id


def test_a_template_of_words_ends_with_the_end_of_sequence() -> None:
    assert parts(MADE["words"], ASKED, "Mix flour") == (f"user: {ASKED}\nassistant:", " Mix flour</s>")


def test_an_answer_that_was_given_its_end_has_one_end() -> None:
    assert parts(MADE["chatml"], ASKED, "Mix<|im_end|>")[1] == "Mix<|im_end|>"


def test_an_open_answer_stops_before_what_ends_it() -> None:
    assert MADE["inst"].decode(open_ids(MADE["inst"], ["Mix flour"])[0]) == " Mix flour"
    assert MADE["inst"].decode(answer_ids(MADE["inst"], ["Mix flour"])[0]) == " Mix flour </s>"


@pytest.mark.parametrize("name", ["strict", "deaf"])
def test_a_template_without_system_texts_gets_it_in_the_first_request(name: str) -> None:
    said = [{"role": "user", "content": "You are Ada.\n\nthe garden"}, *messages(TALK[2:])]
    expected = MADE[name].apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert prompt_text(MADE[name], written(TALK)) == expected


def test_a_template_that_refuses_the_turns_is_told() -> None:
    tokenizer = bytewise("chatml")
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(TiterError, match="refuses a conversation of user: never"):
        prompt_text(tokenizer, "a")


def test_without_a_template_turns_are_joined() -> None:
    tokenizer = bytewise()
    assert prompt_text(tokenizer, ASKED) == ASKED
    assert prompt_text(tokenizer, written((TALK[0], TALK[3]))) == f"You are Ada.\n\n{ASKED}"
    assert (
        prompt_text(tokenizer, written(TALK))
        == f"You are Ada.\n\nUser:\nthe garden\n\nAssistant:\nis green\n\nUser:\n{ASKED}\n\nAssistant:\n"
    )


LONG = (
    Turn("system", "You are Ada."),
    *(turn for i in range(3) for turn in (Turn("user", f"the garden {i} is"), Turn("assistant", "green"))),
    Turn("user", "bread " * 30 + "water"),
)


@pytest.mark.parametrize("name", ["chatml", "strip", "strict", None])
@pytest.mark.parametrize("longest", [12, 40, 90, 130, 10_000])
def test_a_conversation_that_is_too_long_keeps_its_ends(name: str | None, longest: int) -> None:
    tokenizer = bytewise(name)
    prompt, answer = written(LONG), "Mix flour and water, then let it rise."
    whole, tail = prompt_ids(tokenizer, [prompt])[0], answer_ids(tokenizer, [answer])[0]
    (found,) = fitted(tokenizer, [prompt], [answer], longest)
    assert len(found.prompt) + len(found.answer) == min(longest, len(whole) + len(tail)) or found.cut_prompt > 0
    assert len(found.prompt) + len(found.answer) <= longest
    assert (len(found.prompt) + found.cut_prompt, len(found.answer) + found.cut_answer) == (len(whole), len(tail))
    assert found.answer == tail[: len(found.answer)]
    assert found.answer
    text = tokenizer.decode(found.prompt)
    if longest == 10_000:
        assert found.prompt == whole
    if name and longest >= 90:
        assert text.startswith(tokenizer.decode(whole)[:20])
        assert text.endswith("water" + tokenizer.decode(whole).partition("water")[2])
        assert ("the garden 0" in text) == (longest == 10_000)
        assert text.count("Ada") == 1


def test_encoding_to_a_length_cuts_and_never_trains_nothing() -> None:
    tokenizer = MADE["chatml"]
    batch = encode(tokenizer, [ASKED * 20, ASKED], ["Mix flour. " * 40, "Mix"], np.arange(2), longest=64)
    assert batch.input_ids.shape == (2, 64)
    assert (batch.labels != IGNORE).sum(1).tolist() == [64 - len(prompt_ids(tokenizer, ["?"])[0]), len(answer_ids(tokenizer, ["Mix"])[0])]
    whole = encode(tokenizer, [ASKED], ["Mix"], np.arange(1))
    assert encode(tokenizer, [ASKED], ["Mix"], np.arange(1), longest=64).input_ids.equal(whole.input_ids)
