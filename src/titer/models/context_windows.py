"""What a model wrote, and room for its thoughts beside room for its answer, whichever engine writes. L3.

An answer is asked for in turns. The first is that of a model without thoughts, to the token; where a row then shows a thought
(data/thoughts.py), further turns give the thought and, behind it, the answer what is left of their room.
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

    `max_thinking_tokens`: room of a thought beside the answer's; 0: none of its own, `max_new_tokens` holds both; None:
    `thoughts.ROOM`. Never more than the window leaves.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = 0
    max_thinking_tokens: int | None = Field(default=None, ge=0)

    @model_serializer(mode="wrap")
    def _plain(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where thoughts were given no room by name, what is kept goes by the keys that it had before there was any."""
        found: dict[str, Any] = whole(self)
        return {name: value for name, value in found.items() if name != "max_thinking_tokens" or value is not None}

    def most(self, thinks: bool) -> int:
        """New tokens of one answer at most, its thought's included."""
        room = thoughts.ROOM if self.max_thinking_tokens is None else self.max_thinking_tokens
        return self.max_new_tokens + (room if thinks else 0)


@dataclass(frozen=True)
class Completion:
    """What a model wrote: its answer without the end token, whether it ended by itself, its length in tokens, its thought's included.

    `thought`: what it thought before, "" without; `unfinished`: it was cut off, or ended, within its thought, so there is no answer.
    `failed`: why the answer could not be had, "" where it could.
    """

    text: str
    ended: bool
    tokens: int
    thought: str = ""
    unfinished: bool = False
    failed: str = ""


def thinking_room(thinking: int | None, new: int | None) -> int | None:
    """`Decoding.max_thinking_tokens` by what a user gave: where that is the room of answers alone, thoughts have as much."""
    return new if thinking is None else thinking


class Turn(NamedTuple):
    """What is asked for of one row: behind its prompt and what it wrote, `room` more tokens; `closes`: up to what ends its thought."""

    row: list[int]
    written: list[int]
    mark: str
    room: int
    closes: tuple[str, ...] = ()
    thinking: bool = False


Ask = Callable[[Mapping[int, Turn], int], Mapping[int, list[int]]]  # turns by place, the turn's number -> new tokens, an end the last
Ends = Sequence[int]
Make = Callable[[Sequence[int], int], dict[int, Completion]]  # a batch's places, the place of the first in the order of asking
Chooser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids (B, T) and logits (B, V) -> the logits to choose by


class Guide(Protocol):
    """What decodes a model's answers in its own way (decoders/base.py)."""

    def begin(self, decoding: Decoding, ids: Sequence[list[int]]) -> int | None:
        """The window that is left, where each prompt's ids are known."""

    def apart(self, turns: Mapping[int, Turn], groups: list[list[int]]) -> list[list[int]]:
        """The groups of a batch's rows that go together, cut further where need be."""

    def over(self, turns: Mapping[int, Turn]) -> AbstractContextManager[Chooser]:
        """What a batch's tokens are chosen by, and its hooks for as long."""

    def tried(self, make: Make, places: Sequence[int], start: int) -> dict[int, Completion]:
        """The answers that `make` gives, or why they could not be had."""


def answers(
    tokenizer: Any,
    ends: Ends,
    rows: Mapping[int, list[int]],
    marks: Mapping[int, str],
    decoding: Decoding,
    window: int | None,
    ask: Ask,
) -> dict[int, Completion]:
    """Each row's answer. `marks`: what opened a thought at the end of a row's prompt, "" for none."""
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
    """New ids as an answer, of at most `most` tokens behind a thought of at most `room`."""
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
    """(what a row wrote, its ids without the token that ended it, whether one did): what closes an open thought ends no answer."""
    ended = bool(ids) and ids[-1] in ends
    kept = ids[:-1] if ended else ids
    told = thoughts.told(tokenizer.decode(kept), mark)
    if ended and told.closes and tokenizer.decode(ids[-1:]).strip() in told.closes:
        return thoughts.told(tokenizer.decode(ids), mark), ids, False
    return told, kept, ended


def _room(decoding: Decoding, window: int | None, length: int) -> int:
    """New tokens for the thought of one row."""
    wanted = decoding.most(True) - decoding.max_new_tokens
    return wanted if window is None else max(0, min(wanted, window - length - decoding.max_new_tokens))


def _begun(tokenizer: Any, kept: list[int], told: Told) -> int:
    """How many tokens stand before the answer's first."""
    if told.thinking or not told.start:
        return len(kept) if told.thinking else 0
    return bisect_left(range(len(kept)), told.start, key=lambda n: len(tokenizer.decode(kept[:n])))


def _turn(tokenizer: Any, ends: Ends, row: list[int], ids: list[int], mark: str, decoding: Decoding, room: int) -> Turn | None:
    """What is still to be asked for; None: nothing."""
    told, kept, ended = read(tokenizer, ends, ids, mark)
    if ended or told.ended or not room:
        return None
    begun = _begun(tokenizer, kept, told)
    left = room - len(kept) if told.thinking else decoding.max_new_tokens - (len(kept) - begun) if 0 < begun <= room else 0
    return Turn(row + ids, ids, mark, left, told.closes, told.thinking) if left > 0 else None


class Rooms(StoppingCriteria):  # type: ignore[misc]
    """Ends each row of a batch where its room or its thought ends; `lengths` says where, in new tokens."""

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
    """The next token of each row (B, V): the likeliest at temperature 0, else drawn."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1)[:, 0]
