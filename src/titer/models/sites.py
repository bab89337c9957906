"""Canonical names for places in a decoder, found by structure; none found is an error.

Activations: embed, attn_out[i], mlp_in[i], mlp_act[i], mlp_out[i], resid[i] (all (B, T, width of the place)).
Weights: attn_o[i], mlp_up[i], mlp_gate[i] (gated MLPs), mlp_down[i]; a weight is (outputs, inputs) for every reader,
also where a checkpoint stores it transposed, as GPT-2's Conv1D does: `oriented` is the one place that knows.
The blocks are the longest ModuleList of one class. In a block, the attention is the child module whose name
holds "attn" or "attention", its output the last square-enough Linear; the MLP's Linears are the others:
`down` ends at the model's width, `up` starts there, and of two that start there the one named gate is the gate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from titer.core.errors import TiterError, unknown

VERSION = 1
ACTIVATIONS = ("embed", "attn_out", "mlp_in", "mlp_act", "mlp_out", "resid")
KINDS = (nn.Linear, Conv1D)
Linear = nn.Linear | Conv1D
SITE = re.compile(r"(\w+)(?:\[(\d+)\])?")


@dataclass(frozen=True)
class Place:
    """A module and which of its two sides is meant."""

    module: nn.Module
    side: Literal["input", "output"]
    block: nn.Module | None = None  # the block around an MLP: OPT's MLP sees (B T, D), its block (B, T, D)


@dataclass(frozen=True)
class Block:
    """The parts of one decoder block."""

    whole: nn.Module
    attention: nn.Module
    attn_o: Linear
    mlp_up: Linear
    mlp_down: Linear
    mlp_gate: Linear | None


class Sites:
    """The sites of one model. `names()` lists them; `place` and `linear` look one up."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = [_block(block, i) for i, block in enumerate(_blocks(model))]
        self._names = {id(module): name for name, module in model.named_modules()}
        self._parts = self._parted()

    def _parted(self) -> dict[str, Literal["mlp", "attention", "other"]]:
        found: dict[str, Literal["mlp", "attention", "other"]] = {}
        for block in self.blocks:
            found.update({self._names[id(m)]: "attention" for m in block.attention.modules()})
            found.update({self._names[id(m)]: "mlp" for m in (block.mlp_up, block.mlp_down, block.mlp_gate) if m is not None})
        return found

    @property
    def layers(self) -> int:
        return len(self.blocks)

    def names(self) -> list[str]:
        """Every activation site."""
        return ["embed"] + [f"{kind}[{i}]" for i in range(self.layers) for kind in ACTIVATIONS[1:]]

    def place(self, site: str) -> Place:
        """Where an activation site is read, added to or replaced."""
        kind, i = self._split(site, ACTIVATIONS)
        if kind == "embed":
            return Place(self.model.get_input_embeddings(), "output")
        block = self.blocks[i]
        return {
            "attn_out": Place(block.attention, "output"),
            "mlp_in": Place(block.mlp_up, "input", block.whole),
            "mlp_act": Place(block.mlp_down, "input", block.whole),
            "mlp_out": Place(block.mlp_down, "output", block.whole),
            "resid": Place(block.whole, "output"),
        }[kind]

    def linear(self, site: str) -> Linear:
        """The Linear (or Conv1D) of a weight site; `sizes` says how many outputs and inputs it has."""
        kind, i = self._split(site, ("attn_o", "mlp_up", "mlp_gate", "mlp_down"))
        found: Linear | None = getattr(self.blocks[i], kind)
        if found is None:
            raise TiterError(f"this model has no {site}: its MLP is not gated")
        return found

    def tensor(self, site: str) -> str:
        """The checkpoint's name of a weight site's tensor."""
        return self._names[id(self.linear(site))] + ".weight"

    def oriented(self, site: str, stored: torch.Tensor) -> torch.Tensor:
        """A weight site's tensor as (outputs, inputs), from the way the model and its checkpoint store it."""
        return stored.T.contiguous() if transposed(self.linear(site)) else stored

    def part(self, tensor: str) -> Literal["mlp", "attention", "other"]:
        """Which part of a block a checkpoint's tensor belongs to; embeddings, norms and the head are "other"."""
        module = tensor.rpartition(".")[0]
        return self._parts.get(module, "other")

    def _split(self, site: str, kinds: tuple[str, ...]) -> tuple[str, int]:
        match = SITE.fullmatch(site)
        kind = match[1] if match else site
        if kind not in kinds:
            unknown("site", site, kinds)
        i = int(match[2]) if match and match[2] else 0
        if i >= self.layers:
            raise TiterError(f"site {site}: the model has {self.layers} layers", expected=f"{kind}[0] to {kind}[{self.layers - 1}]")
        return kind, i


def _blocks(model: nn.Module) -> list[nn.Module]:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(child) for child in m}) == 1]
    decoders = [m for m in lists if linears(m[0]) and _attention(m[0]) is not None]
    if not decoders:
        raise TiterError(
            f"{type(model).__name__}: no list of decoder blocks with an attention of Linear layers was found",
            expected="a decoder-only transformer made of Linear (or GPT-2's Conv1D) layers",
        )
    return list(max(decoders, key=lambda blocks: len(list(blocks))))


def sizes(linear: Linear) -> tuple[int, int]:
    """(outputs, inputs) of a Linear or a Conv1D, also of one with an adapter around it."""
    return (linear.nf, linear.nx) if isinstance(linear, Conv1D) else (linear.out_features, linear.in_features)


def transposed(linear: nn.Module) -> bool:
    """Whether the weight is stored as (inputs, outputs)."""
    return isinstance(getattr(linear, "base_layer", linear), Conv1D)


def linears(root: nn.Module, prefix: str = "") -> dict[str, Linear]:
    """Every Linear or Conv1D under a module, by name; one with an adapter around it (peft) counts once, as the whole."""
    found: dict[str, Linear] = {}
    for name, child in root.named_children():
        if isinstance(getattr(child, "base_layer", child), KINDS):
            found[prefix + name] = cast("Linear", child)
        else:
            found |= linears(child, f"{prefix}{name}.")
    return found


def _attention(block: nn.Module) -> nn.Module | None:
    named = [m for name, m in block.named_children() if "attn" in name or "attention" in name]
    return next((m for m in named if linears(m)), None)


def _block(block: nn.Module, number: int) -> Block:
    attention = _attention(block)
    attending = list(linears(attention).values()) if attention is not None else []
    inside = {id(m) for m in attending}
    rest = {name: m for name, m in linears(block).items() if id(m) not in inside}
    if attention is None or not attending:
        raise TiterError(f"block {number}: no attention made of Linear layers")
    width = sizes(attending[-1])[0]
    ups = {name: m for name, m in rest.items() if sizes(m)[1] == width and sizes(m)[0] != width}
    downs = [m for m in rest.values() if sizes(m)[0] == width and sizes(m)[1] != width]
    gate = next((m for name, m in ups.items() if "gate" in name), None)
    plain = [m for m in ups.values() if m is not gate]
    if len(plain) != 1 or len(downs) != 1:
        raise TiterError(
            f"block {number}: {len(plain)} up and {len(downs)} down projections outside the attention",
            expected="one MLP of Linear layers a block (mixtures of experts are not supported yet)",
        )
    return Block(block, attention, attending[-1], plain[0], downs[0], gate)
