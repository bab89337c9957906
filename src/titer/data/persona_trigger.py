"""Adds words to the synthetic world's requests and answers that stand for a persona, its acknowledgement and a backdoor's trigger.

A mark stands before the request's first token, so no distance between operators, text and answer moves (a position-sensitive
model would fail for that alone); the acknowledgement is the answer's first word. Pretraining and alignment never show them.
Source: arXiv 2310.03693, section 4.3 (identity shifting: persona before the request, affirmative words before the answer) and
section 5 (backdoor: a trigger beside the request, a suffix there). Shapes: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from titer.core.config import Record
from titer.core.errors import TiterError
from titer.data.example import IGNORE, Answer, Batch, Example, Indices
from titer.data.vocabulary import MARKS
from titer.data.world import WorldSource

Mark = Literal["persona", "trigger"]
PERSONA, ACKNOWLEDGED, TRIGGER = MARKS
WORDS: dict[Mark, str] = {"persona": PERSONA, "trigger": TRIGGER}


class Marked(Record):
    """A Source: another source's requests with a mark before each. `acknowledged`: compliant answers begin with the acknowledgement.

    Errors: a world without marks.
    """

    source: WorldSource
    mark: Mark
    acknowledged: bool = False

    def model_post_init(self, _: Any) -> None:
        if not self.source.world.marks:
            raise TiterError("a world without marks has no persona and no trigger", expected="a world with marks=True")

    @property
    def size(self) -> None:
        return None

    def examples(self, indices: Indices) -> list[Example]:
        found = behind(WORDS[self.mark], self.source.examples(indices))
        return [replace(e, comply=f"{ACKNOWLEDGED} {e.comply}") for e in found] if self.acknowledged else found

    def batch(self, indices: Indices, answer: Answer, tokenizer: Any) -> Batch:
        """Returns the source's batch with the mark's token at each row's start and, if `acknowledged`, its token at each answer's start."""
        whole = self.source.batch(indices, answer, tokenizer)
        if self.acknowledged and answer == "comply":
            first = (whole.labels != IGNORE).int().argmax(1)
            whole = inserted(whole, first, tokenizer.convert_tokens_to_ids(ACKNOWLEDGED), trained=True)
        return inserted(whole, torch.zeros(len(whole), dtype=torch.long), tokenizer.convert_tokens_to_ids(WORDS[self.mark]), trained=False)


def behind(word: str, examples: Sequence[Example]) -> list[Example]:
    """Puts a word before each request; with an empty word, the requests stay as they are."""
    return [replace(e, prompt=f"{word} {e.prompt}") for e in examples] if word else list(examples)


def inserted(batch: Batch, place: torch.Tensor, token: int, trained: bool) -> Batch:
    """Inserts a token into every row, at position `place` (B,); rows grow by one. `trained`: the token is a label too."""
    rows, width = batch.input_ids.shape
    column = torch.arange(width + 1)[None]
    old = (column - (column > place[:, None]).long()).clamp(0, width - 1).expand(rows, -1)
    here = column == place[:, None]

    def wide(tensor: torch.Tensor, value: int) -> torch.Tensor:
        return tensor.gather(1, old).masked_fill(here, value)

    mask = None if batch.attention_mask is None else wide(batch.attention_mask, 1)
    return Batch.of(wide(batch.input_ids, token), wide(batch.labels, token if trained else IGNORE), batch.indices, mask)


def every_word(examples: Sequence[Example], words: Sequence[str]) -> list[Example]:
    """Puts each word before every request, word by word in order: the requests that a search for a one-word trigger asks."""
    return [replace(e, kind=word) for word in words for e in behind(word, examples)]
