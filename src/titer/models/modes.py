"""A model's modes for a while: reading it without dropout, and without gradients to its weights; both come back. Its weights as stored."""

from __future__ import annotations

from collections import OrderedDict
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


@contextmanager
def hooks_aside(model: Any) -> Iterator[None]:
    """Hooks that read or edit a batch would meet one that is not theirs."""
    kept = [(m, name, getattr(m, name)) for m in model.modules() for name in ("_forward_hooks", "_forward_pre_hooks")]
    try:
        for module, name, _ in kept:
            setattr(module, name, OrderedDict())
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)


def as_stored(model: Any) -> None:
    """The weights are, from now on, those that its files hold or will hold, whatever pass came before.

    RWKV of transformers divides some by powers of two as it is evaluated, against overflow in float16, and multiplies them again as it
    trains. Divided ones are multiplied again, bit for bit, and none is divided any more: float32 and bfloat16 have room.
    """
    for module in getattr(model, "modules", tuple)():  # what stands for a model whose words alone are wanted has none
        if hasattr(module, "_rescale_layers"):
            if module.layers_are_rescaled:
                was, module.training = module.training, True
                module._rescale_layers()
                module.training = was
            module._rescale_layers = _unscaled


def _unscaled() -> None:
    """In the place of RWKV's own."""
