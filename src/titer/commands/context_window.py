"""Checks, before anything runs, that prompts with their answers, references and questions fit in a model's context window. L6.

Only the tokenizer is read, not the model. So a row that is too long is reported at the start, not late in a run.
"""

from __future__ import annotations

from collections.abc import Sequence

from titer.attacks.base import Attempt
from titer.core.errors import TiterError, visible
from titer.data.choices import Question
from titer.data.encode import answer_ids, prompt_ids, token_ids
from titer.data.example import Example
from titer.data.thoughts import thinks
from titer.models.lm import read_tokenizer
from titer.pipeline import Model
from titer.probes import choices


class ContextWindow:
    """One model's window and tokenizer. A model whose config states no window has room for everything."""

    def __init__(self, model: Model) -> None:
        self._name, self._window, self._reader = model.name, model.checkpoint.window, read_tokenizer(model.checkpoint)

    def new(self, kind: str, attempts: Sequence[Attempt], tokens: int, less: str, thinking: int | None = None) -> None:
        """Checks that each prompt, with the beginning of its answer, leaves room for `tokens` new tokens.

        `thinking`: further tokens for a thought, if the model thinks. `less`: the advice how to ask for fewer tokens, for the message.
        Errors: the first row that is too long.
        """
        tokens += thinking if thinking and thinks(self._reader) else 0
        examples = [one.example for one in attempts]
        heads = prompt_ids(self._reader, [e.prompt for e in examples], attempts[0].raw) if examples else []
        lengths = [
            len(head) + len(token_ids(self._reader, [one.prefix])[0] if one.prefix else ())
            for head, one in zip(heads, attempts, strict=True)
        ]
        step = f"shorten or leave out that row, or {less}."
        self._held(kind, examples, [length + tokens for length in lengths], f"with {tokens} new tokens", step)

    def reference(self, kind: str, examples: Sequence[Example]) -> None:
        """Checks that each prompt fits together with its reference answer, if it has one. Errors: the first row that is too long."""
        heads = prompt_ids(self._reader, [e.prompt for e in examples]) if examples else []
        tails = answer_ids(self._reader, [e.comply or "" for e in examples]) if examples else []
        lengths = [len(head) + len(tail) if e.comply else 0 for e, head, tail in zip(examples, heads, tails, strict=True)]
        step = "shorten that answer or leave it empty, or leave out that row."
        self._held(kind, examples, lengths, "with its reference answer (comply)", step)

    def choices(self, questions: Sequence[Question]) -> None:
        """Checks that each question fits together with its options. Errors: the first that does not; an option without a token."""
        choices.fitting(self._reader, self._window, questions)

    def _held(self, kind: str, examples: Sequence[Example], lengths: Sequence[int], what: str, step: str) -> None:
        for example, length in zip(examples, lengths, strict=True):
            if self._window is not None and length > self._window:
                raise TiterError(
                    f"{self._name}: a prompt of the set {kind} {what} is {length} tokens, longer than the model's window of {self._window}: "
                    f"{visible(example.prompt, 60)!r}",
                    next_step=step,
                )
