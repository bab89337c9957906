"""How likely a model finds given answers: what losses and attacks share. Shapes: B examples, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from titer.data.example import IGNORE, Batch, join


def example_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed next-token negative log-likelihood of each example's labelled tokens, (B,); label t is predicted at t - 1."""
    wanted = functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    flat = functional.cross_entropy(logits.transpose(1, 2).float(), wanted, ignore_index=IGNORE, reduction="none")
    return flat.sum(1)


def pair_nll(forward: Callable[[Batch], torch.Tensor], batch: Mapping[str, Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihoods (B,) of the preferred and of the rejected answers, from one pass over both.

    The streams `preferred` and `rejected` hold the same requests in the same order: two streams of one seed.
    """
    preferred, rejected = batch["preferred"], batch["rejected"]
    both = join((preferred, rejected), pad_id=0)  # id 0 stands only where the mask is 0
    found = example_nll(forward(both), both.labels)
    return found[: len(preferred)], found[len(preferred) :]
