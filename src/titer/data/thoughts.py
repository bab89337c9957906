"""Thoughts that a model writes before its answer: how they are marked, told from the answer, opened and closed. L1.

A thought stands at the start of what is written, several may follow each other; marks further on are quoted, not meant. Marks that are
known: tags (<think>, <thinking>, <thought>, <reasoning>, <seed:think>, [THINK], <|begin_of_thought|>, <|START_THINKING|> and their
like), harmony's channels (every one but "final"), Gemma's channel, Apertus' and Solar's, Granite's words. A template may open the thought
itself, at the end of the prompt: then the text holds its end alone.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

VERSION = 1  # bump when an answer may be told from its thought otherwise
ROOM = 1024  # new tokens of a thought, where nobody says how many and the window holds them
NAME = r"(?:(?!end)\w+[:_])?(?:think|thinking|thoughts?|reason|reasoning|scratchpad|reflection)"
FIRST, LAST = r"(?:begin_?of_?|start_?of_?|begin_|start_)", r"(?:_begin|_start)"
TAG = rf"<{NAME}>|\[THINK\]|[◁⟨]{NAME}[▷⟩]|<\|(?:{FIRST}?{NAME}|{NAME}{LAST})\|>"
HARMONY = r"(?:<\|start\|>assistant)?<\|channel\|>(?!\s*final\b)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
MESSAGE = ("<|end|>", "<|call|>")  # what ends a message of harmony's
WORDS = r"Here(?:'s| is) my thought process:"
OPENS = re.compile(rf"\s*((?i:{TAG})|{HARMONY}|<\|channel>thought|<\|inner_prefix\|>|{WORDS})")
OPENED = re.compile(rf"({TAG}|{HARMONY}|<\|channel>thought|<\|inner_prefix\|>)\s*\Z", re.IGNORECASE)
SPEAKS = re.compile(  # what opens the answer itself, with a thought before it or without
    r"\s*(?:(?:<\|start\|>assistant)?<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"|<\|START_RESPONSE\|>|<\|begin_of_solution\|>|(?:<\|begin\|>assistant)?<\|content\|>)"
)
TAGGED = re.compile(r"\s*<(answer|response|output|Answer|Output)>")  # ... where a thought stands before it
SPOKEN = re.compile(r"<\|END_RESPONSE\|>|<\|end_of_solution\|>|<\|(?:end|return|call)\|>")
# a header of a message that is not whole, or is to come
BETWEEN = re.compile(r"\s*(?:<\|(?:start|begin)\|>|<\|channel\|>)(?:(?!<\|(?:message|content)\|>).)*\Z", re.DOTALL)
BEFORE = re.compile(r"\s*(?:<(?:\|(?:\w+\|?)?)?)?")
ORPHAN = re.compile(rf"(?:\A|\n)[ \t]*(</{NAME}>|\[/THINK\]|<\|end_of_thought\|>|◁/think▷)[ \t]*(?:\n|\Z)", re.IGNORECASE)
MARK = re.compile(
    rf"</?{NAME}>|\[/?THINK\]|[◁⟨]{NAME}[▷⟩]|<\|(?:{FIRST}{NAME}|{NAME}{LAST}|think)\|>|<\|channel\|?>|<\|inner_prefix\|>|{WORDS}",
    re.IGNORECASE,
)


class Told(NamedTuple):
    """What was written: its thoughts, its answer, and where the answer's own text begins in it (letters).

    `thinking`: the answer has not begun; `closes`: what would end the thought that is open; `ended`: the answer's end is marked.
    """

    thought: str
    answer: str
    start: int = 0
    thinking: bool = False
    closes: tuple[str, ...] = ()
    ended: bool = False


def closers(opened: str) -> tuple[str, ...]:
    """What ends the thought that a mark opens."""
    mark = opened.strip()
    if mark.endswith("<|message|>"):
        return MESSAGE
    if mark == "<|channel>thought":
        return ("<channel|>",)
    if mark == "<|inner_prefix|>":
        return ("<|inner_suffix|>",)
    if mark.startswith("Here"):
        return ("Here is my response:", "Here's my response:")
    if re.search("begin|start", mark, re.IGNORECASE):
        return (re.sub("begin|start", lambda hit: "END" if hit[0].isupper() else "end", mark, flags=re.IGNORECASE),)
    inner = 2 if mark.startswith("<|") else 1
    return (f"{mark[:inner]}/{mark[inner:]}", *(MESSAGE[:1] if mark == "<|think|>" else ()))


def opened(prompt: str) -> str:
    """The mark, with the blanks behind it, by which a prompt's end opens a thought; "" of most."""
    found = OPENED.search(prompt)
    return found[0] if found else ""


def empty(mark: str) -> str:
    """What closes at once the thought that a prompt opened with `mark`."""
    if mark.rstrip().endswith("<|message|>"):
        return f"{MESSAGE[0]}<|start|>assistant<|channel|>final<|message|>"
    return f"\n{closers(mark)[0]}\n\n" if "\n" in mark else closers(mark)[0]


def told(text: str, mark: str = "") -> Told:
    """A text's thoughts and its answer; `mark`: what opened a thought at the end of the prompt."""
    rest, thoughts, ends = text, list[str](), tuple[str, ...]()
    if not mark and (found := ORPHAN.search(text)) and not OPENS.match(text) and not MARK.search(text[: found.start()]):
        thoughts, rest = [text[: found.start()]], text[found.end() :]
    if mark and (again := OPENS.match(rest)):
        rest = rest[again.end() :]
    while mark or (begun := OPENS.match(rest)) is not None:
        if not mark and begun is not None:
            mark, rest = begun[1], rest[begun.end() :]
        ends = closers(mark)
        closed = re.search("|".join(map(re.escape, ends)), rest, re.IGNORECASE)
        thoughts.append(rest[: closed.start()] if closed else rest)
        if closed is None:
            return Told(_joined(thoughts), "", len(text), thinking=True, closes=ends)
        rest, mark = rest[closed.end() :], ""
    if BETWEEN.match(rest) or (MESSAGE[0] in ends and BEFORE.fullmatch(rest)):
        return Told(_joined(thoughts), "", len(text), thinking=True)
    return _answered(_joined(thoughts), text, rest, bool(thoughts))


def _joined(thoughts: list[str]) -> str:
    return "\n\n".join(one.strip() for one in thoughts if one.strip())


def _answered(thought: str, text: str, rest: str, thinks: bool) -> Told:
    """What follows the thoughts, without what opens and closes an answer."""
    ended, at = False, 0
    if speaks := SPEAKS.match(rest):
        at = speaks.end()
        ends = SPOKEN.search(rest, at)
        answer, ended = rest[at : ends.start() if ends else None], ends is not None
    elif thinks and (tag := TAGGED.match(rest)):
        at = tag.end()
        answer = rest[at:].partition(f"</{tag[1]}>")[0].rstrip()
    else:
        answer = rest
    return Told(thought, answer.lstrip() if thinks or at else answer, len(text) - len(rest) + at, ended=ended)


def thinks(tokenizer: Any) -> bool:
    """Whether a model may think, by its chat template and the tokens that were added for it."""
    template = getattr(tokenizer, "chat_template", None)
    texts = template.values() if isinstance(template, dict) else [template]
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return any(MARK.search(text) for text in [*texts, *map(str, added)] if isinstance(text, str))
