"""Context managers that put a model into evaluation mode, freeze its weights or take off its hooks, and restore it at their end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

ROUTED = "output_router_logits"  # training sets it to balance experts, and it is saved with the model


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Puts the model into evaluation mode (no dropout); its earlier mode is restored at the end, also after an exception.

    Router losses of mixtures of experts are off too: transformers cannot compute them where earlier tokens are cached."""
    was_training = model.training
    configs = [] if (config := getattr(model, "config", None)) is None else [config, config.get_text_config(decoder=True)]
    model.eval()
    try:
        with _set([(one, ROUTED, False) for one in configs if getattr(one, ROUTED, False)]):
            yield
    finally:
        model.train(was_training)


def own_settings_aside(model: Any, settings: Any) -> AbstractContextManager[None]:
    """Replaces the checkpoint's own generation settings by `settings` for a `with` block: else transformers would mix its penalties,
    beams and truncation of sampling into these."""
    return _set([(model, "generation_config", settings)])


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Puts the model into evaluation mode and lets no weight require a gradient: for gradients with respect to the input alone."""
    with evaluating(model), _set([(p, "requires_grad", False) for p in model.parameters() if p.requires_grad]):
        yield


def hooks_aside(model: Any) -> AbstractContextManager[None]:
    """Takes off all forward hooks of the model for the length of a `with` block, for a trial batch that they must not read or edit."""
    return _set([(m, name, OrderedDict()) for m in model.modules() for name in ("_forward_hooks", "_forward_pre_hooks")])


@contextmanager
def _set(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Sets attributes, given as (object, attribute name, value), and restores their earlier values at the end."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def as_stored(model: Any) -> None:
    """Keeps the weights in memory equal to those in the model's files, also after a forward pass.

    In evaluation mode transformers' RWKV divides some weights by powers of two, against overflow in float16, and multiplies them again
    in training. This undoes the division, bit for bit, and prevents any later one: float32 and bfloat16 do not overflow there.
    """
    for module in getattr(model, "modules", tuple)():  # a stand-in for a model, used for its tokenizer alone, has none
        if hasattr(module, "_rescale_layers"):
            if module.layers_are_rescaled:
                was, module.training = module.training, True
                module._rescale_layers()
                module.training = was
            module._rescale_layers = lambda: None  # in place of RWKV's own
