"""Likelihood of given answers under a model, used by losses and attacks. Shapes: B examples, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from titer.data.example import IGNORE, Batch, join


def example_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the summed negative log-likelihood of each example's labelled tokens, (B,); the token at t is predicted at t - 1."""
    wanted = functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    flat = functional.cross_entropy(logits.transpose(1, 2).float(), wanted, ignore_index=IGNORE, reduction="none")
    return flat.sum(1)


def pair_nll(forward: Callable[[Batch], torch.Tensor], batch: Mapping[str, Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the negative log-likelihoods (B,) of the preferred and of the rejected answers, from one pass over both.

    The streams `preferred` and `rejected` must hold the same requests in the same order, as two streams of one seed do.
    """
    preferred, rejected = batch["preferred"], batch["rejected"]
    both = join((preferred, rejected), pad_id=0)  # id 0 stands only where the mask is 0
    found = example_nll(forward(both), both.labels)
    return found[: len(preferred)], found[len(preferred) :]
