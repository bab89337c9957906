"""Moves the weights of a loaded model along directions, theta + a d1 + b d2 ..., and restores them bit for bit.

Every point is computed from the original weights, which are read again from the checkpoint's file, so no error builds up over a sweep
and no second copy of the model is held: beside the model, memory holds one of its tensors (two on the way to another checkpoint) and
a few blocks. Tensors that the file stores in another form than the model holds them (fused experts, dequantised or merged weights) are
written to a scratch folder once and read from there. Tied tensors count once. Source: arXiv 2405.17374 (its code moves by repeated +=
and never restores). A point is a sequence of (size, direction); directions in models/directions.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from titer.core.errors import TiterError, visible
from titer.models.checkpoint import Checkpoint
from titer.models.directions import BLOCK, Direction, Directions, Towards, pieces, still
from titer.models.lm import LM

Point = Sequence[tuple[float, Direction]]
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def movable(lm: LM, checkpoint: Checkpoint) -> Iterator[Movable]:
    """Gives `lm`, loaded from `checkpoint`, as a model that can be moved; its scratch folder is deleted when the `with` block ends.

    Errors: a model with quantised (not floating) weights.
    """
    with TemporaryDirectory(prefix="titer-weights-") as scratch:
        yield Movable(lm, checkpoint, Path(scratch))


class Movable:
    """A model whose weights can be moved to a point and are restored afterwards. Made by `movable`."""

    def __init__(self, lm: LM, checkpoint: Checkpoint, scratch: Path) -> None:
        self.lm, self.checkpoint = lm, checkpoint
        self._held = _unique(lm)
        self._spilled: dict[str, Path] = {}
        self._spill(scratch)
        self.directions = Directions(self.original, self._elsewhere, still(lm.model))
        self._away = False

    @property
    def names(self) -> list[str]:
        """The names of the model's floating-point tensors, tied ones once."""
        return list(self._held)

    def original(self, name: str) -> torch.Tensor:
        """Returns a tensor as it was when the model was loaded, on the CPU."""
        if name in self._spilled:
            return load_file(self._spilled[name])["weight"]
        return self.checkpoint.weight(name).to(self._held[name].dtype)

    @contextmanager
    def at(self, point: Point) -> Iterator[LM]:
        """Moves the model to a point for a `with` block; its own weights are restored bit for bit, also after an exception.

        A size of 0 moves nothing. Errors: a direction towards a checkpoint of another architecture; an original that cannot be read again.
        """
        if self._away:
            raise ValueError("the model is at a point already: every point is computed from the original weights")
        moving = [(size, direction) for size, direction in point if size != 0]
        written: list[str] = []
        self._away = True
        try:
            for name in self._held if moving else ():
                if any(self.directions.moves(direction, name) for _, direction in moving):
                    written.append(name)
                    self._move(name, moving)
            yield self.lm
        finally:
            self._restore(written)
            self._away = False

    def untouched(self) -> bool:
        """Whether every weight is bit for bit what it was when the model was loaded."""
        return all(_same_bits(self.original(name), tensor) for name, tensor in self._held.items())

    @torch.no_grad()
    def _move(self, name: str, moving: Point) -> None:
        own = self.original(name)
        flat = self._held[name].detach().reshape(-1)  # contiguous memory as it is, else a copy
        way, rest = _parted(moving)
        others = None if way is None else pieces(self._elsewhere(way[1].checkpoint, name))
        moves = [(size, self.directions.blocks(direction, name, own)) for size, direction in rest]
        for start, block in zip(range(0, own.numel(), BLOCK), pieces(own), strict=True):
            new = block.clone() if way is None or others is None else torch.lerp(block, next(others), way[0])  # exact at 0 and 1
            for size, blocks in moves:
                new.add_(next(blocks), alpha=size)
            flat[start : start + len(new)].copy_(new)
        if flat.data_ptr() != self._held[name].data_ptr():
            self._held[name].detach().copy_(flat.view_as(self._held[name]))

    @torch.no_grad()
    def _restore(self, written: Sequence[str]) -> None:
        try:
            for name in written:
                self._held[name].detach().copy_(self.original(name))
        except (TiterError, OSError) as error:
            raise TiterError(
                f"the weights of {self.lm.label} could not be put back: {visible(str(error), 160)}",
                next_step="load the model again: the one in memory is not the one on disk.",
                status=1,
            ) from error

    def _elsewhere(self, other: Checkpoint, name: str) -> torch.Tensor:
        """Returns the tensor from another checkpoint of this architecture, in this model's data type. Errors: its shape differs."""
        held, there = self._held[name], other.weight(name)
        if there.shape != held.shape:
            raise TiterError(
                f"{name}: {tuple(held.shape)} in {self.checkpoint.label}, {tuple(there.shape)} in {other.label}",
                expected="two checkpoints of one architecture",
            )
        return there.to(held.dtype)

    def _spill(self, scratch: Path) -> None:
        """Writes to `scratch` every tensor that differs in any bit from the checkpoint's (trained since, or an adapter merged in bf16)."""
        standing = self.checkpoint.names.used
        for number, (name, tensor) in enumerate(self._held.items()):
            there = self.checkpoint.weight(name) if name in standing else None
            if there is None or there.shape != tensor.shape or not _same_bits(there.to(tensor.dtype), tensor):
                self._spilled[name] = scratch / f"{number}.safetensors"
                save_file({"weight": tensor.detach().contiguous()}, self._spilled[name])


def _parted(moving: Point) -> tuple[tuple[float, Towards] | None, list[tuple[float, Direction]]]:
    """Splits a point into its first move towards another checkpoint, interpolated so that both ends are exact, and all other moves."""
    for k, (size, direction) in enumerate(moving):
        if isinstance(direction, Towards):
            return (size, direction), [*moving[:k], *moving[k + 1 :]]
    return None, list(moving)


def _unique(lm: LM) -> dict[str, torch.Tensor]:
    """Returns name -> tensor of a model's floating-point weights; a shared tensor (tied embeddings) comes once, by its first name.
    Errors: a tensor of two or more axes that is not floating point, as quantised weights are."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in lm.model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            found.setdefault(id(tensor), (name, tensor))
        elif tensor.ndim > 1:
            raise TiterError(
                f"{lm.label} holds {name} as {str(tensor.dtype).removeprefix('torch.')}: quantised weights cannot be moved",
                expected="a model in float32 or bfloat16",
            )
    return dict(found.values())


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one type and shape hold the same bits (0 and -0 differ, a NaN equals itself)."""
    word = WORDS[second.element_size()]
    return torch.equal(first.contiguous().view(word), second.detach().cpu().contiguous().view(word))
