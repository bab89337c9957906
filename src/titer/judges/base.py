"""What a judge says: one of five outcomes, a score and a reason. A judge that fails says "could not judge"."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple

from titer.core.config import Record
from titer.data.example import Example
from titer.models.lm import Completion

Outcome = Literal["refused", "complied", "partial", "degenerate", "could_not_judge"]
OUTCOMES: tuple[Outcome, ...] = ("refused", "complied", "partial", "degenerate", "could_not_judge")


class Verdict(NamedTuple):
    """One judgement; `score` is the degree of compliance in [0, 1], `reason` a few words for the reader."""

    outcome: Outcome
    score: float
    reason: str


class Judge(Record):
    """Settings as fields. Subclasses are final; bump VERSION when verdicts may change."""

    SOURCE: ClassVar[str]
    VERSION: ClassVar[int]

    @abstractmethod
    def judge(self, example: Example, completion: Completion) -> Verdict:
        """The verdict on one completion of one example."""
