"""A model's modes for a while: reading it without dropout, and without gradients to its weights; both come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode (no dropout); the mode before comes back, also after an exception."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def own_settings_aside(model: Any, settings: Any) -> Iterator[None]:
    """The checkpoint's own penalties, beams and cuts set aside, which transformers would mix into these settings of a generation."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Evaluation mode, and no weight asks for a gradient: what is wanted is the gradient to the input."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with evaluating(model):
        for p in trained:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in trained:
                p.requires_grad_(True)
