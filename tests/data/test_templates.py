"""Chat templates of many families: content as they take it, what was said found again, a fixed date, failures and endless ones told."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.families import FAMILIES, LOOP, PARTS
from tests.data.spoken import TEMPLATES, bytewise
from titer.core.errors import TiterError
from titer.data import rendering
from titer.data.encode import answer_ids, encode, prompt_ids, prompt_text
from titer.data.templates import DATE, VARIABLES, _reading, place, takes_system, templated, texts, think, told
from titer.data.turns import Turn, written

ASKED = 'How "do" I bake bread & butter?\n\nAnd <when>?'
TALK = (Turn("system", "You are Ada."), Turn("user", "the garden"), Turn("assistant", "is green"), Turn("user", ASKED))


def made(template: Any) -> Any:
    found = bytewise("chatml")
    found.chat_template = template
    return found


KNOWN = {name: made(template) for name, (template, _) in FAMILIES.items()}


def theirs(tokenizer: Any, said: list[Turn], forms: tuple[str, str | None, str | None], opened: bool = True) -> str:
    """transformers' own call, with content as the family takes it, on the fixed date."""
    kinds = dict(zip(("user", "system", "assistant"), forms, strict=True))
    chat = [{"role": t.role, "content": [{"type": "text", "text": t.content}] if kinds[t.role] == PARTS else t.content} for t in said]
    text: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opened)
    for form in ("%d %b %Y", "%Y-%m-%d", "%B %d, %Y"):
        text = text.replace(time.strftime(form), rendering.Fixed.now().strftime(form))
    return text


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_content_is_handed_over_as_the_template_takes_it(name: str) -> None:
    forms = FAMILIES[name][1]
    assert tuple(_reading(KNOWN[name])[1]) == forms
    assert prompt_text(KNOWN[name], ASKED) == theirs(KNOWN[name], [Turn("user", ASKED)], forms)
    assert takes_system(KNOWN[name]) == (forms[1] is not None)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "no answers"])
def test_a_conversation_is_what_transformers_writes_of_it(name: str) -> None:
    forms = FAMILIES[name][1]
    said = list(TALK) if forms[1] else [Turn("user", "You are Ada.\n\nthe garden"), *TALK[2:]]
    text = prompt_text(KNOWN[name], written(TALK))
    assert text == theirs(KNOWN[name], said, forms)
    assert all(place(turn.content, text) for turn in TALK)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_the_whole_answer(name: str) -> None:
    tokenizer, answer = KNOWN[name], "Mix flour & water,\nthen\u00e9 let it rise."
    batch = encode(tokenizer, [ASKED], [answer], np.arange(1))
    trained = tokenizer.decode(batch.labels[0][batch.labels[0] >= 0])
    assert place(answer, trained)
    assert tokenizer.decode(batch.input_ids[0]).endswith(trained)


def test_an_answer_that_the_template_takes_apart_is_not_trained() -> None:
    tokenizer = made(LOOP + "{{ m['role'] }}{{ m['content'] | replace('flour', 'sand') }}</s>{% endfor %}")
    assert answer_ids(tokenizer, ["Mix water"])
    with pytest.raises(TiterError, match="leaves out or rewrites an answer that is to be trained: 'Mix flour'"):
        answer_ids(tokenizer, ["Mix flour"])


@settings(max_examples=60)
@given(st.sampled_from(list(FAMILIES)), st.text(alphabet="abM \n.\u00e9<\"&'{%}", min_size=1, max_size=20).filter(str.strip))
def test_any_prompt_stands_in_what_is_asked(name: str, prompt: str) -> None:
    assert place(prompt, prompt_text(KNOWN[name], prompt))


def test_a_request_that_the_template_leaves_out_is_told() -> None:
    for template in (
        "<|im_start|>hello",
        "{{ messages[0]['role'] }}",
        LOOP + "{{ m['content'][:3] }}{% endfor %}",
        "{{ messages | length }}",
    ):
        with pytest.raises(TiterError, match="leaves out what the user says, given as text or as a list of parts"):
            prompt_text(made(template), ASKED)
    cuts = made(LOOP + "{{ m['content'] | replace('<when>', '') }}{% endfor %}")
    assert prompt_text(cuts, "bread") == "bread"
    with pytest.raises(TiterError, match="what the user says is not in what it wrote: 'How"):
        prompt_text(cuts, ASKED)
    with pytest.raises(TiterError, match="what the user says is not in what it wrote: 'the garden'"):
        prompt_text(made("{{ messages[-1]['content'] }}"), written(TALK[1:]))


def test_an_earlier_thought_may_be_left_out_and_no_answer() -> None:
    said = [Turn("user", "the garden"), Turn("assistant", "<think>\nhm\n</think>\n\nis green"), Turn("user", ASKED)]
    assert "hm" not in (text := texts(KNOWN["qwen 3"], [said])[0])
    assert "is green" in text
    assert texts(KNOWN["deepseek r1"], [said])[0].count("<think>") == 1


def test_the_date_is_fixed_and_told() -> None:
    assert prompt_text(KNOWN["llama 3.2"], "bread").count("Today Date: 26 Jul 2024") == 1
    assert "Current date: 2024-07-26" in prompt_text(KNOWN["gpt-oss"], "bread")
    assert DATE in told(KNOWN["granite 3"])
    assert DATE not in told(KNOWN["qwen 2"])
    assert told(bytewise()) == "none: prompts are plain text"
    assert told(KNOWN["qwen 2"]) != told(KNOWN["phi 3"])


def test_a_template_that_draws_at_random_asks_the_same_twice() -> None:
    drawn = made("{% for m in messages %}{{ m['content'] }}{% endfor %}{{ range(10 ** 5) | random }}")
    assert prompt_text(drawn, "bread") == prompt_text(drawn, "bread") != "bread"


def test_variables_ride_on_the_tokenizer() -> None:
    tokenizer = made(FAMILIES["qwen 3"][0])
    assert prompt_text(tokenizer, "bread").endswith("assistant\n")
    tokenizer.template_variables = {"enable_thinking": False}
    assert prompt_text(tokenizer, "bread").endswith("assistant\n<think>\n\n</think>\n\n")
    assert '{"enable_thinking": false}' in told(tokenizer)


def test_one_of_several_templates_is_the_default() -> None:
    both = {"default": TEMPLATES["chatml"], "rag": "{{ documents[0] }}"}
    for stored in (both, [{"name": name, "template": template} for name, template in both.items()]):
        assert prompt_text(made(stored), ASKED) == prompt_text(made(TEMPLATES["chatml"]), ASKED)
    with pytest.raises(TiterError, match=r"there are several \(chat, rag\) and none is called default"):
        prompt_text(made({"chat": "a", "rag": "b"}), ASKED)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (LOOP + "{{ m['content'] }}{{ tools|length }}{% endfor %}", "TypeError: object of type 'NoneType' has no len"),
        ("{{ messages[0]['content'] }}{{ nothing.at.all }}", "UndefinedError: 'nothing' is undefined"),
        ("{{ messages[0]['content'] }}{{ {}['a']['b'] }}", "UndefinedError"),
        ("{{ messages[5]['content'] }}", "UndefinedError: list object has no element 5"),
        ("{{ messages[0]['content'] }}{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages | nosuchfilter }}", "TemplateAssertionError"),
        ("{% include 'passwd' %}", "TypeError: no loader"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ raise_exception('never') }}", "refuses a conversation of user: never"),
        (5, "it is stored as int, not as text"),
        (["a"], "it is stored as list, not as text"),
        ({"default": None}, "it is stored as NoneType, not as text"),
        ("x" * (2**20 + 1), "it has 1048577 letters"),
    ],
)
def test_whatever_a_template_raises_is_one_sentence(template: Any, why: str) -> None:
    with pytest.raises(TiterError, match="the chat template fails: ") as told:
        prompt_ids(made(template), [ASKED])
    assert why in told.value.what
    assert "\n" not in str(told.value)
    assert told.value.status == 2


ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a number": "{{ 9 ** (9 ** 9) }}",
    "doubled": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "at once": "{{ 'x' * 10 ** 11 }}",
    "a width": "{{ '%099999999999d' % 1 }}",
    "a filter": "{{ 'x' | center(10 ** 11) }}",
    "bytes": "{{ (1).to_bytes(10 ** 11, 'big') }}",
    "written": "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
}


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(one, marks=() if one in ("loops", "at once") else pytest.mark.long) for one in ENDLESS])
def test_a_template_without_end_is_stopped_and_the_next_is_rendered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.2)  # of computing, not on the clock
    late = LOOP + "{{ m['content'] }}{% endfor %}{% if 'bread' in messages[0]['content'] %}" + ENDLESS[name] + "{% endif %}"
    for template in (ENDLESS[name], late) if name in ("loops", "doubled") else (ENDLESS[name],):
        with pytest.raises(TiterError, match=r"the chat template (was stopped: it (ran on|took)|fails: it (took|wrote))") as told:
            prompt_text(made(template), ASKED)
        assert told.value.status == 2
    assert prompt_text(made(TEMPLATES["chatml"]), ASKED).endswith("assistant\n")


@pytest.mark.long
def test_a_process_that_renders_and_dies_is_started_again() -> None:
    prompt_text(made(TEMPLATES["strip"]), ASKED)
    child = rendering._child(rendering.os.getpid())._running
    assert child is not None
    child.kill()
    assert prompt_text(made(TEMPLATES["strip"]), ASKED).startswith("<|im_start|>user\n\nHow")


def test_a_tokenizer_with_code_of_its_own_is_asked_itself() -> None:
    tokenizer = bytewise()

    class Own(type(tokenizer)):  # type: ignore[misc]
        """As a folder's code, which its user asked for."""

        def apply_chat_template(self, conversation: Any, tokenize: bool, add_generation_prompt: bool, **more: Any) -> Any:
            if any(turn["role"] == "system" for turn in conversation):
                raise KeyError("system")
            return "".join(f"<{turn['role']}>{turn['content']}" for turn in conversation) + "<assistant>" * add_generation_prompt

    tokenizer.__class__ = Own
    assert templated(tokenizer)
    assert prompt_text(tokenizer, "bread") == "<user>bread<assistant>"
    assert prompt_text(tokenizer, written((TALK[0], Turn("user", "bread")))) == "<user>You are Ada.\n\nbread<assistant>"
    assert tokenizer.decode(answer_ids(tokenizer, ["Mix"])[0]) == "Mix</s>"


def test_a_text_is_found_as_it_is_stripped_escaped_or_with_other_blanks() -> None:
    for text, within in [(" a b ", "x a b y"), ('"a"\n', 'x\\"a\\"y'), ("a < 'b'", "xa &lt; &#39;b&#39;y"), ("a\n\n b", "xa by")]:
        found = place(text, within)
        assert found is not None
        assert within[: found[0]].strip() == "x"
        assert within[found[1] :].strip() == "y"
    assert place("a c", "a b") is None
    assert place("", "a") == (0, 0)


SWITCH = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>"
ASKS = {
    "enable_thinking": "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
    "thinking": "{% if thinking %}<think>{% else %}</think>{% endif %}",
    "reasoning": "{% if reasoning is defined and not reasoning %}<|START_THINKING|><|END_THINKING|>{% endif %}",
    "reasoning_effort": "{% if reasoning_effort == 'none' %}[/THINK]{% elif reasoning_effort == 'high' %}[THINK]{% endif %}",
}


@pytest.mark.parametrize(
    ("asks", "on", "off"),
    [
        ("{% if disable_thinking %}</think>{% else %}<think>{% endif %}", "<think>", "</think>"),
        ("{% if no_think %}</think>{% endif %}", "", "</think>"),
        ("{% if force_reasoning %}/think{% elif skip_reasoning %}/answer{% endif %}", "/think", "/answer"),  # HyperCLOVA's; else it chooses
        ("{% if thinking_mode == 'disabled' %}</think>{% endif %}", "", "</think>"),
        ("{{ 'detailed thinking ' ~ thinking_option | default('off') }}", "detailed thinking on", "detailed thinking off"),
    ],
)
def test_a_variable_may_turn_thinking_off_or_take_words(asks: str, on: str, off: str) -> None:
    wrote = {how: texts(think(made(SWITCH + asks), how), [[Turn("user", "hello")]])[0] for how in ("on", "off")}  # type: ignore[arg-type]
    assert wrote == {"on": f"<user>hello<a>{on}", "off": f"<user>hello<a>{off}"}


@pytest.mark.parametrize("variable", ASKS)
def test_thinking_is_turned_on_and_off_by_the_templates_own_variable(variable: str) -> None:
    wrote = {}
    for how in ("on", "off", "default"):
        told = think(made(SWITCH + ASKS[variable]), how)  # type: ignore[arg-type]
        wrote[how] = texts(told, [[Turn("user", "hello")]])[0]
        assert set(getattr(told, VARIABLES, {})) == ({variable} if how != "default" else set())
    assert wrote["on"] != wrote["off"]


@pytest.mark.parametrize(
    "template", [SWITCH, None, SWITCH + "{{ messages[0].reasoning_content }}", SWITCH + "{% if reasoning_effort == 'low' %}low{% endif %}"]
)
def test_a_template_without_one_is_an_error_in_a_sentence(template: str | None) -> None:
    with pytest.raises(TiterError, match=r"--thinking off: the chat template of .* has no variable that turns thinking on and off"):
        think(made(template), "off")


def test_a_budget_of_thought_is_none_or_without_bound() -> None:
    """As Seed-OSS has it: what is true would be a budget of one token."""
    asks = SWITCH + "{% set b = thinking_budget | default(-1) %}{% if b == 0 %}none{% elif b > 0 %}{{ b }}{% endif %}"
    wrote = {how: texts(think(made(asks), how), [[Turn("user", "hello")]])[0] for how in ("on", "off")}  # type: ignore[arg-type]
    assert wrote == {"on": "<user>hello<a>", "off": "<user>hello<a>none"}


def test_an_earlier_thought_may_be_left_out_whatever_its_marks() -> None:
    late = SWITCH.replace("m.content", "m.content.split('[/THINK]')[-1]")
    talk = [Turn("user", "hello"), Turn("assistant", "[THINK]a[/THINK]Hi."), Turn("user", "bye")]
    assert texts(made(late), [talk]) == ["<user>hello<assistant>Hi.<user>bye<a>"]


@pytest.mark.parametrize("variable", ["thinking", "enable_thinking", "reasoning"])
def test_a_thought_is_not_trained_behind_a_closed_one(variable: str) -> None:
    marks = ("<|START_THINKING|>", "<|END_THINKING|>") if variable == "reasoning" else ("<think>", "</think>")
    thought, answer = f"{marks[0]}hm{marks[1]}Mix", f"{marks[0]}{marks[1]}Mix"
    off = think(made(SWITCH + ASKS[variable]), "off")
    with pytest.raises(TiterError, match=r"closes the thought before the answer.*--thinking on"):
        answer_ids(off, ["Mix", thought])
    on = think(made(SWITCH + ASKS[variable]), "on")
    assert "hm" in on.decode(answer_ids(on, [thought])[0])
    assert "Mix" in off.decode(answer_ids(off, [answer])[0])  # no thought is lost
