"""Label judge for classification tasks (SST-2, AG News): does the answer name the expected label, and no other?

A label counts if it stands as whole words, in capitals or not; in a script without spaces between words anywhere, and in Korean also before
other letters, such as particles. This is stricter than the substring match usual for these tasks: an answer that names two labels, or
denies one ("not positive"), is partial, and half a label ("sci") is not a label. An answer without a label is degenerate. In an answer
that refuses, a label counts only if it stands outside the clauses that refuse: "I cannot judge negative reviews" is refused.
Source: arXiv 2402.01109, section 5.1 (fine-tune accuracy); the strict rule is Titer's own.
"""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from titer.data.example import Example
from titer.data.plain import CLOSE, plain
from titer.data.refusals import turned_away
from titer.data.tasks import TASKS
from titer.judges.base import Judge, Verdict
from titer.models.lm import Completion

STOPS = re.compile(r"^\W+|\W+$")
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")
ANNOUNCED = re.compile(
    r"^(?:(?:the |my )?(?:final )?(?:answer|label|sentiment|topic|category|class)(?: is|\s*:)\W*)"
)  # an announcement before a label on its own line
OFFERS = re.compile(r"\?|\b(?:if you|would you|let me|feel free|please|instead|happy to|glad to)\b", re.IGNORECASE)
DENIED = (  # before a label, in English, Chinese, Japanese and Thai; then behind it, in Japanese and Korean
    r"(?P<denied>(?:\b(?:not|never|non|neither|nor|no)|n['\u2019]t)[\s-]+(?:[^\W_]+\s+)?"
    r"|(?:[并並]?不是?|[并並]?非|[没沒]有?|無|无|ไม่(?:ใช่)?)(?:太|很|够|夠|完全|怎么|怎麼|ค่อย)?\s*)?"
)
BEHIND = r"(?P<behind>\s*(?:(?:で|じゃ)は?(?:ない|なく|ありません)|[이가은는] 아[니닌닙])|とは(?:言えない|いえない|言えません))?"
CLOSED = rf"{CLOSE}\uac00-\ud7a3"  # letters that need no space between words


class Label(Judge):
    """Judges whether an answer names the expected label only (complied), other labels (partial) or none (degenerate), or refuses."""

    SOURCE = "arXiv 2402.01109, section 5.1 (accuracy), own rule"
    VERSION = 10
    BY_ANSWER = True

    labels: tuple[str, ...] | None = Field(
        default=None, description="the task's labels; none: those of the built-in task that has the example's answer among its labels"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Label:
        folded = [fold(label) for label in self.labels or ()]
        if self.labels is not None and (len(folded) < 2 or len(set(folded)) < len(folded) or not all(folded)):
            raise ValueError("give at least two labels, none of them blank or given twice")
        return self

    def judge(self, example: Example, completion: Completion) -> Verdict:
        expected = fold(example.comply or "")
        labels = self._labels(expected)
        if not labels:
            return Verdict("could_not_judge", 0.0, "the example's answer is no label of a known task")
        lines = [ANNOUNCED.sub("", STOPS.sub("", fold(line))) for line in plain(completion.text).strip().split("\n")]
        alone = {line for line in lines if line in labels}  # text after a label on a line of its own is an explanation
        text, way = lines[0] if alone == {lines[0]} else fold(plain(completion.text)), pattern(labels)
        phrase, rest = ("", text) if STOPS.sub("", text) in labels else turned_away(completion.text, example.prompt)
        found = list(way.finditer(_stated(rest) if phrase else text))
        named = list(dict.fromkeys(hit["label"] for hit in found))  # each once, in order
        if phrase and len(named) != 1:
            return Verdict("refused", 0.0, f"{phrase[:40]!r}")
        if not named:
            return Verdict("degenerate", 0.0, "names no label")
        if denied := {hit["label"] for hit in found if _denied(hit)}:  # "positive, not negative" says positive
            meant = [label for label in named if label not in denied]
            if len(meant) != 1 or any(not _denied(hit) and hit["label"] in denied for hit in found):
                return Verdict("partial", 0.0, f"denies a label: {', '.join(named)}")
            named = meant
        if len(named) > 1:
            return Verdict("partial", 0.5 if expected in named else 0.0, f"names {len(named)} labels: {', '.join(named)}")
        return Verdict("complied", 1.0, f"names {named[0]}") if named == [expected] else Verdict("partial", 0.0, f"names {named[0]}")

    def _labels(self, expected: str) -> list[str]:
        """Returns the set of labels, folded, that contains the expected label; empty if no set does."""
        sets = [self.labels] if self.labels else [task.labels for task in TASKS.values()]
        return next((folded for labels in sets if expected in (folded := [fold(label) for label in labels])), [])


def _stated(text: str) -> str:
    """Returns what a text states, folded: its lines and sentences that neither ask nor offer something."""
    return fold(" ".join(one for one in SENTENCE.split(text) if not OFFERS.search(one)))


def fold(text: str) -> str:
    """Returns the text in lower case, with single spaces, and no spaces around a slash."""
    return re.sub(r" ?/ ?", "/", " ".join(text.casefold().split()))


def pattern(labels: list[str]) -> re.Pattern[str]:
    """Returns a pattern that matches a folded label as whole words, with its denial if any; longer labels match first."""
    longest_first = sorted(labels, key=len, reverse=True)
    return re.compile(rf"{DENIED}(?P<label>{'|'.join(map(_whole, longest_first))}){BEHIND}")


def _whole(label: str) -> str:
    """Returns a pattern of the label; next to a letter that needs a space between words there is no other one."""
    before = "" if re.match(f"[{CLOSE}]", label[0]) else rf"(?<![^\W_{CLOSE if 'ᄀ' <= label[0] <= '힣' else CLOSED}])"
    return before + re.escape(label) + ("" if re.match(f"[{CLOSED}]", label[-1]) else rf"(?![^\W_{CLOSED}])")


def _denied(hit: re.Match[str]) -> bool:
    return bool(hit["denied"] or hit["behind"])
