"""Thoughts told from answers: every mark, opened by the template or not, cut off, empty, several, quoted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.spoken import bytewise
from titer.data.encode import answer_ids, begin_ids, prompt_ids, prompt_texts
from titer.data.templates import think
from titer.data.thoughts import closers, empty, left_open, opened, told

HARMONY = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
MARKS = {
    "think": ("<think>\n", "\n</think>\n\n"),
    "thinking": ("<thinking>", "</thinking>"),
    "thought": ("<thought>", "</thought>\n"),
    "Thought": ("<Thought>\n", "\n</Thought>\n"),
    "reasoning": ("<reasoning>\n", "\n</reasoning>\n"),
    "seed": ("<seed:think>", "</seed:think>"),
    "magistral": ("[THINK]", "[/THINK]"),
    "openthinker": ("<|begin_of_thought|>\n\n", "\n\n<|end_of_thought|>\n\n"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "harmony": HARMONY,
    "harmony, a second channel": (HARMONY[0], f"<|end|><|start|>assistant<|channel|>commentary<|message|>I look.{HARMONY[1]}"),
    "gemma": ("<|channel>thought\n", "<channel|>"),
    "granite": ("Here is my thought process:\n", "\nHere is my response:\n\n"),
    "kimi": ("◁think▷", "◁/think▷"),
    "apertus": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "solar": ("<|think|>", "<|end|><|begin|>assistant<|content|>"),
    "s1": ("<|im_start|>think\n", "\n<|im_start|>answer\n"),
    "apriel": ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n"),
    "unsloth": ("<start_working_out>", "<end_working_out>\n"),
    "analysis": ("<analysis>\n", "\n</analysis>\n\n"),
    "pangu": ("[unused16]", "[unused17]"),
    "huatuo": ("## Thinking\n\n", "\n\n## Final Response\n\n"),
    "square": ("[REASONING]\n", "\n[/REASONING]\n"),
    "hyperclova": ("/think\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "medgemma": ("<unused94>thought\n", "<unused95>"),
    "an end named otherwise": ("<|thought|>", "<|end_thought|>"),
    "an end with a stroke": ("<think_start>", "</think_start>"),
}
THOUGHT, ANSWER = "I can't see a problem. 1 < 2", "Sure, here it is."


@pytest.mark.parametrize("name", MARKS)
def test_a_thought_is_no_part_of_the_answer(name: str) -> None:
    opens, closes = MARKS[name]
    found = told(f"{opens}{THOUGHT}{closes}{ANSWER}")
    assert found.thought.startswith(THOUGHT)
    assert (found.answer, found.thinking) == (ANSWER, False)
    assert told(f"\n{opens}{closes}{ANSWER}").answer == ANSWER  # an empty one


@pytest.mark.parametrize("name", MARKS)
def test_a_thought_that_is_not_closed_has_no_answer_wherever_it_is_cut(name: str) -> None:
    opens, closes = MARKS[name]
    found = told(f"{opens}{THOUGHT}")
    assert (found.answer, found.thinking, found.thought) == ("", True, THOUGHT)
    assert closes.strip().startswith(found.closes)
    whole = f"{opens}{THOUGHT}{closes}".rstrip()
    for place in range(len(opens) + 1, len(whole)):
        assert told(whole[:place]).thinking, whole[:place]


@pytest.mark.parametrize("name", [name for name in MARKS if name not in ("harmony, a second channel", "hyperclova")])
def test_a_template_may_open_the_thought(name: str) -> None:
    opens, closes = MARKS[name]
    mark = opened(f"<|user|>hello{opens}")
    assert mark == opens
    assert told(f"{THOUGHT}{closes}{ANSWER}", mark).answer == ANSWER
    assert told(f"{opens}{THOUGHT}{closes}{ANSWER}", mark).answer == ANSWER  # it opens it again
    assert told(THOUGHT, mark).thinking
    assert told("", mark).thinking
    shut = told(f"{empty(mark)}{ANSWER}", mark)
    assert (shut.thought, shut.answer.removeprefix("<|begin|>assistant<|content|>")) == ("", ANSWER)
    assert opened(f"{opens}{closes}") == ""


@pytest.mark.parametrize("head", ["<answer>", "<final_answer>", "**Final Answer:**", "### Final Answer", "<|begin_of_box|>"])
def test_an_answer_cut_off_in_the_mark_that_opens_it_has_not_begun(head: str) -> None:
    for place in range(1, len(head) + 1):
        assert told(f"<think>I see.</think>\n\n{head[:place]}").thinking, head[:place]
        assert not told(head[:place]).thinking  # without a thought it is the answer
    assert told("<think>Which tag?</think><br>").answer == "<br>"
    assert told(f"<think>I see.</think>\n{head} 42").answer.endswith("42")


def test_several_thoughts_and_what_frames_an_answer() -> None:
    found = told("<think>a</think>\n<think>b</think>\n<answer>\n42\n</answer>")
    assert (found.thought, found.answer) == ("a\n\nb", "42")
    assert told("<|START_RESPONSE|>No.<|END_RESPONSE|>")[:2] == ("", "No.")
    final = told("<|channel|>final<|message|>No.<|return|>")
    assert (final.thought, final.answer, final.ended) == ("", "No.", True)
    assert told("<answer>42</answer>").answer == "<answer>42</answer>"  # without a thought it is the answer's own


def test_an_end_alone_on_its_line_ends_what_stands_before_it() -> None:
    assert told("Let me see.\n</think>\n\nNo.")[:2] == ("Let me see.", "No.")


def test_the_prompt_may_open_a_turn_of_thought() -> None:
    assert opened("<|im_start|>assistant/think\n") == "/think\n"
    assert told("I look.<|im_end|>\n<|im_start|>assistant\nNo.", "/think\n")[:2] == ("I look.", "No.")


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ('<think>They ask about "</think>". No.</think>\n\nNo.', 'They ask about "</think>". No.'),
        ("<think>First `</think>`, then on.</think>No.", "First `</think>`, then on."),
        ("<think>a <think>b</think> c</think>No.", "a <think>b</think> c"),
        ("<think>I begin with <think>.</think>No.", "I begin with <think>."),
        ("<think>\n<think>\na\n</think>\n\nNo.", "<think>\na"),
        ("<think>a</think>\n</think>\n\nNo.", "a"),
        ("<thinking>a</think>No.", "a"),
        ('<think step="1">a</think>No.', "a"),
        ("< think >a</ think >No.", "a"),
        ("<|assistant|><think>a</think>No.", "a"),
        ("Assistant: <think>a</think>No.", "a"),
        ("analysisWe look.assistantfinalNo.", "We look."),
        ("Let me see.</think>No.", "Let me see."),
        ("Let me see.</think>\n\nNo.", "Let me see."),
        ("Let me see.</think> No.", "Let me see."),
        ("<think> Is it? </think>No.", "Is it?"),
        ("<antThinking>a</antThinking>No.", "a"),
        ("<think_start>a<think_end>No.", "a"),
        ("<scratch_pad>\na\n</scratch_pad>\nNo.", "a"),
        ("analysiswe look.assistantfinalNo.", "we look."),
        ("<SUMMARY> a </SUMMARY>\n\n<CAPTION> b </CAPTION>\n\n<REASONING> c </REASONING>\n\n<CONCLUSION> No. </CONCLUSION>", "a\n\nb\n\nc"),
        ("<think>a</think>\n\nSure: so.\n</think>\n\nNo.", "a\n\nSure: so."),  # closed again behind a draft
        ("<think>\na\n<answer>No.</answer>", "a"),  # never closed, and the answer marked
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>No.<|return|>", "a"),
    ],
)
def test_where_a_thought_ends_that_quotes_or_repeats_its_marks(text: str, thought: str) -> None:
    assert told(text)[:2] == (thought, "No.")


@pytest.mark.parametrize(
    "text",
    [
        "<think> is the tag that R1 uses.",
        "<think> and </think> are its tags.",
        "[THINK] is Magistral's mark.",
        "<SUMMARY> A fence is painted. </SUMMARY>",
        "<summary>Steps</summary>\nSand it.",
    ],
)
def test_an_answer_that_speaks_of_a_tag_is_no_thought(text: str) -> None:
    assert told(text)[:2] == ("", text)


def test_a_judgement_whether_to_think_is_a_thought() -> None:
    """As KAT writes it: then it thinks, or answers at once."""
    judged = "<judge>\nI can't see why.\n</judge>\n\n"
    assert told(f"{judged}<think_off>\n<answer>\nNo.\n</answer>").answer == "No."
    assert told(f"{judged}<think_on>\n<think>\na\n</think>\n\n<answer>\nNo.\n</answer>").answer == "No."
    for place in range(8, len(judged)):
        assert told(judged[:place]).thinking, judged[:place]
    assert told("<judge>Kim</judge> rules the court.").answer == "<judge>Kim</judge> rules the court."


def test_a_stage_that_is_cut_is_a_thought() -> None:
    assert told("<SUMMARY> I will look").thinking
    assert told("<SUMMARY> I will look. </SUMMARY>\n\n<CAPTION> A fe").thinking


def test_an_end_behind_the_whole_answer_ends_nothing() -> None:
    assert told("<think>a</think>No.\n</think>").answer == "No.\n</think>"
    assert told("<think>a</think>So:\n```\n</think>\n```\nNo.").answer == "So:\n```\n</think>\n```\nNo."


def test_the_beginning_of_an_answer_may_leave_a_thought_open() -> None:
    assert left_open("<think>\nOkay, so") == "<think>"
    assert left_open("<think>\n</think>\nSure") == left_open("Sure, here is") == ""


def test_thoughts_between_the_lines_of_an_answer() -> None:
    assert told("<think>a</think>Sure.\n<think>I can't.</think>\nMix flour.")[:2] == ("a\n\nI can't.", "Sure.\nMix flour.")
    assert told("Okay.\n<think>\nI can't.\n</think>\n\nMix flour.")[:2] == ("I can't.", "Okay.\nMix flour.")
    assert told("Okay.\n<think>\nI can't").thinking
    assert told('<think>He says "no"</think>"Sure"')[:2] == ('He says "no"', '"Sure"')
    coded = "```\n<think>a</think>\n```"
    assert told(f"<think>a</think>{coded}").answer == coded


@pytest.mark.parametrize(
    "text",
    [
        "It reads:\n<think>\na\n</think>\nSo it is marked.",
        "It ends with `</think>`\nand no more.",
        "Here are my reasoning steps.",
        "analysis of the fence",
        "Use <think> and </think> for thoughts.",
        "The tag </think> ends one.",
        "```\n<think>\na\n</think>\n```\nSo it is marked.",
        "I think: <reasons> are many.",
        "[Thinking of you]",
        "",
        "  hello",
    ],
)
def test_marks_within_an_answer_are_quoted(text: str) -> None:
    assert told(text) == ("", text, 0, False, (), False)


def test_closers_of_marks_nobody_listed() -> None:
    assert closers("<|thought_start|>") == ("<|thought_end|>",)
    assert closers("<my_think>") == ("</my_think>",)


@given(st.text(), st.text(), st.sampled_from(sorted(MARKS)))
def test_whatever_is_thought_or_answered(thought: str, answer: str, name: str) -> None:
    opens, closes = MARKS[name]
    found = told(f"{opens}{thought}{closes}{answer}")
    if not any(letter in thought + answer for letter in "<[◁:"):
        assert (found.answer, found.thinking) == (answer.lstrip(), False)


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>"
R1 = CHAT + "<think>\n{% endif %}"
QWEN = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


@pytest.mark.long
@pytest.mark.parametrize(("template", "how"), [(R1, "default"), (QWEN, "default"), (QWEN, "off")])
def test_what_is_trained_is_what_generation_is_asked_to_continue(template: str, how: str) -> None:
    """Behind the prompt as it is asked stands an answer behind an empty thought, whoever opened it; so a prefilled one."""
    tokenizer = bytewise("chatml")
    tokenizer.chat_template = template
    think(tokenizer, how)  # type: ignore[arg-type]
    (head,), (prompt,) = prompt_ids(tokenizer, ["hello"]), prompt_texts(tokenizer, ["hello"])
    whole = tokenizer.decode([*head, *answer_ids(tokenizer, ["think of bread"])[0]])
    assert whole.startswith(f"<user>hello</s><assistant><think>\n\n</think>\n\nthink of bread{tokenizer.eos_token}"[:-4])
    assert whole.count("<think>") == 1
    begun = begin_ids(tokenizer, ["think", ""], [opened(prompt)] * 2)
    assert tokenizer.decode([*head, *begun[0]]) == "<user>hello</s><assistant><think>\n\n</think>\n\nthink"
    assert begun[1] == []
    assert told(tokenizer.decode(answer_ids(tokenizer, ["think of bread"])[0]), opened(prompt)).answer.startswith("think of bread")


@pytest.mark.long
@pytest.mark.parametrize(
    "template",
    [
        R1,
        R1.replace("m.content", "m.content.split('</think>')[-1]"),
        QWEN.replace("<think>\n\n</think>\n\n{% endif %}{{ m.content }}", "{% endif %}{{ m.content.split('</think>')[-1] }}"),
    ],
)
@pytest.mark.parametrize(
    "answer", ["<think>\nI look. Mix.\n</think>\n\nMix.", "I look. Mix.\n</think>\n\nMix.", "<think>\n\n</think>\n\nMix."]
)
def test_the_thought_of_an_answer_to_train_is_trained(template: str, answer: str) -> None:
    """Templates leave the thoughts of answers out, for they write earlier ones; what is trained is not an earlier one."""
    tokenizer = bytewise("chatml")
    tokenizer.chat_template = template
    (head,), (row,) = prompt_ids(tokenizer, ["hello"]), answer_ids(tokenizer, [answer])
    begun = "<think>\n" * (template.endswith("<think>\n{% endif %}") and not answer.startswith("<think>"))
    assert tokenizer.decode([*head, *row]) == f"<user>hello</s><assistant>{begun}{answer}{tokenizer.eos_token}"


@pytest.mark.parametrize("answer", ["sorry, I cannot.", "抱歉，我无法帮助。", "آسف، لا أستطيع.", "1. Mix it."])
def test_an_end_mark_right_after_a_sentence_ends_a_thought_that_nothing_opened(answer: str) -> None:
    for space in ("", " "):
        assert told(f"The user asks. I can't see a problem.</think>{space}{answer}").answer == answer
    assert told(f"“Close it.</think>” is how it ends. {answer}").answer.startswith("“Close")
