"""How likely a model finds given answers: what losses and attacks share. Shapes: B examples, T tokens, V vocabulary."""

from __future__ import annotations

import torch
from torch.nn import functional

from titer.data.example import IGNORE


def example_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed next-token negative log-likelihood of each example's labelled tokens, (B,); label t is predicted at t - 1."""
    wanted = functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    flat = functional.cross_entropy(logits.transpose(1, 2).float(), wanted, ignore_index=IGNORE, reduction="none")
    return flat.sum(1)
