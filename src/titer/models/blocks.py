"""Finds the parts of a decoder by its structure: the text model, its blocks, and each block's attention, MLP, experts and other mixers.

A module is recognised by its name and class (`kind_of`), never by the model's family. The matrices of an MLP are recognised by their
sizes: `down` has the model's width as outputs, `up` has it as inputs; of two that have it as inputs, the activated one is the gate.
Routed experts are three-dimensional parameters (one tensor for all experts) or modules in a list; shared experts are an MLP beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

KINDS = (nn.Linear, Conv1D)
Linear = nn.Linear | Conv1D
Stack = tuple[nn.Module, dict[str, nn.Parameter]]
Rows = Literal["all", "first", "second", "even", "odd"]
Kind = Literal["attention", "mlp", "mixer", "tower", "norm", ""]
PARTS = {  # what owns a parameter, in words
    "mlp": "MLP",
    "attention": "attention",
    "mixer": "mixer (state space, convolution or recurrence)",
    "block": "block's other",  # inputs of a layer's own, hyper-connections, adapters
    "tower": "vision or audio tower",
    "other": "embedding, norm and head",
    "vectors": "norm and bias",
}
OPEN = {"mixer", "temporal_block", "block"}  # names that say nothing: the class does, by `TOLD`
NORM = re.compile(r"norm|(^|_)ln(_|\d|$)")
TOWER = re.compile(r"vision|visual|image|audio|speech|vqmodel")
MIXER = re.compile(r"mamba|ssm|conv|linear_attn|lstm|rwkv|time_mix")
MIXING = re.compile(r"Delta|Lightning|Rwkv|Mamba|Conv|LSTM")  # classes that stand where an attention stands in other layers
TOLD: dict[Kind, re.Pattern[str]] = {
    "attention": re.compile("Attention"),
    "mlp": re.compile("MLP|MoE|FeedForward"),
    "mixer": re.compile("Mixer|Recurrent|SSM|" + MIXING.pattern),
}
ATTENTION = re.compile(r"att(entio)?n|^self_att$")
BESIDE = re.compile(r"HyperConnection|Residual")
SEVERAL = re.compile(r"HyperConnection|AltUp")
MLP = re.compile(r"mlp|ffn?$|ffn|feed_?forward|moe|experts?$|^router$|^(intermediate|output)$|^(fc|lin)_?(\d|in|out)$")
CROSS = re.compile(r"cross|encoder_at")
DOWN = re.compile(r"down|c_proj|(fc|w|lin|layer_)_?2|fc_out|4h_to_h|output|w_out|^wo$", re.IGNORECASE)
GATE = re.compile(r"gate|^w1$|^w_0$")
OUT = re.compile(r"(^|\.)(o|out|c|o_b)_(proj|lin)|(^|\.)(dense|wo|output|linear_out|to_out)(\.|$)", re.IGNORECASE)
ROUTER = re.compile(r"^gate$|router")


@dataclass(frozen=True)
class Weight:
    """Where a block's matrices of one role are stored: `tensor` names a parameter that holds one matrix, or a stack of one per expert."""

    tensor: str
    turned: bool = False  # stored as (inputs, outputs)
    rows: Rows = "all"  # of the outputs, where gate and up are one tensor
    module: nn.Module | None = None

    def matrices(self, stored: torch.Tensor) -> list[torch.Tensor]:
        """Returns the matrices (outputs, inputs) in `stored`, the tensor as model and checkpoint store it: one, or one for each expert."""
        each = [stored] if stored.ndim == 2 else list(stored.flatten(0, -3).unbind(0))
        return [self._used(one.T.contiguous() if self.turned else one) for one in each]

    def _used(self, matrix: torch.Tensor) -> torch.Tensor:
        if self.rows in ("even", "odd"):
            return matrix[int(self.rows == "odd") :: 2]
        half = len(matrix) // 2
        return {"all": matrix, "first": matrix[:half], "second": matrix[half:]}[self.rows]


@dataclass(frozen=True)
class Block:
    """One decoder block: its attentions and MLPs in the order of its modules, the weights by site, and for missing sites the reason."""

    whole: nn.Module
    attention: list[nn.Module]
    mlps: list[nn.Module]
    weights: dict[str, tuple[Weight, ...]]
    dense: bool  # one MLP of single matrices, whose middle is a place
    lacking: dict[str, str]


def kind_of(name: str, module: nn.Module) -> Kind:
    """Returns the kind of a module, recognised by its own name and class; "" where neither tells."""
    name, made, listed = name.lower(), type(module).__name__, isinstance(module, nn.ModuleList)
    told: dict[Kind, bool] = {  # the first that holds
        "norm": bool(NORM.search(name)) and not any(isinstance(m, nn.ModuleList) for m in module.modules()),
        "tower": bool(TOWER.search(name)),
        "": bool(BESIDE.search(made)),
    }
    if name in OPEN:
        told |= {kind: bool(classes.search(made)) for kind, classes in TOLD.items()}
    else:
        attending = bool(ATTENTION.search(name)) and not listed
        told |= {
            "mixer": bool(MIXER.search(name)) or (attending and bool(MIXING.search(made))),
            "attention": attending,
            "mlp": bool(MLP.search(name)) and not listed,
        }
    return next((kind for kind, holds in told.items() if holds), "")


def parted(root: nn.Module, prefix: str = "", inside: tuple[int, ...] = ()) -> Iterator[tuple[str, nn.Module, Kind]]:
    """Yields (name, module, kind) of every module that `kind_of` recognises; it does not look inside a recognised one."""
    for child_name, child in root.named_children():
        listed = isinstance(root, nn.ModuleList)  # its name says what each of it is: mlps.0, attentions.3
        name, kind = f"{prefix}{child_name}", kind_of(prefix.rstrip(".").rpartition(".")[2] if listed else child_name, child)
        if kind:
            yield name, child, kind
        elif id(child) not in inside:
            yield from parted(child, f"{name}.", (*inside, id(child)))


def text_model(model: nn.Module) -> nn.Module:
    """Returns the text model inside a vision-language wrapper; the model itself where there is no wrapper."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return model
    text = config.get_text_config(decoder=True)
    if text is config:
        return model
    mine = [m for m in model.modules() if type(getattr(m, "config", None)) is type(text) and hasattr(m, "get_input_embeddings")]
    return mine[0] if mine else model


def text_config(model: nn.Module) -> Any:
    """Returns the configuration of the text model; None for a module without a configuration."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Returns the decoder's blocks that run on text; [] where no list of blocks is found. Blocks with cross-attention
    alone are left out: they run only when there is an image."""
    wanted = getattr(text_config(model), "num_hidden_layers", None)
    lists: list[nn.ModuleList] = []
    for found in _lists(text_model(model)):
        told = [{kind for _, _, kind in parted(child) if _matrices(child)} for child in found]
        if any(kinds & {"attention", "mixer"} for kinds in told) and all(told):
            lists.append(found)
    best = max(lists, key=lambda blocks: (len(blocks) == wanted, len(blocks)), default=())
    attentions = [(block, [name for name, _, kind in parted(block) if kind == "attention"]) for block in best]
    return [block for block, named in attentions if not named or not all(CROSS.search(name) for name in named)]


def _lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Every outermost ModuleList outside the towers."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and len(child) and not TOWER.search(name.lower()):
            yield child
        elif not TOWER.search(name.lower()):
            yield from _lists(child)


def block_of(block: nn.Module, names: dict[int, str], width: int | None, shared: set[int]) -> Block:
    """Returns the parts of one block. `names`: id() of a module or parameter -> its name in the model; `shared`: ids of modules that are
    in more than one block."""
    found = [(name, module, kind) for name, module, kind in parted(block) if _matrices(module)]
    attending = [m for name, m, kind in found if kind == "attention" and not CROSS.search(name)]
    unnamed = [m for name, m in block.named_children() if not kind_of(name, m) and _matrices(m) and not any(parted(m))]
    mlps = [m for _, m, kind in found if kind == "mlp"] or unnamed  # where no module is named so: those that say nothing of themselves
    weights: dict[str, tuple[Weight, ...]] = {}
    lacking: dict[str, str] = {}
    if len(attending) != 1:
        mixers = sorted({type(m).__name__ for _, m, kind in found if kind == "mixer"})
        none = f"no attention ({', '.join(mixers)} in its place)" if mixers else "no attention"
        lacking |= dict.fromkeys(("attn_out", "attn_o"), f"{len(attending)} attentions" if attending else none)
    elif (out := _last(attending[0], width)) is None:
        lacking["attn_o"] = "no single matrix ends the attention"
    else:
        weights["attn_o"] = (_weight(out, names),)
    dense, roles = _roles(block, mlps, names, width)
    weights |= roles
    if not mlps:
        lacking |= dict.fromkeys(("mlp_in", "mlp_act", "mlp_out", "mlp_up", "mlp_gate", "mlp_down"), "no MLP")
    elif not dense:
        stacked = any(_three(m) for module in mlps for m in module.modules())
        mixed = any(len(weight) > 1 or stacked for weight in roles.values())
        lacking["mlp_act"] = "routed experts have no single place for it" if mixed else "its MLP is not made of one up and one down matrix"
        if len(mlps) > 1:
            lacking |= dict.fromkeys(("mlp_in", "mlp_out"), f"{len(mlps)} MLPs in parallel")
        lacking |= dict.fromkeys({"mlp_up", "mlp_down"} - set(roles), "its MLP is not made of one up and one down matrix")
    if "mlp_gate" not in weights:
        lacking.setdefault("mlp_gate", "its MLP is not gated")
    if several := next((type(m).__name__ for m in block.modules() if SEVERAL.search(type(m).__name__)), ""):
        lacking["resid"] = f"it has several residual streams ({several})"
    if any(id(m) in shared for m in attending):
        lacking["attn_out"] = "layers share their attention"
    if any(id(m) in shared for m in mlps):
        lacking |= dict.fromkeys(("mlp_in", "mlp_act", "mlp_out"), "layers share their MLP")
    return Block(block, attending, mlps, weights, dense, lacking)


def _roles(block: nn.Module, mlps: list[nn.Module], names: dict[int, str], width: int | None) -> tuple[bool, dict[str, tuple[Weight, ...]]]:
    """Returns (whether it is one MLP of single matrices, weights by role: mlp_up, mlp_gate, mlp_down), routed experts' before shared."""
    flat: dict[str, Linear] = {}
    stacks: list[Stack] = []
    for module in mlps:
        own = names[id(module)]
        flat |= {own: cast("Linear", module)} if isinstance(_bare(module), KINDS) else linears(module, f"{own}.")
        stacks += [(m, three) for m in module.modules() if (three := _three(m))]
    whole = _of_matrices(flat, names, width)
    every = sum(len(list(_big(m))) for m in mlps)
    if whole and not stacks and every == len({weight.tensor for weight in whole.values()}):
        return True, {role: (weight,) for role, weight in whole.items()}
    found = [pair for stack in _grouped(stacks, names) for pair in _of_stack(*stack, names, width)]
    groups: dict[str, dict[str, Linear]] = {}
    for name, linear in flat.items():
        parent, _, leaf = name.rpartition(".")
        if not any(ROUTER.search(part) for part in parent.removeprefix(names[id(block)]).split(".")):
            groups.setdefault(parent, {})[leaf] = linear
    found += [pair for group in groups.values() for pair in _of_matrices(group, names, width).items()]
    return False, {role: tuple(weight for one, weight in found if one == role) for role, _ in found}


def _of_matrices(flat: dict[str, Linear], names: dict[int, str], width: int | None) -> dict[str, Weight]:
    """Returns the weights by role of an MLP of single matrices; {} where they are not one up, one down and at most one gate."""
    leaf = {name: name.rpartition(".")[2] for name in flat}
    downs = [n for n, m in flat.items() if sizes(m)[0] == width and (sizes(m)[1] != width or DOWN.search(leaf[n]))]
    ups = [n for n, m in flat.items() if n not in downs and sizes(m)[1] == width and sizes(m)[0] > 1]
    if len(downs) != 1:
        return {}
    down = _weight(flat[downs[0]], names)
    inner = sizes(flat[downs[0]])[1]
    if len(ups) == 1 and sizes(flat[ups[0]])[0] == 2 * inner:
        return _split(_weight(flat[ups[0]], names), True) | {"mlp_down": down}
    gates = [n for n in ups if GATE.search(leaf[n])]
    plain = [n for n in ups if n not in gates and sizes(flat[n])[0] == inner]
    if len(plain) != 1 or len(gates) > 1:
        return {}
    gate = {"mlp_gate": _weight(flat[gates[0]], names)} if gates else {}
    return {"mlp_up": _weight(flat[plain[0]], names), **gate, "mlp_down": down}


def _split(weight: Weight, concatenated: bool) -> dict[str, Weight]:
    """Splits one tensor into gate and up: the gate, which is activated, is its first half or (not `concatenated`) its even rows."""
    gate, up = ("first", "second") if concatenated else ("even", "odd")
    return {"mlp_gate": replace(weight, rows=cast("Rows", gate)), "mlp_up": replace(weight, rows=cast("Rows", up))}


def _grouped(stacks: list[Stack], names: dict[int, str]) -> list[Stack]:
    """Joins the stacked tensors of one set of experts where each tensor is the `weight` of a module of its own."""
    alone = {names[id(m)].rpartition(".")[2]: three["weight"] for m, three in stacks if set(three) == {"weight"}}
    return [(m, three) for m, three in stacks if set(three) != {"weight"}] + ([(nn.Module(), alone)] if alone else [])


def _of_stack(module: nn.Module, three: dict[str, nn.Parameter], names: dict[int, str], width: int | None) -> list[tuple[str, Weight]]:
    """Returns the (role, weight) pairs of stacked experts: tensors (E, outputs, inputs), or (E, inputs, outputs) in some models."""
    shapes = {name: (p.shape[-2], p.shape[-1]) for name, p in three.items()}
    downs = [n for n in three if DOWN.search(n)]
    if len(downs) != 1 or width is None:
        return []
    inner = next((side for side in shapes[downs[0]] if side != width), width)
    said = getattr(module, "is_transposed", None)
    turned = bool(said) if said is not None else _turned(shapes, downs[0], width)
    found = [("mlp_down", Weight(names[id(three[downs[0]])], turned))]
    for name, (rows, columns) in shapes.items():
        outputs = columns if turned else rows
        if name in downs:
            continue
        weight = Weight(names[id(three[name])], turned)
        if outputs == 2 * inner and getattr(module, "has_gate", True):
            found += _split(weight, getattr(module, "is_concatenated", True)).items()
        else:
            found.append(("mlp_gate" if GATE.search(name) else "mlp_up", weight))
    return found


def _turned(shapes: dict[str, tuple[int, int]], down: str, width: int) -> bool:
    """Whether stacked tensors are (inputs, outputs), judged by which of their sides is the model's width."""
    if shapes[down][0] != shapes[down][1]:
        return shapes[down][1] == width
    return any(rows == width != columns for name, (rows, columns) in shapes.items() if name != down)


def _last(attention: nn.Module, width: int | None) -> Linear | None:
    """Returns an attention's output matrix: of those whose outputs have the model's width the last that is named so, else the last."""
    found = linears(attention)
    width = width if width is not None or not found else sizes(list(found.values())[-1])[0]
    ending = {name: m for name, m in found.items() if sizes(m)[0] == width}
    candidates = [m for name, m in ending.items() if OUT.search(name)] or list(ending.values())
    return candidates[-1] if candidates else None


def _weight(linear: Linear, names: dict[int, str]) -> Weight:
    return Weight(f"{names[id(linear)]}.weight", transposed(linear), module=linear)


def _big(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yields the parameters that are matrices or stacks of matrices, except an adapter's."""
    for name, p in module.named_parameters():
        if p.ndim >= 2 and not re.search(r"(^|\.)lora_|modules_to_save|token_adapter", name):
            yield p


def _matrices(module: nn.Module) -> bool:
    return any(True for _ in _big(module))


def _three(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns a module's own stacks of matrices by name; the kernel of a convolution does not count."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return {}
    return {name: p for name, p in module.named_parameters(recurse=False) if p.ndim >= 3 and min(p.shape[-2:]) > 1}


def sizes(linear: Linear) -> tuple[int, int]:
    """Returns (outputs, inputs) of a Linear or a Conv1D, with or without an adapter around it."""
    return (linear.nf, linear.nx) if isinstance(linear, Conv1D) else (linear.out_features, linear.in_features)


def transposed(linear: nn.Module) -> bool:
    """Whether the layer stores its weight as (inputs, outputs), as transformers' Conv1D does."""
    return isinstance(_bare(linear), Conv1D)


def _bare(module: nn.Module) -> Any:
    return getattr(module, "base_layer", module)  # within an adapter's layer


def linears(root: nn.Module, prefix: str = "") -> dict[str, Linear]:
    """Returns every Linear or Conv1D inside a module, by name; one that peft wrapped in an adapter counts once, as the wrapper."""
    found: dict[str, Linear] = {}
    for name, child in root.named_children():
        if isinstance(_bare(child), KINDS):
            found[prefix + name] = cast("Linear", child)
        else:
            found |= linears(child, f"{prefix}{name}.")
    return found
