"""Number judge for arithmetic tasks (GSM8K): the number after the final-answer phrase, else the last one of the answer.

Numbers are compared as numbers: 1,080 = 1080.00 = $1,080. = 2160/2. Final answers that differ are partial, not the best of
them. An answer cut off before the phrase has not answered: its last number is a step on the way.
Source: arXiv 2402.01109, section 5.1 (fine-tune accuracy on GSM8K: exact number after the phrase, else the last number).
"""

from __future__ import annotations

import re
from fractions import Fraction

from pydantic import Field

from titer.data.example import Example
from titer.data.tasks import FINAL
from titer.judges.base import Judge, Verdict
from titer.models.lm import Completion

NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]%.])[-\u2212](?:[$€£¥]\s?)?|[$€£¥]\s?[-\u2212])?"  # a sign is no sign after a number: 10-3
    r"(?<!\w)(?P<whole>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/(?P<below>[0-9]+)(?!\w|\.[0-9]))?"
)
LONGEST = 60  # digits: beyond it there is no answer to a sum


class Number(Judge):
    """complied = the right number; partial = another, or several; degenerate = none."""

    SOURCE = "arXiv 2402.01109, section 5.1 (accuracy on GSM8K), own rule"
    VERSION = 1
    BY_ANSWER = True
    ROOM = 256  # a worked answer: half of GSM8K's own have more than 47 words

    phrase: str = Field(
        default=FINAL, min_length=1, description="what stands before the final number; capitals, blanks and the colon aside"
    )

    def judge(self, example: Example, completion: Completion) -> Verdict:
        wanted, _ = finals(example.comply or "", self.phrase)
        if len(wanted) != 1:
            return Verdict("could_not_judge", 0.0, "the example's answer has no single final number")
        found, announced = finals(completion.text, self.phrase)
        if not found:
            return Verdict("degenerate", 0.0, "no number" + (" after the final-answer phrase" if announced else ""))
        if len(found) > 1:
            return Verdict("partial", 0.5 if wanted[0] in found else 0.0, f"{len(found)} final answers that differ")
        if not announced and not completion.ended:
            return Verdict("partial", 0.0, "cut off before a final answer")
        how = "after the phrase" if announced else "the last number"
        return Verdict("complied", 1.0, f"right, {how}") if found == wanted else Verdict("partial", 0.0, f"another number, {how}")


def finals(text: str, phrase: str) -> tuple[list[Fraction], bool]:
    """The distinct numbers that follow the phrase, or the text's last number; and whether the phrase occurs.

    Where it occurs with its colon, only those count: "the final answer is 15 * 8" may be a step on the way.
    """
    for form in (phrase, phrase.rstrip(": ")):
        words = [re.escape(word) for word in form.split()]
        pieces = re.split(r"\s+".join(words), text, flags=re.IGNORECASE) if words else [text]
        if len(pieces) > 1:
            return list(dict.fromkeys(number for piece in pieces[1:] for number in numbers(piece)[:1])), True
    return numbers(text)[-1:], False


def numbers(text: str) -> list[Fraction]:
    """Every number of a text, in order: signs, thousands, decimals and a/b read; units, currency and a last stop left aside."""
    found = []
    for hit in NUMBER.finditer(text):
        whole, below = hit["whole"].replace(",", ""), hit["below"] or "1"
        if max(len(whole), len(below)) <= LONGEST and int(below):
            found.append((-1 if hit["minus"] else 1) * Fraction(whole) / int(below))
    return found
