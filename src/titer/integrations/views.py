"""A second set of modules over a model's tensors, so that a model in training is read and run without being touched.

A view has modes, hooks and settings of its own and shares every tensor that is not replaced: reading it leaves the model as it
was, and a copy of the model as training began costs only what is trained (of LoRA, the adapter). L7.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

Weights = dict[str, Callable[[], torch.Tensor]]


def view(model: Any, replaced: Mapping[str, torch.Tensor] | None = None) -> Any:
    """The model's modules anew, over the same tensors; parameters named in `replaced` hold these instead, frozen.

    What trainers put in the place of a module's forward (autocast, a fused head) is left out: it would lead back to the model.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, p in model.named_parameters():
        if replaced and name in replaced:
            memo[id(p)] = torch.nn.Parameter(replaced[name], requires_grad=False)
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        vars(module).pop("forward", None)
    return copied


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters in training, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def started(model: Any) -> Any:
    """The model as it is now, for later: a view with copies of all that training may change."""
    return view(model, {name: p.detach().clone() for name, p in trained(model).items()})


def matrices(model: Any) -> Weights:
    """Every matrix, and every stack of them as of experts, as it acts, an adapter merged into its own: name -> what gives it, float32.

    A tied matrix counts once.
    """
    seen: set[int] = set()
    found: Weights = {}
    for name, parameter, layer in _walked(model, ""):
        if parameter.ndim >= 2 and id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = lambda parameter=parameter, layer=layer: _acting(parameter, layer)  # type: ignore[misc]
    return found


def _walked(module: Any, prefix: str) -> Iterator[tuple[str, torch.nn.Parameter, Any]]:
    """(name, parameter, the adapted layer around it or None), the adapters' own parameters left out."""
    for name, p in module.named_parameters(prefix=prefix, recurse=False):
        yield name, p, None
    for name, child in module.named_children():
        inner = f"{prefix}.{name}" if prefix else name
        if hasattr(child, "get_delta_weight"):
            yield f"{inner}.weight", child.base_layer.weight, child
        else:
            yield from _walked(child, inner)


@torch.no_grad()
def _acting(parameter: torch.nn.Parameter, layer: Any) -> torch.Tensor:
    found = parameter.detach().float()
    for adapter in layer.active_adapters if layer is not None else ():
        found = found + layer.get_delta_weight(adapter).detach().float().to(found.device)
    return found
