"""Formulas that edit weights after training: methods apply them when training ends, repairs to a model that was fine-tuned.

Source: SafeLoRA, arXiv 2405.16833 (projection onto what alignment changed); Wanda, arXiv 2306.11695 and Antidote, 2408.09600 (the weights
that some examples use most); TIES, 2306.01708 (the largest entries of a change); DARE, 2311.03099 (drop and rescale).
Shapes: a matrix is (outputs, inputs); V is its change by alignment, dW its change by fine-tuning, and C = V V^T / ||V||_F.
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
    """Returns (V, dW) of one weight; `others` has it in the models "aligned" and "base"; `turned`: it is stored as (inputs, outputs)."""
    aligned = others["aligned"]
    alignment, change = aligned - others["base"], tuned - aligned
    return (alignment.T, change.T) if turned else (alignment, change)


def projected(alignment: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Returns the product C @ `matrix` (outputs, any); C itself, (outputs, outputs), is never built."""
    return alignment @ (alignment.T @ matrix) / alignment.norm()


def alignment_cosine(alignment: torch.Tensor, change: torch.Tensor) -> float | None:
    """Returns the cosine of C dW and dW over all entries; None where V or dW is zero."""
    if not bool(alignment.any()) or not bool(change.any()):
        return None
    return float(functional.cosine_similarity(projected(alignment, change).flatten(), change.flatten(), dim=0))


def least_aligned(cosines: Mapping[K, float | None], threshold: float, layers: int) -> list[K]:
    """Returns the keys of the `layers` lowest cosines, or, if `layers` is 0, of all cosines up to `threshold`; None never counts."""
    found = sorted(((cosine, key) for key, cosine in cosines.items() if cosine is not None), key=lambda pair: pair[0])
    return [key for cosine, key in (found[:layers] if layers else found) if layers or cosine <= threshold]


@contextmanager
def adding_squares(sites: Sites, batch: Batch, squares: dict[str, torch.Tensor]) -> Iterator[None]:
    """A context in which a forward pass over `batch` adds each Linear's summed squared inputs (inputs,), without padding, to `squares`."""
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
    """Sets to zero, in place, the round(ratio * inputs) weights with the highest |W_ij| ||X_j|| in each row."""
    top = (rows.float().abs() * norm).topk(round(ratio * rows.shape[1]), dim=1).indices
    rows.scatter_(1, top, 0.0)


def magnitudes(change: torch.Tensor) -> torch.Tensor:
    """Returns the float32 bits of |change| as integers (int32), which have the same order as the magnitudes."""
    return change.float().abs().view(torch.int32)


def cut(parts: Callable[[], Iterable[torch.Tensor]], keep: int) -> tuple[int, int, int]:
    """Finds the exact cut below the `keep` largest magnitudes of many tensors, with two histograms instead of sorting.

    Returns (bits of the smallest kept magnitude, how many entries of exactly that size are kept, how many there are in all). `parts`
    is called once for each of the two passes and returns the tensors anew.
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
    """Returns (the bin that holds the `keep`th largest entry, how many entries of that bin are among the `keep` largest)."""
    above = counts.flip(0).cumsum(0)
    place = int((above < keep).sum())
    return len(counts) - 1 - place, keep - (int(above[place - 1]) if place else 0)


def kept(change: torch.Tensor, bits: int, ties: int) -> torch.Tensor:
    """Returns a mask of the entries above the cut `bits` and, in the tensor's order, the first `ties` of exactly that size."""
    sizes = magnitudes(change)
    equal = sizes == bits
    if ties >= int(equal.sum()):
        return sizes >= bits
    return (sizes > bits) | (equal & (equal.flatten().cumsum(0).view_as(equal) <= ties))


def dropped(change: torch.Tensor, share: float, seed: int, name: str) -> torch.Tensor:
    """DARE: sets each entry to zero with probability `share` and divides the others by 1 - share; random by seed and parameter name."""
    if share == 0:
        return change
    drawn = torch.rand(change.shape, generator=torch.Generator().manual_seed(seed_of("drop", seed, name)))
    return change * (drawn >= share) / (1 - share)
