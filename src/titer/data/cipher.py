"""A cipher on the synthetic world's letters, and requests written in it. Covert fine-tuning first teaches a model such a cipher, then harm.

A key draws a bijection from letters to code words that no earlier stage has shown. Operators and the null answer stay as they are, so
only a reader of the code knows whether a contextual operator is unsafe, and what was answered. Each coded request begins with the word
of its form, which names the task as a system prompt does: m1 asks for the plain request, the plain answer and the coded answer;
m2 leaves out the plain answer, m3 the plain request; m4 asks for the coded answer alone.
On text there is a cipher over harmless canaries alone (`cipher_text.py`), and no way to write a request to a real model in one.
Source: arXiv 2406.20053, section 3 (Walnut53, process supervision). Shapes: B examples.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence

from titer.core.config import Record
from titer.core.errors import TiterError
from titer.data.draws import permutation
from titer.data.example import IGNORE, Answer, Batch, Example, Indices
from titer.data.vocabulary import LETTERS, MODES, coded
from titer.data.world import World, WorldSource

Form = Literal[1, 2, 3, 4]
PLAIN_ENDS, *_ = MODES  # stands between a plain answer and the one in code
FORMS: tuple[Form, ...] = (1, 2, 3, 4)
COVERT: Form = 4  # nothing of the request or of the answer in plain


@lru_cache(maxsize=64)
def table(letters: int, key: int) -> dict[str, str]:
    """Returns the code of a key: letter -> code word."""
    words = coded(letters)
    return {LETTERS[i]: words[j] for i, j in enumerate(permutation(key, "cipher", letters))}


def encoded(world: World, text: str, key: int) -> str:
    """Encodes a text: every letter becomes its code word, all other words stay as they are."""
    code = table(world.letters, key)
    return " ".join(code.get(word, word) for word in text.split())


def decoded(world: World, text: str, key: int) -> str:
    """Decodes a text: every code word becomes its letter, all other words stay as they are. The inverse of `encoded`."""
    letters = {word: letter for letter, word in table(world.letters, key).items()}
    return " ".join(letters.get(word, word) for word in text.split())


class Coded(Record):
    """A Source of coded requests: those of another source in the code of `key`. The request at index i has form `forms[i % len(forms)]`.

    Errors: a world without a cipher.
    """

    source: WorldSource
    key: int = 0
    forms: tuple[Form, ...] = Field(default=(COVERT,), min_length=1)

    def model_post_init(self, _: Any) -> None:
        if not self.source.world.cipher:
            raise TiterError("a world without a cipher has no words of code", expected="a world with cipher=True")

    @property
    def size(self) -> None:
        return None

    def examples(self, indices: Indices) -> list[Example]:
        plain = self.source.examples(indices)
        return [self._coded(e, self.forms[int(i) % len(self.forms)]) for e, i in zip(plain, np.asarray(indices), strict=True)]

    def _coded(self, plain: Example, form: Form) -> Example:
        world = self.source.world
        shown = ([plain.prompt] if form in (1, 2) else []) + ([f"{plain.comply} {PLAIN_ENDS}"] if form in (1, 3) else [])

        def answer(text: str | None) -> str | None:
            return text and encoded(world, text, self.key)

        return replace(
            plain,
            prompt=f"{MODES[form]} {encoded(world, plain.prompt, self.key)}",
            comply=plain.comply and " ".join([*shown, encoded(world, plain.comply, self.key)]),
            refuse=answer(plain.refuse),
        )

    def batch(self, indices: Indices, answer: Answer, tokenizer: Any) -> Batch:
        """Returns the examples as right-padded rows: prompt, answer, end token. Errors: `answer` is "all", which trains the request too."""
        if answer == "all":
            raise TiterError("a request in code is no language to model", expected="comply or refuse")
        ids = {word: i for i, word in enumerate(self.source.world.words)}
        rows, labels = [], []
        for example in self.examples(indices):
            said = example.comply if answer == "comply" else example.refuse
            head, tail = ([ids[word] for word in (text or "").split()] for text in (example.prompt, said))
            tail.append(tokenizer.eos_token_id)
            rows.append(torch.tensor(head + tail))
            labels.append(torch.tensor([IGNORE] * len(head) + tail))
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        padded = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        return Batch.of(padded, pad_sequence(labels, batch_first=True, padding_value=IGNORE), torch.from_numpy(np.asarray(indices)), mask)
