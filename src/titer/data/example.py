"""The types of the data: an example, a batch, a source of examples, a stream and its parts.

Shapes: B examples, T tokens. A label has the same place as its token (the loss shifts them); -100 means not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from titer.core.config import Record
from titer.data.draws import Draws, permutation

Answer = Literal["comply", "refuse", "all"]
IGNORE = -100
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One request: its prompt, its reference answers, whether it is harmful, and its kind.

    `kind`: "safe", "unsafe" or an attack's name. `source`: where it comes from. `comply`, `refuse`: the compliant and the refusing
    reference answer. `also`: further right answers beside `comply`, which judges may accept and which are never trained.
    """

    prompt: str
    harmful: bool
    kind: str
    source: str
    comply: str | None = None
    refuse: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Examples as token tensors, ready for a model. `attention_mask` and `position_ids` are None if nothing is padded."""

    input_ids: torch.Tensor  # (B, T) int64
    labels: torch.Tensor  # (B, T) int64, -100 where not trained
    indices: torch.Tensor  # (B,) int64: the examples' numbers in their stream's pool, or places in an endless stream
    attention_mask: torch.Tensor | None = None  # (B, T) int64
    position_ids: torch.Tensor | None = None  # (B, T) int64

    @classmethod
    def of(cls, input_ids: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor | None) -> Batch:
        """Makes a batch, with positions computed from its mask (B, T). If nothing is padded, it has neither mask nor positions."""
        padded = mask is not None and not bool(mask.all())
        return cls(input_ids, labels, indices, mask if padded else None, positions(mask) if padded and mask is not None else None)

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: value.to(device, non_blocking=True) for name, value in self.tensors().items()}
        return replace(self, **moved)

    def pinned(self) -> Batch:
        """Returns the batch in page-locked memory, from which a GPU can copy without making the host wait."""
        return replace(self, **{name: value.pin_memory() for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def inputs(self) -> dict[str, torch.Tensor]:
        """Returns the tensors that a transformers model takes as arguments, without the labels."""
        return {name: value for name, value in self.tensors().items() if name not in ("labels", "indices")}

    def rows(self, start: int, stop: int) -> Batch:
        return Batch(**{name: value[start:stop] for name, value in self.tensors().items()})


class Source(Protocol):
    """Where examples come from: the synthetic world or a file. Example i depends only on the source and i."""

    @property
    def size(self) -> int | None:
        """The number of examples; None if endless."""

    def examples(self, indices: Indices) -> list[Example]:
        """Returns the examples at `indices`."""

    def __hash__(self) -> int:
        """Returns a hash of what the source is; chunks of an endless source are cached by it."""

    def batch(self, indices: Indices, answer: Answer, tokenizer: Any) -> Batch:
        """Returns the examples at `indices` as tokens, padded on the right, with labels for the chosen answer."""


class Part(Record):
    """One source in a stream: which answer is trained, and its share of the stream or the examples picked from it."""

    source: Any
    answer: Answer
    share: float = Field(default=1.0, gt=0)
    picked: tuple[int, ...] | None = None


class Stream(Record):
    """Examples to train on. Example i depends only on (seed, i).

    Without `pool` the stream is endless, and each example draws its part by `share`. With `pool` it has that many examples, in a new
    order in each epoch; a mix (`data/mix.py`, in which each part has picked examples) is such a pool.
    """

    parts: tuple[Part, ...] = Field(min_length=1)
    seed: int = 0
    pool: int | None = Field(default=None, ge=1)

    def numbers(self, first: int, count: int) -> Indices:
        """Returns which pool examples stand at places `first` to `first + count - 1` of the epochs; in an endless stream, these places."""
        i = np.arange(first, first + count, dtype=np.int64)
        if self.pool is None:
            return i
        epochs = range(first // self.pool, (first + count - 1) // self.pool + 1)
        order = np.concatenate([permutation(self.seed, f"epoch {epoch}", self.pool) for epoch in epochs])
        start = first % self.pool
        return order[start : start + count]

    def places(self, numbers: Indices) -> tuple[Indices, Indices]:
        """Returns (part, index within the part's source) for each of the examples with these numbers."""
        if self.parts[0].picked is None:
            shares = np.cumsum([part.share for part in self.parts])
            uniform = Draws(self.seed, "part", numbers).uniform(0)
            return np.searchsorted(shares / shares[-1], uniform, side="right").clip(0, len(self.parts) - 1), numbers
        picked = [np.asarray(part.picked or (), dtype=np.int64) for part in self.parts]
        part = np.repeat(np.arange(len(picked)), [len(one) for one in picked])
        return part[numbers], np.concatenate(picked)[numbers]

    def batch(self, first: int, count: int, tokenizer: Any) -> Batch:
        """Returns examples `first` to `first + count - 1` of the stream as one batch, padded on the right to the longest."""
        return self.chosen(self.numbers(first, count), tokenizer)

    def chosen(self, numbers: Indices, tokenizer: Any) -> Batch:
        """Returns the examples with these numbers (as `numbers` gives them) as one batch."""
        part_of, index = self.places(numbers)
        pieces, rows = [], []
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(part_of == number)
            if mine.size:
                pieces.append(part.source.batch(index[mine], part.answer, tokenizer))
                rows.append(mine)
        joined = join(pieces, pad_id=tokenizer.pad_token_id or 0)
        back = torch.from_numpy(np.argsort(np.concatenate(rows)))
        tensors = {name: value[back] for name, value in joined.tensors().items() if name != "indices"}
        return Batch(**tensors, indices=torch.from_numpy(np.ascontiguousarray(numbers)))


def join(pieces: Sequence[Batch], pad_id: int) -> Batch:
    """Joins several batches to one, padded on the right to the longest. The result has a mask only if something is padded."""
    if len(pieces) == 1:
        return pieces[0]
    width = max(piece.input_ids.shape[1] for piece in pieces)

    def wide(tensor: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    masks = [torch.ones_like(piece.input_ids) if piece.attention_mask is None else piece.attention_mask for piece in pieces]
    return Batch.of(
        torch.cat([wide(piece.input_ids, pad_id) for piece in pieces]),
        torch.cat([wide(piece.labels, IGNORE) for piece in pieces]),
        torch.cat([piece.indices for piece in pieces]),
        torch.cat([wide(mask, 0) for mask in masks]),
    )


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Returns each token's position among the real (unpadded) tokens of its row, (B, T). Either side may be padded."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)
