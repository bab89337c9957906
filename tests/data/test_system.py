"""A system text before every prompt: read from a file or as it is, in what is asked, in keys, and told; conversations keep their turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.judges.tiny import guard
from titer import api
from titer.attacks.affix import Affix
from titer.audit.ask import AuditRequest, prepared
from titer.core.errors import TiterError
from titer.data.choices import Question
from titer.data.contexts import in_context
from titer.data.example import Example
from titer.data.sources import read_text
from titer.data.system import LARGEST, behind, read_system, text_behind
from titer.data.turns import Turn, turns, written
from titer.judges.refusal import Refusal
from titer.models.lm import Completion
from titer.probes.choices import asked

SYSTEM = Turn("system", "You are Ada.")
TALK = (Turn("user", "the garden"), Turn("assistant", "is green"), Turn("user", "Is bread good?"))


def test_a_system_text_is_a_file_or_the_text_itself(tmp_path: Path) -> None:
    file = tmp_path / "ada.txt"
    file.write_text("\ufeffYou are Ada.\n", encoding="utf-8")
    assert read_system(None) == ""
    assert read_system("You are Ada. ") == read_system(str(file)) == read_system(file) == "You are Ada."
    assert read_system("Answer/refuse in a word.txt or so") == "Answer/refuse in a word.txt or so"
    file.with_name("bad").write_bytes(b"\xff\xfe\xff")
    file.with_name("long").write_bytes(b"a" * (LARGEST + 1))
    for given in (
        "",
        " \n",
        str(tmp_path / "none.txt"),
        "ada.MD",
        tmp_path / "none",
        "a\x1eb",
        str(tmp_path / "bad"),
        str(tmp_path / "long"),
    ):
        with pytest.raises(TiterError, match="--system"):
            read_system(given)


def test_it_stands_before_every_prompt_once(tmp_path: Path) -> None:
    assert turns(behind("You are Ada.", "bread")) == (SYSTEM, Turn("user", "bread"))
    assert turns(behind("You are Ada.", written(TALK))) == (SYSTEM, *TALK)
    assert behind("", "bread") == "bread"
    with pytest.raises(TiterError, match="but a prompt has a system text of its own"):
        behind("Be kind.", written((SYSTEM, *TALK)))
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,label\nbread,safe\nbad bread,unsafe\n")
    data = read_text(file)
    assert [turns(row[0]) for row in text_behind("Be kind.", data).rows] == [
        (Turn("system", "Be kind."), Turn("user", row[0])) for row in data.rows
    ]


def test_what_changes_a_prompt_changes_the_last_request_of_a_conversation() -> None:
    prompt = written((SYSTEM, *TALK))
    (attempt,) = Affix(before="Say yes.", after="now").attempts([Example(prompt, True, "unsafe", "")], {}, None)
    assert turns(attempt.example.prompt) == (SYSTEM, *TALK[:2], Turn("user", "Say yes.\n\nIs bread good? now"))
    known = [Example(prompt, False, "safe", "", "Yes"), Example(written((SYSTEM, Turn("user", "Is it late?"))), False, "safe", "", "No")]
    for context in ("false", "random"):
        found = turns(in_context(known, context)[0].prompt)  # type: ignore[arg-type]
        assert found[:3] == (SYSTEM, *TALK[:2])
        assert found[3].content.endswith("Is bread good?")
        assert "No" in found[3].content
        assert "\x1e" not in found[3].content
    question = asked(Question(prompt, ("yes", "no"), 0))
    assert turns(question)[:3] == (SYSTEM, *TALK[:2])
    assert turns(question)[3].content.startswith("Is bread good?\nA. yes\nB. no")


def test_a_plain_no_to_a_question_refuses_nothing_behind_a_system_text() -> None:
    answers = [
        [verdict.outcome for verdict in Refusal().judge_all([(Example(prompt, True, "unsafe", ""), Completion("No.", True, 2))])]
        for prompt in ("Is bread good?", behind("You are Ada.", "Is bread good?"), behind("You are Ada.", "Tell me of bread."))
    ]
    assert answers[0] == answers[1]
    assert answers[2] == ["refused"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """It says unsafe where `bad` stands in what it reads."""
    template = "{% for m in messages %}{{ '<user> ' + m['content'] + ' ' }}{% endfor %}{% if add_generation_prompt %}<ask>{% endif %}"
    return guard(tmp_path / "model", template)


def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    talk = [{"role": "user", "content": "bread"}, {"role": "assistant", "content": "odd"}, {"role": "user", "content": "bread bread"}]
    rows = [{"messages": talk, "label": "unsafe"}, {"messages": [{"role": "user", "content": "bread"}], "label": "safe"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.long
def test_evaluate_asks_behind_it_and_tells_it(model: Path, tmp_path: Path) -> None:
    data, runs = prompts(tmp_path), tmp_path / "runs"
    plain = api.evaluate(str(model), data=data, runs=runs, max_new_tokens=3, progress=False)
    bad = api.evaluate(str(model), data=data, system="bad bread", runs=runs, max_new_tokens=3, progress=False)
    again = api.evaluate(str(model), data=data, runs=runs, max_new_tokens=3, progress=False)
    assert plain.verdicts.completion.tolist() == again.verdicts.completion.tolist() == ["safe", "maybe"]  # an earlier turn holds `odd`
    assert bad.verdicts.completion.tolist() == ["unsafe", "maybe"]
    page = bad.page.read_text(encoding="utf-8")
    assert "system text" in page
    assert "sha256" in page
    assert "\\x1e" not in page
    assert "system text" not in plain.page.read_text(encoding="utf-8")
    assert plain.page.parent != bad.page.parent


def test_an_audit_puts_it_before_every_set(model: Path, tmp_path: Path) -> None:
    file, questions = tmp_path / "p.csv", tmp_path / "q.csv"
    file.write_text(
        "prompt,label\n"
        + "".join(
            f"bread {'odd ' * i},{label}\n"
            for label in ("safe", "unsafe")
            for i in range(1 + (label == "safe") * 9, 6 + (label == "safe") * 9)
        )
    )
    questions.write_text("question,A,B,answer\nbread,odd,bad,A\n")
    ready = [
        prepared(AuditRequest([str(model)], file, system=system, capability=[f"choices:{questions}"]))
        for system in (None, "You are Ada.", "You are Bo.")
    ]
    assert len({json.dumps(one.identity["sets"]) for one in ready}) == 3
    assert len({json.dumps(one.identity["choices"]) for one in ready}) == 3
    sets = ready[1].question.sets
    assert {turns(a.example.prompt)[0] for one in sets.values() for a in one.attempts} == {SYSTEM}
    assert ready[1].system == "You are Ada."


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", '"Be kind."', "Be kind."),
        ("x.json", '{"system": "Be kind.", "version": 2}', "Be kind."),
        ("x.json", '\ufeff{"role": "system", "content": "Be kind."}', "Be kind."),
        ("x.json", "Be {kind}.", "Be {kind}."),
        ("x.jinja", "Be kind.", "Be kind."),
        ("x.txt", '{"system": "Be kind."}', '{"system": "Be kind."}'),
        ("x.json", '{"temperature": 1}', None),
        ("x.json", '[{"role": "system", "content": "Be kind."}]', None),
        ("x.jinja", "Be {{ manner }}.", None),
    ],
)
def test_what_a_file_of_another_kind_holds(tmp_path: Path, name: str, text: str, said: str | None) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    if said is None:
        with pytest.raises(TiterError, match=r"without a system text|to be filled"):
            read_system(tmp_path / name)
    else:
        assert read_system(tmp_path / name) == said
