"""A model's modes for a while: reading it without dropout, and without gradients to its weights; both come back. Its weights as stored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

ROUTED = "output_router_logits"  # what trainers set to balance experts, and save


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode: no dropout, and no loss of a router, which transformers cannot compute where earlier tokens are cached; the mode
    before comes back, also after an exception."""
    was_training = model.training
    configs = [] if (config := getattr(model, "config", None)) is None else [config, config.get_text_config(decoder=True)]
    model.eval()
    try:
        with _set([(one, ROUTED, False) for one in configs if getattr(one, ROUTED, False)]):
            yield
    finally:
        model.train(was_training)


def own_settings_aside(model: Any, settings: Any) -> AbstractContextManager[None]:
    """The checkpoint's own penalties, beams and cuts set aside, which transformers would mix into these settings of a generation."""
    return _set([(model, "generation_config", settings)])


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Evaluation mode, and no weight asks for a gradient: what is wanted is the gradient to the input."""
    with evaluating(model), _set([(p, "requires_grad", False) for p in model.parameters() if p.requires_grad]):
        yield


def hooks_aside(model: Any) -> AbstractContextManager[None]:
    """Hooks that read or edit a batch would meet one that is not theirs."""
    return _set([(m, name, OrderedDict()) for m in model.modules() for name in ("_forward_hooks", "_forward_pre_hooks")])


@contextmanager
def _set(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes (of what, its name, its value) for a while."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


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
