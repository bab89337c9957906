"""Room for thoughts beside room for answers, on models whose thoughts and answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.models.thinking import CHATML, HELP, LONG, MARKS, OPENING, REFUSAL, SAFE, SHORT, UNSAFE, said, taught
from titer.models.checkpoint import open_checkpoint
from titer.models.context_windows import completion
from titer.models.lm import LM, Completion, Decoding, load

HARMONY = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")
KINDS = {
    "tokens": lambda folder: taught(folder, said(*MARKS), plain=("<think>", "</think>")),
    "text alone": lambda folder: taught(folder, said("<reasoning>\n", "\n</reasoning>\n")),
    "opened": lambda folder: taught(folder, said("", MARKS[1]), OPENING),
    "turns": lambda folder: taught(
        folder, said("/think\n", "<|im_end|>\n<|im_start|>assistant\n"), CHATML.replace("assistant\n{% endif", "assistant{% endif")
    ),
    "special": lambda folder: taught(folder, said("[THINK]", "[/THINK]"), special=("[THINK]", "[/THINK]")),
    "harmony": lambda folder: taught(
        folder, said(*HARMONY), CHATML.replace("<|im_end|>", "<|end|>"), special=("<|channel|>", "<|message|>", "<|end|>", "<|start|>")
    ),
}
ASKED = [*UNSAFE, *SAFE]
SPELT = "Here's my thought process: sand it, then paint it."


USUAL = ("tokens", "text alone", "harmony")
OPENS = {"tokens": MARKS[0], "text alone": "<reasoning>\n", "special": "[THINK]", "harmony": HARMONY[0]}


@pytest.fixture(scope="module", params=[pytest.param(one, marks=() if one in USUAL else pytest.mark.long) for one in sorted(KINDS)])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LM:
    return load(open_checkpoint(KINDS[request.param](tmp_path_factory.mktemp("thinking") / request.param)), "cpu")


@pytest.mark.long
def test_the_answer_is_told_from_the_thought(lm: LM) -> None:
    for batch, asked in ((8, ASKED), (3, ASKED), (1, ASKED[3:5])):
        found = lm.generate(asked, Decoding(max_new_tokens=64), batch)
        assert [c.text for c in found] == [REFUSAL if prompt in UNSAFE else HELP for prompt in asked]
        assert [c.thought for c in found] == [LONG if prompt in UNSAFE else SHORT for prompt in asked]
        assert all(c.ended and not c.unfinished for c in found)


@pytest.mark.long
def test_thoughts_have_room_of_their_own(lm: LM) -> None:
    """However short the answer may be, the thought goes on; and however long the thought, the answer is as long."""
    (whole,), own = lm.generate(UNSAFE[:1], Decoding(max_new_tokens=200)), lm.tokenizer(REFUSAL)["input_ids"]
    (short,) = lm.generate(UNSAFE[:1], Decoding(max_new_tokens=4))
    assert (short.thought, short.ended, short.unfinished) == (LONG, False, False)
    assert REFUSAL.startswith(short.text)
    assert 0 < len(short.text) < len(REFUSAL)
    assert short.tokens < whole.tokens
    thought = whole.tokens - len(own)
    for room in (5, thought // 2):
        for new in (4, 64, 200):
            (cut,) = lm.generate(UNSAFE[:1], Decoding(max_new_tokens=new, max_thinking_tokens=room))
            assert cut == Completion("", False, room, cut.thought, True), new
            assert LONG.startswith(cut.thought)
    assert lm.generate(UNSAFE[:1], Decoding(max_new_tokens=64, max_thinking_tokens=thought + 8)) == [whole]


@pytest.mark.long
def test_without_room_of_their_own_both_share(lm: LM) -> None:
    (cut,) = lm.generate(UNSAFE[:1], Decoding(max_new_tokens=20, max_thinking_tokens=0))
    assert (cut.text, cut.unfinished, cut.ended, cut.tokens) == ("", True, False, 20)


def test_a_prefilled_answer_has_no_thought(lm: LM) -> None:
    (found,) = lm.generate(UNSAFE[:1], Decoding(max_new_tokens=8), prefixes=["I'm sorry, but"])
    assert (found.thought, found.unfinished) == ("", False)


def test_a_prefilled_beginning_may_be_of_a_thought(lm: LM) -> None:
    opens = next((mark for kind, mark in OPENS.items() if f"/{kind}/" in f"{lm.tokenizer.name_or_path}/"), "")
    if not opens:
        pytest.skip("its template opens the thought, or its thought is a turn")
    (found,) = lm.generate(UNSAFE[:1], Decoding(max_new_tokens=64), prefixes=[opens + LONG[:20]])
    assert (found.text, found.ended) == (REFUSAL, True)
    assert found.thought.endswith("Careful.")


@pytest.mark.long
def test_sampled_answers_are_the_same_again(lm: LM) -> None:
    hot = Decoding(max_new_tokens=8, temperature=0.5, seed=3)
    assert lm.generate(ASKED, hot, 3) == lm.generate(ASKED, hot, 3)


@pytest.mark.parametrize(("template", "answer"), [(None, SPELT), ("{{ 'Here is my thought process:' }}", "")])
def test_words_that_any_model_may_write_open_no_thought_of_one_that_does_not_think(template: str | None, answer: str) -> None:
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)), chat_template=template)
    found = completion(tokenizer, [0], [*map(ord, SPELT), 0], most=8, room=200)
    assert (found.text, found.ended, found.unfinished) == (answer, True, not answer)
