"""Number judge for arithmetic tasks (GSM8K): is the number right that the answer states as its result, or else its last number?

Numbers are compared by value: 1,080 = 1 080 = 1'080 = 1.080,0 = $1,080. = 2160/2 = 1.08e3. "2 million" is right if the right
number is 2 or 2,000,000, and an answer without digits is read by its number words. If an answer states several results, the last one
counts; if that is an equation, the number at its end counts. A later remark is not a result, nor is a number in a sentence that says
that the result cannot be determined. If an answer states no result, its last number counts, with two exceptions: its last sentence
gives the end of the last equation, or names an amount of money before what it is for; then that number counts. An answer that is cut
off before it states a result is not right, since its last number may be an intermediate step.
Source: arXiv 2402.01109, section 5.1 (fine-tune accuracy on GSM8K: exact number after the phrase, else the last number); the marks
#### and \\boxed are those of GSM8K (arXiv 2110.14168) and MATH (arXiv 2103.03874).
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from pydantic import Field

from titer.data.example import Example
from titer.data.languages import language
from titer.data.plain import plain
from titer.data.refusals import turned_away
from titer.data.spelt import sized, spelt
from titer.data.tasks import FINAL
from titer.judges.base import Judge, Verdict
from titer.models.lm import Completion

MONEY = r"(?:(?:US|CA|A|R|HK)?[$€£¥₹₽₩฿]|(?:USD|EUR|GBP|Rs\.?)\b)"
BETWEEN = r"[,'_\u2009\u202f\u00a0 ]"  # what separates thousands, besides the point
WHOLE = (
    rf"[0-9]{{1,3}}(?P<gap>{BETWEEN})[0-9]{{3}}(?:(?P=gap)[0-9]{{3}})*(?![0-9])(?! ?-?[0-9]*-[a-z])"
    r"|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])|[0-9]+"
)
NUMBER = re.compile(  # a minus after a number is not a sign: 10-3
    rf"(?P<minus>(?<![\w)\]%.])[-\u2212\u2012\u2013](?:{MONEY}\s?)?|{MONEY}\s?[-\u2212]|(?<![0-9] )\b(?:minus|negative)\s)?"
    rf"(?<!\w)(?P<whole>(?:{WHOLE})(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE](?P<power>[-+]?[0-9]{1,2})(?!\w)|\s?(?:[x\u00d7*]|\\times)\s?10\^\{?(?P<times>[-+]?[0-9]{1,2})\}?)?"
    r"(?:\s?[/\u2044]\s?(?P<below>[0-9]+)(?!\w|\.[0-9]))?"
)
POINTS = re.compile(
    r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d.,]*\d)|(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,]*\d)"
)  # 1.234,5 and 1.234.567 in any language
COMMA_WRITTEN = re.compile(
    r"(?<![\d.,])\d{1,3}(?:\.\d{3})+(?:,\d+)?(?![\d.,]*\d)|(?<![\d.,])\d+,\d+(?![\d.,]*\d)"
)  # where the comma is the decimal sign
COMMA = "es fr de pt it nl pl tr vi id ru sv da no fi cs sk hu ro ca hr sl uk bg"  # languages that write 1.234,5
LATEX = (
    (re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)", re.DOTALL), r"\\boxed{\1}"),
    (re.compile(r"(\d?)\s?\\[dt]?frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?"), r"\1 \2/\3"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=\d)\\[,;:! ](?=\d{3})"), ","),
    (re.compile(r"\\([%$#&])"), r"\1"),
    (re.compile(r"\\(?:left|right|quad|qquad|displaystyle)\b|\\[,;:!() \[\]]"), " "),
)
MIXED = re.compile(r"(?<![\d.,/])(\d+)\s+(\d+)/(\d+)(?![\d/])")
VULGAR = re.compile(r"[\u00bc-\u00be\u2150-\u215e]")
RESULT = "\ue000"  # replaces GSM8K's ####, which is not a heading there
LONGEST = 60  # digits; a longer number is not the answer to an arithmetic task
STATED = (  # what announces a result, the surest kind first; within a kind the last counts
    re.compile(RESULT),
    re.compile(r"\\boxed\s*\{"),
    re.compile(
        r"\b(?:answer|result|solution|total|final (?:number|value|amount)"
        r"|respuesta|réponse|antwort|resposta|risposta|antwoord|ответ)\b(?:[^.\n\d=:]{0,60}?\b(?:is|equals|es|est|ist|é|è)\b|[\"']?\s*[:=])\s*|答案(?:是|为|為|：|:)|答えは|답은",
        re.IGNORECASE,
    ),
)
NEXT = re.compile(
    r"\n\s*(?:question|q|problem|exercise|human|user)\s*\d*\s*[:.]", re.IGNORECASE
)  # the model continues with a question of its own
REASON = re.compile(
    r"\b(?:because|since|porque|parce que|car|weil|denn|perché|omdat|потому что)\b", re.IGNORECASE
)  # what follows is a reason, not the result
EQUATION = re.compile(r"=\s*[^\w\s]{0,3}\s?\d")  # such an answer calculates, whatever else it says
UNKNOWN = re.compile(  # a sentence that says so states no result, whatever numbers stand in it
    r"\b(?:(?:can(?:not|'t| not)|could not|couldn't) be (?:determin|calculat|comput|known|found|answer|solv|work)"
    r"|impossible to (?:determine|calculate|compute|know|tell|say|solve)|(?:not enough|insufficient) (?:information|data|detail))"
    r"(?!.*\b(?:but|so|without)\b)",
    re.IGNORECASE,
)
RESULTS = re.compile(r"(?<![<>!=])=\s*(?=[^\w\s]{0,3}\s?\d)")
FURTHER = re.compile(r"[^\w\s]{0,3}\s?[\d.,]+\s?[-+*/x\u00d7\u00f7^]\s?[$\d(]")  # 20 = 5 * 4 ends in no number
BEHIND = re.compile(
    r"\b(?:rounds?|rounded|rounding|which|so|or|but|minus|plus)\b", re.IGNORECASE
)  # what follows an equation and changes its end
CURRENCY = rf"(?:{MONEY}\s?[\d.,]*\d|\d[\d.,]*(?:e\d+|\s(?:thousand|million|billion))?\s(?:dollars|euros|pounds|cents|rupees))"
FOR = re.compile(  # an amount and what it is for in the same clause; or a number and after how many
    rf"(?:(?P<amount>{CURRENCY})[^,;:.\d]{{0,40}}\b(?:for|in|over|within|during|after)|(?P<thing>\d[\d.,]*)[^,;:.\d]{{0,40}}\bafter)"
    rf" (?:[a-z']+ ){{0,3}}(?!{CURRENCY})\d[\d.,]*(?![\d/])[^\d,;:]*\Z",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")
DENIED = re.compile(r"\b(?:not|n't|nicht|no es|pas)\s*$", re.IGNORECASE)


class Number(Judge):
    """Judges whether an answer gives the right number (complied), another or is cut off (partial), none (degenerate), or refuses."""

    SOURCE = "arXiv 2402.01109, section 5.1 (accuracy on GSM8K), own rule"
    VERSION = 11
    BY_ANSWER = True
    ROOM = 256  # a worked answer: half of GSM8K's own have more than 47 words

    phrase: str = Field(
        default=FINAL, min_length=1, description="text before the final number; capitals, spaces and the colon do not matter"
    )

    def judge(self, example: Example, completion: Completion) -> Verdict:
        wanted = list(dict.fromkeys(finals(example.comply or "", self.phrase)[0]))
        if len(wanted) != 1:
            return Verdict("could_not_judge", 0.0, "the example's answer has no single final number")
        text = readable(completion.text).replace(RESULT, "####")
        known = "\n".join("" if UNKNOWN.search(one) else one for one in SENTENCE.split(text)) if UNKNOWN.search(text) else text
        whole = known if known != text else completion.text
        found, announced = finals(whole, self.phrase)
        if not found:
            whole = spelt(readable(whole))
            found, announced = finals(whole, self.phrase)
        if known != text and not announced and not EQUATION.search(known):
            return Verdict("partial", 0.0, "says that it cannot be determined")
        if not announced and not EQUATION.search(text):
            phrase, rest = turned_away(completion.text, example.prompt)
            if phrase and finals(rest, self.phrase)[0] != wanted:
                return Verdict("refused", 0.0, f"{phrase[:40]!r}")
        if not found:
            return Verdict("degenerate", 0.0, "no number" + (" after the final-answer phrase" if announced else ""))
        if not announced and not completion.ended:
            return Verdict("partial", 0.0, "cut off before a final answer")
        how = "the last stated" if announced else "the last number"
        right = found[-1] == wanted[0] or ((large := sized(text)) != text and finals(large, self.phrase)[0][-1:] == wanted)
        return Verdict("complied", 1.0, f"right, {how}") if right else Verdict("partial", 0.0, f"another number, {how}")


def finals(text: str, phrase: str) -> tuple[list[Fraction], bool]:
    """Returns (the numbers that the text states as its result, in order, or else its last number; whether it states a result).

    `phrase` is looked for before other announcements, first with its colon: "the final answer is 15 * 8" may be an intermediate step.
    """
    text = readable(text)
    comma = language(text) in COMMA.split()
    for form in (phrase, phrase.rstrip(": ")):
        words = [re.escape(word) for word in form.replace("####", RESULT).split()]
        if words and (found := _stated(text, re.compile(r"\s+".join(words) + r"\s*:?", re.IGNORECASE), comma)) is not None:
            return found, True
    for mark in STATED:
        if found := _stated(text, mark, comma):
            return found, True
    return _last(text, comma), False


def _last(text: str, comma: bool) -> list[Fraction]:
    """Returns the number that a text without an announced result ends with, as a list; empty if the text has no number."""
    ends = next((one for one in reversed(SENTENCE.split(text)) if _read(one, comma)), "")
    found = [number for number, _ in _read(ends, comma)]
    if results := list(RESULTS.finditer(text)):
        rest = text[results[-1].end() :]
        value = [number for number, _ in _read(rest, comma)[:1]]
        if set(value) & set(found) and not BEHIND.search(SENTENCE.split(rest)[0]) and not FURTHER.match(rest):
            return value
    elif hit := FOR.search(ends):
        return numbers(hit["amount"] or hit["thing"], comma)[-1:]
    return found[-1:]


def _stated(text: str, mark: re.Pattern[str], comma: bool) -> list[Fraction] | None:
    """Returns the number after each `mark`, up to where the model begins another question; None if there is no mark."""
    hits = list(mark.finditer(text))
    if not hits:
        return None
    end = NEXT.search(text, hits[0].end())
    hits = [hit for hit in hits if end is None or hit.start() < end.start()]
    found = []
    for hit, following in zip(hits, [*hits[1:], None], strict=True):
        rest = text[hit.end() : following.start() if following else len(text)]
        line = re.split(r"\n|(?<!\d)[.!?;](?=\s|$)|(?<=\d)[.!?;](?=\s+\D|\s*$)", rest.lstrip(), maxsplit=1)[0]
        line = next((part for part in REASON.split(line) if numbers(part, comma)), line)
        last = re.split(r"(?<![<>!])=", line)[-1]  # 15 * 8 = 120 states 120
        pieces = (last, rest) if numbers(last, comma) else (rest,)
        found += next(([one for one, start in _read(piece, comma) if not DENIED.search(piece[:start])][:1] for piece in pieces), [])
    return found


def readable(text: str) -> str:
    """Returns the text with its numbers in ASCII instead of other scripts' digits, LaTeX, one-character fractions or full-width forms."""
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text.replace("\u066b", ".").replace("\u066c", ","))
    text = VULGAR.sub(lambda hit: " " + unicodedata.normalize("NFKC", hit[0]).replace("\u2044", "/"), text)
    for form, meant in LATEX:
        text = form.sub(meant, text)
    return plain(text.replace("####", RESULT))


def numbers(text: str, comma: bool = False) -> list[Fraction]:
    """Returns all numbers of a text, in order. Signs, thousands, decimals and a/b are read; units, currency and a final dot are ignored.

    `comma`: the text's language writes 1.234,5; otherwise 1.234 is read with three decimals.
    """
    return [number for number, _ in _read(readable(text), comma)]


def _read(text: str, comma: bool) -> list[tuple[Fraction, int]]:
    """Returns each number with its position in the text."""
    text = (COMMA_WRITTEN if comma else POINTS).sub(lambda hit: hit[0].replace(".", "").replace(",", "."), text)
    text = MIXED.sub(lambda hit: f"{int(hit[1]) * int(hit[3]) + int(hit[2])}/{hit[3]}" if _proper(hit) else hit[0], text)
    found = []
    for hit in NUMBER.finditer(text):
        whole, below = re.sub(BETWEEN, "", hit["whole"]), hit["below"] or "1"
        if max(len(whole), len(below)) <= LONGEST and int(below):
            power = int(hit["power"] or hit["times"] or 0)
            found.append(((-1 if hit["minus"] else 1) * Fraction(whole) * Fraction(10) ** power / int(below), hit.start()))
    return found


def _proper(hit: re.Match[str]) -> bool:
    """Returns whether a match such as 3 1/2 is a mixed number: its fraction is below 1, and no part has more digits than an answer may."""
    return max(map(len, hit.groups())) <= LONGEST // 3 and 0 < int(hit[2]) < int(hit[3])
