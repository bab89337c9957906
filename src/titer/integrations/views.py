"""A second set of modules over a model's tensors, so that a model in training is read and run without being touched.

A view has its own modes, hooks and settings, but shares every tensor that is not replaced. So using it does not change the model in
training, and a copy of the model from the start of training needs memory only for what is trained (for LoRA, the adapter). L8.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from titer.core.errors import TiterError
from titer.models.modes import as_stored

Weights = dict[str, Callable[[], torch.Tensor]]


def view(model: Any, replaced: Mapping[str, torch.Tensor] | None = None) -> Any:
    """Returns new modules over the same tensors; the parameters named in `replaced` get the given tensors instead, and are frozen.

    A forward function that a trainer set on a module (autocast, a fused head) is left out, because it would run the original module.
    """
    as_stored(model)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, p in model.named_parameters():
        if replaced and name in replaced:
            memo[id(p)] = torch.nn.Parameter(replaced[name], requires_grad=False)
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        vars(module).pop("forward", None)
    return copied


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """Returns the parameters in training, by name."""
    as_stored(model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def started(model: Any) -> Any:
    """Returns the model as it is now, to be used later: a view with copies of all parameters that training may change."""
    return view(model, {name: p.detach().clone() for name, p in trained(model).items()})


def plain(model: Any) -> Any:
    """Returns the model within peft's wrapper, or the model itself if it has none."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def weights(model: Any) -> Weights:
    """Returns, for the plain name of each parameter, a function that returns it in float32, with its adapter merged.

    Adapters of any kind are merged by peft's own rule. A tied tensor counts once. Errors, when one is read: peft cannot merge its adapter.
    """
    found: Weights = {}
    seen: set[int] = set()
    walked = list(_walked(plain(model), ""))
    adapted = {id(p) for _, layer in walked if isinstance(layer, _Adapted) for p in layer.base.parameters()}
    for name, one in walked:
        if isinstance(one, _Adapted):
            for inner, _ in one.base.named_parameters():
                found[f"{name}.{inner}"] = lambda one=one, inner=inner: one.merged(inner)  # type: ignore[misc]
        elif id(one) not in seen | adapted:
            seen.add(id(one))
            found[name] = lambda one=one: one.detach().float()  # type: ignore[misc]
    return found


def uncounted(model: Any) -> list[str]:
    """Returns the names of trained parameters that `weights` misses: those of prompts, and of layers whose weight is no parameter."""
    counted: set[int] = set()
    for _, one in _walked(plain(model), ""):
        if not isinstance(one, _Adapted):
            counted.add(id(one))
        elif any(name.rpartition(".")[2] != "bias" for name, _ in one.base.named_parameters()):
            counted |= {id(p) for p in one.layer.parameters()}
    return [name for name, p in trained(model).items() if id(p) not in counted]


class _Adapted:
    """A layer that peft wrapped around one of the model's: `base` is that one, `merged` returns a parameter with the adapter."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.base = layer, _bare(layer)

    @torch.no_grad()
    def merged(self, name: str) -> torch.Tensor:
        """Returns a parameter with the adapter merged into it, computed on a float32 copy of this layer alone."""
        device = next(self.base.parameters()).device
        layer = copy.deepcopy(self.layer).to(device, torch.float32)
        try:
            for one in layer.modules():  # adapted stacks of experts have several, nested in each other
                if hasattr(one, "base_layer"):
                    one.merge()
        except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            raise TiterError(
                f"peft cannot merge {type(self.layer).__name__}, so its change cannot be told ({error})",
                expected="an adapter that can be merged, such as LoRA or DoRA",
                next_step="give Watch inside=('drift',).",
            ) from error
        return _bare(layer).get_parameter(name).detach()


def _bare(layer: Any) -> Any:
    """Returns the model's own module within peft's wrappers: the trained copy of a module trained whole, or an adapter's base layer."""
    while True:
        if hasattr(layer, "modules_to_save"):
            layer = layer.modules_to_save[layer.active_adapters[0]] if layer.active_adapters else layer.original_module
        elif hasattr(layer, "token_adapter"):
            layer = layer.token_adapter
        elif hasattr(layer, "base_layer"):
            layer = layer.base_layer
        else:
            return layer


def _walked(module: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields (name, parameter) for what is not adapted, and (name, `_Adapted`) for each adapted layer.

    Of tied layers, only the one that holds the adapter is yielded.
    """
    for name, p in module.named_parameters(prefix=prefix, recurse=False):
        yield name, p
    for name, child in module.named_children():
        inner = f"{prefix}.{name}" if prefix else name
        if getattr(getattr(child, "token_adapter", child), "tied_adapter", None) is not None:
            continue
        if any(hasattr(child, mark) for mark in ("modules_to_save", "token_adapter", "base_layer")):
            yield inner, _Adapted(child)
        else:
            yield from _walked(child, inner)
