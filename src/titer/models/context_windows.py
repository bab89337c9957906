"""Splits a model's new tokens into thought and answer, each with a token limit of its own, for every generation engine.

An answer is generated in turns. The first is exactly the generation of a model without thoughts. Where its text then shows a thought
(data/thoughts.py), further turns give first the thought and then the answer the rest of their token limits. In code, `room` is a limit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from transformers import StoppingCriteria

from titer.core.config import Record
from titer.data import thoughts
from titer.data.thoughts import Told

CLOSING = ">]▷⟩:"  # one of these stands at the end of whatever closes a thought


class Decoding(Record):
    """How answers are generated. Temperature 0 is greedy.

    `max_thinking_tokens`: how many tokens a thought may take besides the answer's `max_new_tokens`; 0: thought and answer share
    `max_new_tokens`; None: `thoughts.ROOM`. A thought never gets more than the model's window leaves.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0
    max_thinking_tokens: int | None = Field(default=None, ge=0)

    @model_serializer(mode="wrap")
    def _plain(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out `max_thinking_tokens` where it is None, so that cache keys stay as they were before the field existed."""
        found: dict[str, Any] = whole(self)
        return {name: value for name, value in found.items() if name != "max_thinking_tokens" or value is not None}

    def most(self, thinks: bool) -> int:
        """Returns the most new tokens that one answer may take, its thought included."""
        room = thoughts.ROOM if self.max_thinking_tokens is None else self.max_thinking_tokens
        return self.max_new_tokens + (room if thinks else 0)


@dataclass(frozen=True)
class Completion:
    """What a model wrote: `text` is its answer without the end token, `ended` whether it ended by itself, `tokens` its length with thought.

    `thought`: what it thought before the answer, "" for nothing; `unfinished`: it stopped within its thought, so there is no answer.
    `failed`: why no answer could be generated, "" where one was.
    """

    text: str
    ended: bool
    tokens: int
    thought: str = ""
    unfinished: bool = False
    failed: str = ""


def thinking_room(thinking: int | None, new: int | None) -> int | None:
    """Returns `Decoding.max_thinking_tokens` from a user's options: `thinking` where it is given, else `new`, the limit for answers."""
    return new if thinking is None else thinking


class Turn(NamedTuple):
    """One request to the engine: continue the token ids `row` (prompt and earlier output) by at most `room` tokens."""

    row: list[int]
    written: list[int]  # the earlier output alone
    mark: str  # what opened a thought at the prompt's end, "" for none
    room: int
    closes: tuple[str, ...] = ()  # the texts that would close the open thought
    thinking: bool = False  # a thought is open, and the turn ends where it is closed


Ask = Callable[[Mapping[int, Turn], int], Mapping[int, list[int]]]  # turns by place, the turn's number -> new tokens, an end the last
Ends = Sequence[int]
Make = Callable[[Sequence[int], int], dict[int, Completion]]  # a batch's places, the place of the first in the order of asking
Chooser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids (B, T) and logits (B, V) -> the logits to choose by


class Guide(Protocol):
    """A decoder at work: it chooses a model's tokens in its own way (decoders/base.py)."""

    def begin(self, decoding: Decoding, ids: Sequence[list[int]]) -> int | None:
        """Takes each prompt's token ids; returns the window that is left for them, None for no limit."""

    def apart(self, turns: Mapping[int, Turn], groups: list[list[int]]) -> list[list[int]]:
        """Returns the groups of a batch's rows that may be generated together, split further where the decoder needs it."""

    def over(self, turns: Mapping[int, Turn]) -> AbstractContextManager[Chooser]:
        """Yields the function that chooses a batch's tokens; the decoder's hooks stay in place until the block ends."""

    def tried(self, make: Make, places: Sequence[int], start: int) -> dict[int, Completion]:
        """Returns the answers that `make` generates, or for each row without one the reason (`Completion.failed`)."""


def answers(
    tokenizer: Any,
    ends: Ends,
    rows: Mapping[int, list[int]],
    marks: Mapping[int, str],
    decoding: Decoding,
    window: int | None,
    ask: Ask,
) -> dict[int, Completion]:
    """Generates each row's answer: asks for all rows once, then again for those whose thought or answer has tokens left. `rows`: the
    prompts' ids; `marks`: the text that opened a thought at the end of a row's prompt, "" for none."""
    made = {i: list(new) for i, new in ask({i: Turn(row, [], marks[i], decoding.max_new_tokens) for i, row in rows.items()}, 0).items()}
    rooms = {i: _room(decoding, window, len(row)) for i, row in rows.items()}
    for number in count(1):
        turns = {i: turn for i, row in rows.items() if (turn := _turn(tokenizer, ends, row, made[i], marks[i], decoding, rooms[i]))}
        for thinking in (True, False):
            part = {i: turn for i, turn in turns.items() if turn.thinking is thinking}
            for i, new in ask(part, number).items() if part else ():
                made[i] += new
        if not turns:
            break
    return {i: completion(tokenizer, ends, made[i], marks[i], decoding.max_new_tokens if rooms[i] else None, rooms[i]) for i in rows}


def completion(tokenizer: Any, ends: Ends, ids: list[int], mark: str = "", most: int | None = None, room: int = 0) -> Completion:
    """Turns new token ids into a Completion: an answer of at most `most` tokens (None: no limit) after a thought of at most `room`."""
    told, kept, ended = read(tokenizer, ends, ids, mark)
    if ended and not mark and thoughts.spelt(told) and not thoughts.thinks(tokenizer):
        return Completion(tokenizer.decode(kept), True, len(kept))
    begun = _begun(tokenizer, kept, told)
    if most is not None and (told.thinking or begun > room) and begun:
        told, whole = read(tokenizer, ends, kept[:room], mark)[0] if begun > room else told, told.thinking and ended
        return Completion("", whole, min(len(kept), room), told.thought, True)
    if told.thinking:
        return Completion("", ended, len(kept), told.thought, True)
    if most is not None and len(kept) > begun + most:
        kept, ended = kept[: begun + most], False
        told = read(tokenizer, (), kept, mark)[0]
    return Completion(told.answer, ended or told.ended, len(kept), told.thought)


def read(tokenizer: Any, ends: Ends, ids: list[int], mark: str) -> tuple[Told, list[int], bool]:
    """Returns (a row's thought and answer, its ids without the end token, whether it ended); a token that closes a thought is no end."""
    ended = bool(ids) and ids[-1] in ends
    kept = ids[:-1] if ended else ids
    told = thoughts.told(tokenizer.decode(kept), mark)
    if ended and told.closes and tokenizer.decode(ids[-1:]).strip() in told.closes:
        return thoughts.told(tokenizer.decode(ids), mark), ids, False
    return told, kept, ended


def _room(decoding: Decoding, window: int | None, length: int) -> int:
    """Returns the token limit for the thought of one row."""
    wanted = decoding.most(True) - decoding.max_new_tokens
    return wanted if window is None else max(0, min(wanted, window - length - decoding.max_new_tokens))


def _begun(tokenizer: Any, kept: list[int], told: Told) -> int:
    """Returns how many tokens come before the answer's first."""
    if told.thinking or not told.start:
        return len(kept) if told.thinking else 0
    return bisect_left(range(len(kept)), told.start, key=lambda n: len(tokenizer.decode(kept[:n])))


def _turn(tokenizer: Any, ends: Ends, row: list[int], ids: list[int], mark: str, decoding: Decoding, room: int) -> Turn | None:
    """Returns the next turn of one row; None where nothing is left to generate."""
    told, kept, ended = read(tokenizer, ends, ids, mark)
    if ended or told.ended or not room:
        return None
    begun = _begun(tokenizer, kept, told)
    left = room - len(kept) if told.thinking else decoding.max_new_tokens - (len(kept) - begun) if 0 < begun <= room else 0
    return Turn(row + ids, ids, mark, left, told.closes, told.thinking) if left > 0 else None


class Rooms(StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion: ends each row of a batch at its token limit or where its thought ends; `lengths` counts the new tokens."""

    def __init__(self, tokenizer: Any, turns: Sequence[Turn]) -> None:
        self._tokenizer, self._turns = tokenizer, turns
        self._new: list[list[int]] = [[] for _ in turns]
        self.lengths: list[int | None] = [None] * len(turns)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for i, token in enumerate(input_ids[:, -1].tolist()):
            if self.lengths[i] is None:
                self._new[i].append(token)
                if len(self._new[i]) >= self._turns[i].room or (self._turns[i].thinking and self._closed(i, token)):
                    self.lengths[i] = len(self._new[i])
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)

    def _closed(self, i: int, token: int) -> bool:
        if not any(letter in CLOSING for letter in self._tokenizer.decode([token])):
            return False
        turn = self._turns[i]
        return not thoughts.told(self._tokenizer.decode(turn.written + self._new[i]), turn.mark).thinking


def chosen(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns the next token (B,) for logits (B, V): the most likely one at temperature 0, else a sampled one."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1)[:, 0]
