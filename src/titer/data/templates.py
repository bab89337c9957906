"""Writes conversations with a model's chat template: the only place where a conversation becomes the text that a model reads.

A template takes each speaker's content as a text or, for vision-language models, as a list of parts {type, text}. Some take no system
text; it is then put before the first request. A test conversation shows what a template takes (`_forms`). All that was said must be
found in what the template wrote: leaving something out is an error. A template runs in a separate process (`rendering.py`) with a
fixed date; further variables for it are stored in the tokenizer's attribute `template_variables`.
A tokenizer that writes conversations with its own code (which its user asked for) runs in this process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from markupsafe import escape
from transformers import PreTrainedTokenizerBase

from titer.core.config import digest
from titer.core.errors import TiterError, visible
from titer.data import thoughts
from titer.data.rendering import DATE, Chat, Written, written
from titer.data.turns import Role, Turn

VERSION = 1  # bump when a conversation may be written in another way
VARIABLES = "template_variables"
LARGEST = 2**20  # letters of a template; those of real models have up to some 30,000
PROBES: dict[Role, str] = {"system": "Qelvamosu", "user": "Rivantopek", "assistant": "Zumbradeli"}
NEXT = "look at the chat template in the model's folder, or give a copy of the folder with one that writes text conversations."
Content = Literal["text", "parts"]
FORMS: tuple[Content, ...] = ("text", "parts")
NAMES = re.compile(r"\b\w*(?:think|thought|reason)\w*", re.IGNORECASE)  # what a variable about thoughts may be called
AGAINST = re.compile(r"(?:non?|skip|disabled?|without|omit|bypass|suppress)_?(?:think|thought|reason)", re.IGNORECASE)  # true turns it off
SWITCHES: tuple[tuple[Any, Any], ...] = (("on", "off"), ("enabled", "disabled"), (True, False))  # words if the template has them
SIZED = re.compile("budget|tokens|length")  # a variable for a number of tokens: 0 turns thinking off, leaving it out turns it on
GRADED = re.compile("effort|level|mode")  # a variable for words, which must occur in the template
GRADES = (("high", "none"), *SWITCHES[:2], ("think", "no_think"), ("thinking", "chat"))
Thinking = Literal["on", "off", "default"]
Writes = Callable[[Sequence[Chat], bool], list[Written]]  # (conversations, whether to add the generation prompt)


class Forms(NamedTuple):
    """In which form a template takes each speaker's content; None: it takes no such turn."""

    user: Content
    system: Content | None
    assistant: Content | None


def templated(tokenizer: Any) -> bool:
    """Tells whether prompts to the model go through a chat template (or through the tokenizer's own code)."""
    return bool(getattr(tokenizer, "chat_template", None)) or _own(tokenizer)


def told(tokenizer: Any) -> str:
    """Describes how prompts are written, for a report's provenance: with which template, date and variables."""
    if not templated(tokenizer):
        return "none: prompts are plain text"
    if _own(tokenizer):
        return "by the tokenizer's own code"
    text, variables = template_of(tokenizer), getattr(tokenizer, VARIABLES, {})
    dated = f", its date {DATE}" if "strftime_now" in text else ""
    return f"sha256 {digest(text)}{dated}" + (f", {json.dumps(variables, sort_keys=True)}" if variables else "")


def template_of(tokenizer: Any) -> str:
    """Returns the template's text; of several, the one named default. Errors: none is; the template is not text, or is too long."""
    found = tokenizer.chat_template
    if isinstance(found, list | tuple) and all(isinstance(one, Mapping) for one in found):
        found = {str(one.get("name")): one.get("template") for one in found}
    if isinstance(found, Mapping):
        if "default" not in found:
            raise _failed(tokenizer, f"there are several ({', '.join(map(str, found))}) and none is called default")
        found = found["default"]
    if not isinstance(found, str):
        raise _failed(tokenizer, f"it is stored as {type(found).__name__}, not as text")
    if len(found) > LARGEST:
        raise _failed(tokenizer, f"it has {len(found)} letters, more than {LARGEST}")
    return found


def texts(tokenizer: Any, conversations: Sequence[Sequence[Turn]]) -> list[str]:
    """Writes each conversation with the template, up to where an answer begins (with the generation prompt).

    Errors: a template that fails, is stopped, refuses the turns, or leaves out what was said.
    """
    writes, forms = _reading(tokenizer)
    said = [_placed(one, forms) for one in conversations]
    found = writes([_messages(one, forms) for one in said], True)
    return [_checked(tokenizer, one, made) for one, made in zip(said, found, strict=True)]


def answered(tokenizer: Any, said: Sequence[Turn], answers: Sequence[str]) -> list[str | None]:
    """Writes the conversation once for each answer, as its last turn; None where the template cannot write that. Errors: as `texts`."""
    writes, forms = _reading(tokenizer)
    if forms.assistant is None:
        return [None] * len(answers)
    before = _placed(said, forms)
    found = writes([_messages([*before, Turn("assistant", answer)], forms) for answer in answers], False)
    return [None if made.fault else made.text for made in found]


def think(tokenizer: Any, how: Thinking) -> Any:
    """Turns a model's thinking on or off with the template's own variable for it; returns the tokenizer. Errors: there is no such one."""
    if how == "default":
        return tokenizer
    template = template_of(tokenizer) if templated(tokenizer) and not _own(tokenizer) else ""
    before = getattr(tokenizer, VARIABLES, {})
    for name in sorted(dict.fromkeys(NAMES.findall(template)), key=lambda name: bool(AGAINST.match(name)) != (how == "off")):
        for on, off in ((None, 0),) if SIZED.search(name) else GRADES if GRADED.search(name) else SWITCHES:
            if isinstance(off, str) and not re.search(rf"""(["']){off}\1""", template):
                continue
            given = [{**before, **({} if value is None else {name: value})} for value in ((off, on) if AGAINST.match(name) else (on, off))]
            wrote = [_with(tokenizer, one) for one in given]
            if None not in wrote and wrote[0] != wrote[1]:
                setattr(tokenizer, VARIABLES, given[how == "off"])
                return tokenizer
    raise TiterError(
        f"--thinking {how}: the chat template of {visible(_name(tokenizer), 80)} has no variable that turns thinking on and off",
        expected="one, such as enable_thinking",
        next_step="leave out --thinking; where the model's card names words for it, give them with --system.",
    )


def _with(tokenizer: Any, variables: Mapping[str, Any]) -> str | None:
    """Sets these variables and returns what the template then writes for a test request; None if it fails."""
    setattr(tokenizer, VARIABLES, variables)
    try:
        return texts(tokenizer, [[Turn("user", PROBES["user"])]])[0]
    except TiterError:
        return None


def takes_system(tokenizer: Any) -> bool:
    """Tells whether a system text gets its own turn; otherwise it is put before the first request."""
    return not templated(tokenizer) or _reading(tokenizer)[1].system is not None


def place(text: str, within: str) -> tuple[int, int] | None:
    """Finds a text in what a template wrote: as it is, stripped, escaped for JSON or HTML, or with other white space.
    Returns (start, end); None if it is not there."""
    bare = text.strip()
    for form in (text, text.lstrip(), bare, json.dumps(bare, ensure_ascii=False)[1:-1], str(escape(bare))):
        if (at := within.find(form)) >= 0:
            return at, at + len(form)
    letters, wanted = [i for i, letter in enumerate(within) if not letter.isspace()], "".join(bare.split())
    at = "".join(within[i] for i in letters).find(wanted)
    return None if at < 0 else (letters[at], letters[at + len(wanted) - 1] + 1)


def _own(tokenizer: Any) -> bool:
    """Tells whether a tokenizer writes conversations with its own code, which may need no template."""
    own = getattr(type(tokenizer), "apply_chat_template", None)
    return own is not None and own is not PreTrainedTokenizerBase.apply_chat_template


def _reading(tokenizer: Any) -> tuple[Writes, Forms]:
    """Returns the function that writes the tokenizer's conversations, and the forms it takes. Errors: it takes a user's text in no form."""
    variables = getattr(tokenizer, VARIABLES, {})
    if _own(tokenizer):
        writes: Writes = partial(_by_code, tokenizer, variables)
        found = _forms(writes)
    else:
        template, given = template_of(tokenizer), {**tokenizer.special_tokens_map, **variables}
        writes = partial(written, template, given)
        found = _known(template, json.dumps(given, sort_keys=True))
    if isinstance(found, Forms):
        return writes, found
    if found.refused:
        raise _failed(tokenizer, f"it refuses a conversation of user: {found.fault}")
    raise _failed(tokenizer, found.fault or "it leaves out what the user says, given as text or as a list of parts")


@lru_cache(maxsize=64)
def _known(template: str, variables: str) -> Forms | Written:
    """Returns `_forms` of a template. Cached, since only the template and its variables decide them."""
    return _forms(partial(written, template, json.loads(variables)))


def _forms(writes: Writes) -> Forms | Written:
    """Finds the forms that a template takes, by test conversations (text is preferred); or returns how it failed with a user's turn."""
    user, asked = Turn("user", PROBES["user"]), Forms("text", None, None)
    tried = writes([_messages([user], asked._replace(user=form)) for form in FORMS], True)
    known = [form for form, made in zip(FORMS, tried, strict=True) if _said([user], made)]
    if not known:
        return next((made for made in tried if made.fault), Written(""))
    form = asked._replace(user=known[0])
    system, assistant = Turn("system", PROBES["system"]), Turn("assistant", PROBES["assistant"])
    for one in FORMS[::-1]:  # text is tried last, so that it wins if both are taken
        tries = form._replace(system=one, assistant=one)
        (opened,), (closed,) = writes([_messages([system, user], tries)], True), writes([_messages([user, assistant], tries)], False)
        form = form._replace(
            system=one if _said([system, user], opened) else form.system,
            assistant=one if _said([user, assistant], closed) else form.assistant,
        )
    return form


def _said(talk: Sequence[Turn], made: Written) -> bool:
    """Tells whether all turns' contents are in what was written, and not as a printed Python list."""
    return all(turn.content in made.text for turn in talk) and "'type'" not in made.text


def _by_code(tokenizer: Any, variables: Mapping[str, Any], chats: Sequence[Chat], opened: bool) -> list[Written]:
    """Writes conversations with the tokenizer's own code."""
    found = []
    for chat in chats:
        try:
            text = tokenizer.apply_chat_template([*chat], tokenize=False, add_generation_prompt=opened, **variables)
        except Exception as error:  # noqa: BLE001  code of its own
            found.append(Written("", f"{type(error).__name__}: {error}"))
        else:
            found.append(Written(text) if isinstance(text, str) else Written("", f"it wrote {type(text).__name__}, not text"))
    return found


def _placed(said: Sequence[Turn], forms: Forms) -> Sequence[Turn]:
    """Puts the system text into the first request if the template takes no system turn; else returns the turns unchanged."""
    if said[0].role != "system" or forms.system is not None:
        return said
    first = f"{said[0].content}\n\n{said[1].content}" if said[1].role == "user" else said[0].content
    return [Turn("user", first), *said[2 if said[1].role == "user" else 1 :]]


def _messages(said: Sequence[Turn], forms: Forms) -> Chat:
    """Converts turns to messages in the forms that the template takes."""
    parts = {role for role in PROBES if getattr(forms, role) == "parts"}
    return [{"role": t.role, "content": [{"type": "text", "text": t.content}] if t.role in parts else t.content} for t in said]


def _checked(tokenizer: Any, said: Sequence[Turn], made: Written) -> str:
    """Returns the written text after a check. Errors: the template failed, or something that was said is missing."""
    if made.fault:
        roles = f"{', '.join(turn.role for turn in said)}: {visible(said[-1].content, 60)!r}"
        what = f"it refuses a conversation of {roles} ({made.fault})" if made.refused else f"{made.fault}, with a conversation of {roles}"
        raise _failed(tokenizer, what, "leave out that row, or give the tokenizer a template that takes it.")
    for turn in said:
        kept = thoughts.told(turn.content).answer if turn.role == "assistant" else turn.content  # earlier thoughts are left out by design
        if place(kept, made.text) is None:
            lost = f"what the {turn.role} says is not in what it wrote: {visible(turn.content, 60)!r}"
            raise _failed(tokenizer, lost, "leave out that row, or give the tokenizer a template that keeps it.")
    return made.text


def _failed(tokenizer: Any, why: str, step: str = NEXT) -> TiterError:
    name = _name(tokenizer)
    return TiterError(f"the chat template{f' of {visible(name, 80)}' if name else ''} fails: {visible(why, 400)}", next_step=step)


def _name(tokenizer: Any) -> str:
    return PurePath(str(getattr(tokenizer, "name_or_path", ""))).name
