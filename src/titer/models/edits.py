"""Formulas of edits of weights after training: what methods do when training ends and repairs do to a model that is tuned.

Source: SafeLoRA, arXiv 2405.16833 (projection onto what alignment changed); Wanda, arXiv 2306.11695 and Antidote, 2408.09600 (the weights
that some examples use most); TIES, 2306.01708 (the largest of a change); DARE, 2311.03099 (drop and rescale).
Shapes: a matrix is (outputs, inputs), V what alignment changed and dW what training did of one of them, C = V V^T / ||V||_F.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch.nn import functional

from titer.data.draws import seed_of
from titer.data.example import Batch
from titer.models.directions import pieces
from titer.models.sites import Sites, block_linears

K = TypeVar("K", bound=Hashable)
LOW = 15  # bits of a magnitude that the second pass tells apart; the first the 16 above them


def two_changes(tuned: torch.Tensor, others: Mapping[str, torch.Tensor], turned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(V, dW) of one stored weight, which is (inputs, outputs) where `turned`; `others` has it of the models `aligned` and `base`."""
    aligned = others["aligned"]
    alignment, change = aligned - others["base"], tuned - aligned
    return (alignment.T, change.T) if turned else (alignment, change)


def projected(alignment: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """C matrix, (outputs, any); C itself, of outputs squared, is never built."""
    return alignment @ (alignment.T @ matrix) / alignment.norm()


def alignment_cosine(alignment: torch.Tensor, change: torch.Tensor) -> float | None:
    """cos(C dW, dW) over the entries; None where V or dW is zero."""
    if not bool(alignment.any()) or not bool(change.any()):
        return None
    return float(functional.cosine_similarity(projected(alignment, change).flatten(), change.flatten(), dim=0))


def least_aligned(cosines: Mapping[K, float | None], threshold: float, layers: int) -> list[K]:
    """Those of a cosine of at most `threshold`, or (not 0) so many of the lowest; None is never among them."""
    found = sorted(((cosine, key) for key, cosine in cosines.items() if cosine is not None), key=lambda pair: pair[0])
    return [key for cosine, key in (found[:layers] if layers else found) if layers or cosine <= threshold]


@contextmanager
def adding_squares(sites: Sites, batch: Batch, squares: dict[str, torch.Tensor]) -> Iterator[None]:
    """While it lasts, a forward pass over `batch` adds every Linear's squared inputs (inputs,), padding left out, to `squares`."""
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    real = mask.flatten().bool()

    def add(name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            inputs = args[0].detach().reshape(len(real), -1)[real]  # some MLPs see (B T, inputs)
            squares[name] = squares.get(name, 0) + (inputs.float() ** 2).sum(0)

        return hook

    with ExitStack() as stack:
        for name, layer in block_linears(sites).items():
            stack.callback(layer.register_forward_pre_hook(add(name)).remove)
        yield


def prune_used(rows: torch.Tensor, norm: torch.Tensor, ratio: float) -> None:
    """Zero, in place, the round(ratio inputs) weights of the highest |W_ij| ||X_j|| in each row."""
    top = (rows.float().abs() * norm).topk(round(ratio * rows.shape[1]), dim=1).indices
    rows.scatter_(1, top, 0.0)


def magnitudes(change: torch.Tensor) -> torch.Tensor:
    """The bits of |change| in float32 as whole numbers (int32), which order as the magnitudes do."""
    return change.float().abs().view(torch.int32)


def cut(parts: Callable[[], Iterable[torch.Tensor]], keep: int) -> tuple[int, int, int]:
    """Where the `keep` largest magnitudes of many tensors end, exactly, two histograms over them and no sorting.

    (bits of the smallest that is kept, how many of that very size are kept, how many there are); `parts` gives the tensors anew.
    """
    high = torch.zeros(2**16, dtype=torch.long)
    for piece in (piece for part in parts() for piece in pieces(part)):
        high += torch.bincount(magnitudes(piece) >> LOW, minlength=len(high))
    top, left = _from_above(high, keep)
    low = torch.zeros(2**LOW, dtype=torch.long)
    for bits in (magnitudes(piece) for part in parts() for piece in pieces(part)):
        low += torch.bincount(bits[bits >> LOW == top] & (2**LOW - 1), minlength=len(low))
    bottom, left = _from_above(low, left)
    return (top << LOW) + bottom, left, int(low[bottom])


def _from_above(counts: torch.Tensor, keep: int) -> tuple[int, int]:
    """(the bin in which the `keep`th from above lies, how many of that bin are among the `keep`)."""
    above = counts.flip(0).cumsum(0)
    place = int((above < keep).sum())
    return len(counts) - 1 - place, keep - (int(above[place - 1]) if place else 0)


def kept(change: torch.Tensor, bits: int, ties: int) -> torch.Tensor:
    """Which entries are above the cut, and the first `ties` of those that are of its very size, in the tensor's order."""
    sizes = magnitudes(change)
    equal = sizes == bits
    if ties >= int(equal.sum()):
        return sizes >= bits
    return (sizes > bits) | (equal & (equal.flatten().cumsum(0).view_as(equal) <= ties))


def dropped(change: torch.Tensor, share: float, seed: int, name: str) -> torch.Tensor:
    """DARE: every entry zero with probability `share`, else divided by 1 - share; drawn by the seed and the parameter's name."""
    if share == 0:
        return change
    drawn = torch.rand(change.shape, generator=torch.Generator().manual_seed(seed_of("drop", seed, name)))
    return change * (drawn >= share) / (1 - share)
