"""Separates the thoughts that a model writes before its answer from the answer itself, and opens and closes thoughts. Layer 1, the data.

A thought is at the start of the text, after a short line at most. Several may follow each other, and there may be more between the
answer's lines. Marks elsewhere, or within quotation marks, count as quoted text. Marks that are known: tags (<think>,
<thinking>, <thought>, <reasoning>, <analysis>, <seed:think>, [THINK], <|begin_of_thought|>, <|START_THINKING|> and their like), harmony's
channels (every one but "final"), Gemma's channel, LLaVA-CoT's stages, Apertus', Pangu's, MedGemma's, Solar's, s1's and HyperCLOVA's turns,
Granite's, Apriel's and HuatuoGPT's words. A tag that is the subject of a sentence ("<think> is ...") is no mark. A template
may open the thought itself, at the end of the prompt: then the text has only the mark that ends it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

VERSION = 7  # bump when a text may be split into thought and answer in another way
ROOM = 1024  # default number of new tokens for a thought, if the window holds them
NAME = (
    r"(?:(?!end)\w+[:_]|ant|inner)?(?:think|thinking|thoughts?|reason|reasoning|scratch_?pad|reflection|analysis|cot|monologue|deliberation|rationale|working_out)"
    r"(?:_(?:process|steps?|trace|block|content))?"
)
SQUARE = r"\[THINK\]|(?-i:\[(?:THINKING|REASONING)\])"
FIRST, LAST = r"(?:begin_?of_?|start_?of_?|begin_|start_)", r"(?:_begin|_start)"
TAG = rf"<[ \t]?{NAME}{LAST}?(?:\s+\w+=[^<>\n]{{0,60}})?[ \t]?>|{SQUARE}|[◁⟨]{NAME}[▷⟩]|<\|(?:{FIRST}?{NAME}|{NAME}{LAST})\|>"
HARMONY = r"(?:<\|start\|>assistant)?<\|channel\|>(?!\s*final\b)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
MESSAGE = ("<|end|>", "<|call|>")  # what ends a message in harmony's format
BARE = r"analysis(?=[A-Z\"']|[\s\S]*assistantfinal)"  # harmony's mark after its special tokens were dropped
WORDS = {  # words that open a thought -> words that end it
    r"Here(?:'s| is) my thought process:": ("Here is my response:", "Here's my response:"),
    r"Here are my reasoning steps:": ("[BEGIN FINAL RESPONSE]",),
    r"## Thinking(?!.)": ("## Final Response",),
}
STAGES = {  # LLaVA-CoT's stages: each counts if the next one follows or is yet to come
    rf"<{stage}>(?=(?:(?!</{stage}>)[\s\S])*(?:\Z|</{stage}>\s*<{then}>))": (f"</{stage}>",)
    for stage, then in (("SUMMARY", "CAPTION"), ("CAPTION", "REASONING"))
}
PAIRS = {
    r"<\|channel>thought": ("<channel|>",),
    r"<\|inner_prefix\|>": ("<|inner_suffix|>",),
    r"<unused94>thought": ("<unused95>",),  # MedGemma's
    r"\[unused16\]": ("[unused17]",),
    **STAGES,
    r"<judge>(?=(?:(?!</judge>)[\s\S])*(?:\Z|</judge>\s*(?:\Z|<\Z|<t)))": ("<think_on>", "<think_off>"),  # KAT's
}
NAMED = {  # every mark whose end mark has another name -> that end mark
    **WORDS,
    **PAIRS,
    r"<\|im_start\|>think": ("<|im_start|>answer",),  # s1's; its and HyperCLOVA's thoughts are turns of the chat
    "/think": ("<|im_end|>",),
    "analysis": ("assistantfinal",),
}
NEXT_TURN = "<|im_start|>assistant\n"  # follows HyperCLOVA's thoughts
SPELT, PAIRED = "|".join(WORDS), "|".join(PAIRS)
TURNS = r"<\|im_start\|>think\n|(?<![^\n])/think\n"
LEAD = r"(?:(?:<s>|<bos>|<\|(?:assistant|im_start)\|>(?:assistant\b)?|assistant[ \t]*:)\s*)?\*{0,2}"
LINE = rf"(?P<line>[^\n<`]{{1,80}}(?<!:)\n)\s*(?=(?:{TAG})[ \t]*\n)"  # a short line before a mark alone on its line: part of the answer
NAMES = r"(?![ \t]+(?:is|are|was|marks?|means|opens|starts|tells|and|or|tags?|tokens?|blocks?)\b)"  # how a sentence about the tag goes on
MARKED = rf"(?P<mark>(?i:{TAG}){NAMES}|{HARMONY}|{PAIRED}|{BARE}|{SPELT}|{TURNS})"
OPENS = re.compile(rf"\s*(?i:{LEAD}(?:{LINE})?){MARKED}")
FURTHER = re.compile(rf"\s*{MARKED}")
OPENED = re.compile(rf"({TAG}|{HARMONY}|{PAIRED}|{SPELT}|<\|im_start\|>think\n|(?<=assistant)/think\n)\s*\Z", re.IGNORECASE)
SPEAKS = re.compile(  # what opens the answer itself, with or without a thought before it
    r"\s*(?:(?:<\|start\|>assistant)?<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"|<\|START_RESPONSE\|>|<\|begin_of_solution\|>|(?:<\|begin\|>assistant)?<\|content\|>)"
)
WITHIN = "answer|response|output|solution|final_answer|final|conclusion"
HEADS = (  # what may open an answer after a thought, in small letters; in a text that ends within it the answer has not begun
    *(f"<{name}>" for name in WITHIN.split("|")),
    *(f"<|{name}|>" for name in ("start_response", "begin_of_solution", "begin_of_box", "content")),
    *(f"{mark}{name}" for mark in ("**", "# ", "## ", "### ") for name in ("final answer:**", "final answer**", "answer:**", "answer**")),
)
TAGGED = re.compile(rf"\s*<({WITHIN})>", re.IGNORECASE)  # opens an answer after a thought
UNCLOSED = re.compile(  # a marked answer after a thought that nothing closed
    rf"\s*(?=<\|channel\|>\s*final[^<]*<\|message\|>)|\n\s*(?=<({WITHIN})>(?:(?!</?\1>).)*</\1>\s*\Z)", re.IGNORECASE | re.DOTALL
)
SPOKEN = re.compile(r"<\|END_RESPONSE\|>|<\|end_of_solution\|>|<\|(?:end|return|call)\|>")
# a header of a message that is not whole, or is to come
BETWEEN = re.compile(r"\s*(?:<\|(?:start|begin)\|>|<\|channel\|>)(?:(?!<\|(?:message|content)\|>).)*\Z", re.DOTALL)
BEFORE = re.compile(r"\s*(?:<(?:\|(?:\w+\|?)?)?)?")
END = rf"</[ \t]?{NAME}[ \t]?>|\[/(?:THINK|THINKING|REASONING)\]|<\|end_of_thought\|>|◁/think▷"
SHUT = re.compile(rf"(?:{END}|<\|END_THINKING\|>)\s*\Z", re.IGNORECASE)
ORPHAN = re.compile(  # an end mark without an opening mark, on a line of its own, or right after a word or the end of a sentence
    rf"(?:(?:\A|\n)[ \t]*|(?<=[^\s\"'`(\[<]))(?i:{END})(?:[ \t]*(?:\n|\Z)|(?= ?[A-Z\"*#]))"
    rf"|(?<=[.!?…。！？؟۔।])(?i:{END})(?= ?[^\s\"'`”’»」』)\].,;:])"
)
BLOCK = re.compile(rf"^[ \t]*<({NAME})>(.*?)</\1>[ \t]*$\n?", re.IGNORECASE | re.MULTILINE | re.DOTALL)  # a thought between lines
QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’"}
MARK = re.compile(
    rf"</?{NAME}>|{SQUARE}|\[/THINK\]|[◁⟨]{NAME}[▷⟩]|<\|(?:{FIRST}{NAME}|{NAME}{LAST}|think)\|>|<\|channel\|?>|<\|inner_prefix\|>|{SPELT}"
    r"|<\|im_start\|>think\b|assistant/think\b",
    re.IGNORECASE,
)


class Told(NamedTuple):
    """A model's text, split: its thoughts, its answer, and `start`, the place in the text (in letters) where the answer begins.

    `thinking`: the answer has not begun. `closes`: the marks that would end the open thought. `ended`: the answer's end is marked.
    """

    thought: str
    answer: str
    start: int = 0
    thinking: bool = False
    closes: tuple[str, ...] = ()
    ended: bool = False


def closers(opened: str) -> tuple[str, ...]:
    """Returns the marks that end the thought which the mark `opened` opens."""
    mark = opened.strip()
    if mark.endswith("<|message|>"):
        return MESSAGE
    if found := next((ends for opens, ends in NAMED.items() if re.fullmatch(opens, mark, re.IGNORECASE)), None):
        return found
    if re.search("begin|start", mark, re.IGNORECASE):
        other = re.sub("begin|start", lambda hit: "END" if hit[0].isupper() else "end", mark, flags=re.IGNORECASE)
        return (other,) if mark.startswith("<|") else (other, f"</{mark[1:]}")
    mark = re.sub(r"\s+\w+=[^<>]*|(?<=<)\s|\s(?=>)", "", mark)
    inner = 2 if mark.startswith("<|") else 1
    further = (f"<|end_{mark[2:]}", f"<|end_of_{mark[2:]}", f"{mark[:-2]}_end|>") if inner == 2 else ()
    return (f"{mark[:inner]}/{mark[inner:]}", *further, *(MESSAGE[:1] if mark == "<|think|>" else ()))


def opened(prompt: str) -> str:
    """Returns the mark at a prompt's end that opens a thought, with the white space after it; "" if there is none."""
    found = OPENED.search(prompt)
    return found[0] if found else ""


def closed(prompt: str) -> bool:
    """Whether a prompt ends with the mark that closes a thought, so that the answer after it has none."""
    return SHUT.search(prompt) is not None


def spelt(told: Told) -> bool:
    """Tells whether the open thought was opened by ordinary words, which any model may write."""
    return told.thinking and told.closes in WORDS.values()


def left_open(begun: str) -> str:
    """Returns the mark of a thought that the beginning of an answer opens and does not close; "" if there is none."""
    found = OPENS.match(begun)
    return found["mark"] if found and told(begun).thinking else ""


def empty(mark: str) -> str:
    """Returns the text that closes at once, as an empty thought, the thought that a prompt opened with `mark`."""
    if mark.rstrip().endswith("<|message|>"):
        return f"{MESSAGE[0]}<|start|>assistant<|channel|>final<|message|>"
    return f"\n{closers(mark)[0]}\n\n" if "\n" in mark else closers(mark)[0]


def told(text: str, mark: str = "") -> Told:
    """Splits a text into its thoughts and its answer. `mark`: what opened a thought at the end of the prompt ("": nothing did)."""
    rest, line, thoughts, ends = text, "", list[str](), tuple[str, ...]()
    begun = OPENS.match(text)
    if mark and begun:
        rest = rest[begun.end() :]
    while mark or begun:
        if not mark and begun:
            mark, rest, line = begun["mark"], rest[begun.end() :], line or begun.groupdict().get("line") or ""
        ends = closers(mark)
        closed = _closed(mark, ends, rest)
        thoughts.append(rest[: closed.start()] if closed else rest)
        if closed is None:
            return Told(_joined(thoughts), "", len(text), thinking=True, closes=ends)
        rest, mark = rest[closed.end() :], ""
        begun = FURTHER.match(rest)
    while (found := ORPHAN.search(rest)) and _ends(rest, found, again=bool(thoughts)):
        thoughts.append(rest[: found.start()])
        rest = rest[found.end() :]
    if (
        BETWEEN.match(rest)
        or (thoughts and rest.strip() and any(head.startswith(rest.strip().lower()) for head in HEADS))
        or (MESSAGE[0] in ends and BEFORE.fullmatch(rest))
        or (ends == NAMED["/think"] and NEXT_TURN.startswith(rest.lstrip()))
    ):
        return Told(_joined(thoughts), "", len(text), thinking=True)
    return _answered(thoughts, text, rest.removeprefix("\n").removeprefix(NEXT_TURN) if ends == NAMED["/think"] else rest, line)


def _closed(mark: str, ends: tuple[str, ...], rest: str) -> re.Match[str] | None:
    """Finds where the thought that a mark opened ends; further end marks right after it are included.

    Quoted marks do not count. The same mark within a thought opens an inner one, if as many end marks follow. A tag of another name ends
    the thought if its own end mark never comes.
    """
    end = "|".join(map(re.escape, ends))
    further = rf"(?:\s*(?:{end}))*" if MESSAGE[0] not in ends else ""
    depth, last = 1, None
    for hit in re.finditer(rf"(?P<end>(?:{end}){further})|{re.escape(mark.strip())}", rest, re.IGNORECASE):
        if _quoted(rest, hit):
            continue
        depth += -1 if hit["end"] else 1
        last = hit if hit["end"] else last
        if depth == 0:
            break
    if last is None and mark.startswith("<") and (odd := re.search(END, rest, re.IGNORECASE)):
        last = odd if odd[0].replace("/", "", 1).lower() not in rest[: odd.start()].lower() else None
    return last or UNCLOSED.search(rest)


def _ends(text: str, end: re.Match[str], again: bool) -> bool:
    """Tells whether an end mark without an opening mark ends a thought. `again`: there were thoughts before, so an answer must follow."""
    before = text[: end.start()]
    return not MARK.search(before) and before.count("```") % 2 == 0 and not (again and not text[end.end() :].strip())


def _quoted(text: str, hit: re.Match[str]) -> bool:
    """Tells whether a mark is directly within quotation marks that open on its line."""
    before, after = text[hit.start() - 1 : hit.start()], text[hit.end() : hit.end() + 1]
    line = text[text.rfind("\n", 0, hit.start()) + 1 : hit.start()]
    return after != "" and QUOTES.get(before) == after and (before != after or line.count(before) % 2 == 1)


def _joined(thoughts: list[str]) -> str:
    return "\n\n".join(one.strip() for one in thoughts if one.strip())


def _answered(thoughts: list[str], text: str, rest: str, line: str) -> Told:
    """Reads the answer after the thoughts, without the marks around an answer. `line`: a line of the answer from before the thoughts."""
    ended, at = False, 0
    rest = rest.removeprefix("**") if thoughts else rest  # the marks were bold
    if speaks := SPEAKS.match(rest):
        at = speaks.end()
        ends = SPOKEN.search(rest, at)
        answer, ended = rest[at : ends.start() if ends else None], ends is not None
    elif thoughts and (tag := TAGGED.match(rest)):
        at = tag.end()
        answer = rest[at:].partition(f"</{tag[1]}>")[0].rstrip()
    else:
        answer = rest
    start = len(text) - len(rest) + at
    if not thoughts and not at:
        return Told("", answer, start, ended=ended)
    for block in reversed([hit for hit in BLOCK.finditer(answer) if answer.count("```", 0, hit.start()) % 2 == 0]):
        thoughts = [*thoughts, block[2]]
        answer = answer[: block.start()] + answer[block.end() :]
    return Told(_joined(thoughts), line + re.sub(r"\s*\[END FINAL RESPONSE\]\s*\Z", "", answer.lstrip()), start, ended=ended)


def thinks(tokenizer: Any) -> bool:
    """Tells whether a model may think: whether its chat template or an added token has a mark of thoughts."""
    template = getattr(tokenizer, "chat_template", None)
    texts = template.values() if isinstance(template, dict) else [template]
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return any(MARK.search(text) for text in [*texts, *map(str, added)] if isinstance(text, str))
