"""Antidote: after fine-tuning, zero the weights that harmful requests use most.

Each weight of the blocks' Linears gets the score |W_ij| ||X_j||_2 (Wanda's score). X_j is entry j of the Linear's input, over all tokens
of the first `examples` harmful examples (prompts and answers, no padding). In each output row, the round(ratio inputs) weights with the
highest scores are zeroed. Source: arXiv 2408.09600; the score: arXiv 2306.11695.

Training itself is SFT. `titer repair --method antidote` does the same pruning on a model that is already tuned. With an adapter, the
merged weight W + scaling B A is scored and pruned, as published: the result becomes the base weight, and B becomes zero so that the
merge adds nothing.
Shapes: a weight is (outputs, inputs), an input (B, T, inputs) or (B T, inputs), a norm (inputs,).
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from titer.core.errors import TiterError
from titer.methods.base import Context, Method
from titer.models.blocks import transposed
from titer.models.edits import adding_squares, prune_used
from titer.models.modes import evaluating
from titer.models.sites import block_linears


class Antidote(Method):
    """Trains as SFT does, then zeroes weights; the settings say what share of each row, and how many examples score the weights."""

    STREAMS = ("train", "harmful")
    SOURCE = "arXiv 2408.09600 (Antidote); the score: arXiv 2306.11695 (Wanda)"
    VERSION = 1
    NEUTRAL = {"ratio": 0.0}

    ratio: float = Field(default=0.1, ge=0, le=1, description="share of each output row zeroed; official scripts: 0.1 (GSM8K: 0.05)")
    examples: int = Field(default=2000, ge=1, description="harmful examples that score the weights; official scripts: 2000")

    def step(self, c: Context) -> None:
        for batch in c.micro("train"):  # the harmful examples are used in `finish` only
            c.backward(self.loss(c, batch))

    @torch.no_grad()
    def finish(self, c: Context) -> None:
        if self.ratio == 0:
            return
        norms = input_norms(c, self.examples)
        for name, layer in block_linears(c.sites).items():
            _prune(layer, norms[name], self.ratio)


def input_norms(c: Context, examples: int) -> dict[str, torch.Tensor]:
    """Returns ||X_j||_2 (inputs,) over the harmful examples' tokens, for each Linear of the blocks by its name.

    Errors: a norm that is not finite.
    """
    squares: dict[str, torch.Tensor] = {}
    with evaluating(c.sites.model):
        for batches in c.first("harmful", examples):
            with adding_squares(c.sites, batches["harmful"], squares):
                c.forward(batches["harmful"])
    if broken := [name for name, total in squares.items() if not bool(torch.isfinite(total).all())]:
        raise TiterError(
            f"the inputs of {broken[0]} on the harmful examples are not finite: training diverged",
            next_step="lower the learning rate.",
            status=1,
        )
    return {name: total.sqrt() for name, total in squares.items()}


def _prune(layer: Any, norm: torch.Tensor, ratio: float) -> None:
    """Zeroes, in each output row, the round(ratio inputs) weights with the highest scores; with an adapter, of the merged weight."""
    weight = getattr(layer, "base_layer", layer).weight
    if hasattr(layer, "base_layer"):
        for name in layer.active_adapters:
            weight.add_(layer.get_delta_weight(name).to(weight.dtype))
            layer.lora_B[name].weight.zero_()
    rows = weight.T if transposed(layer) else weight  # (outputs, inputs), the weight itself and no copy
    prune_used(rows, norm, ratio)
