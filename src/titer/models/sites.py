"""Sites: names for the same places in any decoder, found by the model's structure (models/blocks.py).

Activations: embed, attn_out[i], mlp_in[i], mlp_act[i], mlp_out[i], resid[i] (all (B, T, width of the place)).
Weights: attn_o[i], mlp_up[i], mlp_gate[i] (gated MLPs), mlp_down[i]; each is one matrix (outputs, inputs), or one per expert in a
mixture of experts, however they are stored: transposed as GPT-2's Conv1D, gate and up in one tensor, experts stacked.
Layers of one model may differ. A place that a layer lacks is no site: `names` leaves it out, `having` lists the layers that have it,
`lacking` says why others do not. A model whose blocks are not found has 0 layers; its answers need none and can
still be measured. Every parameter belongs to a part (`part`).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from titer.core.errors import TiterError, unknown, visible
from titer.models.blocks import Linear, Weight, block_of, blocks_of, linears, parted, sizes, text_config, text_model
from titer.models.modes import evaluating, hooks_aside
from titer.models.names import alias

VERSION = 2
ACTIVATIONS = ("embed", "attn_out", "mlp_in", "mlp_act", "mlp_out", "resid")
WEIGHTS = ("attn_o", "mlp_up", "mlp_gate", "mlp_down")
WRITING = ("attn_o", "mlp_down")  # weights that write to the residual stream
SITE = re.compile(r"(\w+)(?:\[(\d+)\])?")


@dataclass(frozen=True)
class Place:
    """Where an activation is found: the input or the output of a module."""

    module: nn.Module
    side: Literal["input", "output"]
    block: nn.Module | None = None  # the block around an MLP: OPT's MLP gets (B T, D), its block (B, T, D)


class Sites:
    """The sites of one model. `names()` lists the activations; `place`, `weights` and `linear` look a site up."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._modules = dict(model.named_modules(remove_duplicate=False))
        names = {id(m): name for name, m in model.named_modules()} | {id(p): name for name, p in model.named_parameters()}
        found = blocks_of(model)
        repeats = Counter(id(m) for block in found for m in block.modules())
        shared = {one for one, times in repeats.items() if times > 1}
        self.width = getattr(text_config(model), "hidden_size", None)
        self.blocks = [block_of(block, names, self.width, shared) for block in found]

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @cached_property
    def lacking(self) -> dict[str, str]:
        """Kind of site -> a text: which layers (from 1) lack it and why. Kinds that every layer has are left out."""
        if not self.blocks:
            return dict.fromkeys((*ACTIVATIONS[1:], *WEIGHTS), f"{type(self.model).__name__}: no list of decoder blocks was found")
        why: dict[str, dict[str, list[int]]] = {}  # kind -> reason -> layers
        for i, block in enumerate(self.blocks, start=1):
            for kind, reason in block.lacking.items():
                why.setdefault(kind, {}).setdefault(reason, []).append(i)
        told = {kind: [f"{_layers(where, self.layers)}: {reason}" for reason, where in reasons.items()] for kind, reasons in why.items()}
        return {kind: "; ".join(told[kind]) for kind in (*ACTIVATIONS[1:], *WEIGHTS) if kind in told}

    def lacks(self, kind: str) -> int:
        """Returns how many layers lack a kind of site."""
        return sum(kind in block.lacking for block in self.blocks)

    def names(self, *kinds: str) -> list[str]:
        """Returns all activation sites of the model, layer by layer; or the sites of the given kinds, kind by kind."""
        if kinds:
            return [f"{kind}[{i}]" for kind in kinds for i in range(self.layers) if kind not in self.blocks[i].lacking]
        return ["embed"] + [f"{kind}[{i}]" for i in range(self.layers) for kind in ACTIVATIONS[1:] if kind not in self.blocks[i].lacking]

    def having(self, *kinds: str) -> list[int]:
        """Returns the layers (from 0) that have sites of all these kinds. Errors: no layer has them all; the message says why."""
        found = [i for i, block in enumerate(self.blocks) if not any(kind in block.lacking for kind in kinds)]
        if not found:
            lost = [f"no {kind} ({self.lacking[kind]})" for kind in kinds if kind in self.lacking]
            raise TiterError(f"this model has {', '.join(lost)}", expected=f"layers with {' and '.join(kinds)}")
        return found

    def everywhere(self, kind: str) -> list[str]:
        """Returns the sites of a kind in all layers. Errors: a layer lacks it, or no layer was found; the message says why."""
        if kind in self.lacking:
            raise TiterError(f"this model has no {kind} in {self.lacking[kind]}", expected=f"a model with {kind} in every layer")
        return self.names(kind)

    @cached_property
    def widest(self) -> int:
        """The width of the widest activation site: of the residual stream, or of an MLP's hidden layer if that is wider."""
        middles = [weight.module for block in self.blocks if block.dense for weight in block.weights["mlp_down"]]
        stream = self.width or self.model.get_input_embeddings().weight.shape[-1]
        return max([stream, *(sizes(m)[1] for m in middles if m is not None)])  # type: ignore[arg-type]

    def single(self) -> None:
        """Checks that all weight sites of the blocks are Linear layers. Errors: no blocks were found; experts are stacked in one tensor."""
        if not self.blocks:
            raise TiterError(self.lacking["resid"], expected="a model made of decoder blocks")
        stacked = [w.tensor for block in self.blocks for weights in block.weights.values() for w in weights if w.module is None]
        if stacked:
            raise TiterError(f"{stacked[0]} holds its experts in one tensor", expected="a model whose blocks are made of Linear layers")

    def place(self, site: str) -> Place:
        """Returns where an activation site can be read or edited. Errors: the model lacks it, or its activations are not (B, T, D)."""
        kind, i = self._split(site, ACTIVATIONS)
        if kind == "embed":
            return Place(self.model.get_input_embeddings(), "output")
        block = self.blocks[i]
        if not self._prompts_first:
            raise TiterError(f"{site} is (tokens, prompts, width) in {type(self.model).__name__}", expected="(prompts, tokens, width)")
        if kind in ("resid", "attn_out"):
            return Place(block.whole if kind == "resid" else block.attention[0], "output")
        if not block.dense:
            return Place(block.mlps[0], "input" if kind == "mlp_in" else "output", block.whole)
        module = block.weights["mlp_up" if kind == "mlp_in" else "mlp_down"][0].module
        assert module is not None
        return Place(module, "output" if kind == "mlp_out" else "input", block.whole)

    @cached_property
    def _prompts_first(self) -> bool:
        """Whether the blocks return (prompts, tokens, width), tested with two prompts of three tokens; XLNet's have the tokens first.

        Not tested, and taken as true, where weights are sharded (FSDP, ZeRO): other processes may not run the test at the same time.
        """
        seen: list[torch.Tensor] = []
        if any(isinstance(p, DTensor) or not p.numel() for p in self.model.parameters()):
            return True

        def keep(_: Any, __: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple | list) else output)

        ids = torch.ones((2, 3), dtype=torch.long, device=next(self.model.parameters()).device)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(self.model), hooks_aside(self.model):
            self.blocks[0].whole.register_forward_hook(keep)
            self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return not seen or tuple(seen[0].shape[:2]) != (3, 2)

    def weights(self, site: str) -> tuple[Weight, ...]:
        """Returns the tensors of a weight site: one, or several in a mixture of experts. Errors: the model lacks the site."""
        kind, i = self._split(site, WEIGHTS)
        return self.blocks[i].weights[kind]

    def linear(self, site: str) -> Linear:
        """Returns the Linear (or Conv1D) module of a weight site. Errors: the site is not a whole Linear by itself."""
        return self._alone(site).module  # type: ignore[return-value]

    def tensor(self, site: str) -> str:
        """Returns the parameter name of that Linear's weight. Errors: as `linear`."""
        return self._alone(site).tensor

    def _alone(self, site: str) -> Weight:
        found = self.weights(site)
        if len(found) > 1 or found[0].module is None or found[0].rows != "all":
            shown = ", ".join(weight.tensor for weight in found)
            raise TiterError(f"{site} is part of {shown}", expected="a site that is one Linear of its own")
        return found[0]

    def part(self, tensor: str) -> str:
        """Returns the part of the model that a parameter belongs to, a key of `blocks.PARTS`; embedding, norms and head are "other".

        Errors: no module of the model has this parameter, which is a fault of Titer.
        """
        module = alias(tensor.rpartition(".")[0], self._modules)
        if module not in self._modules:
            raise TiterError(
                f"{visible(tensor, 120)} belongs to no part of {type(self.model).__name__}",
                expected="a parameter of the model",
                next_step="report it: no changed weight may go uncounted.",
            )
        return self._parts.get(module, "other")

    def layer(self, tensor: str) -> int:
        """Returns the number (from 1) of the block that a parameter belongs to; 0 if it belongs to none."""
        return self._layers.get(id(self._modules.get(alias(tensor.rpartition(".")[0], self._modules))), 0)

    @cached_property
    def _layers(self) -> dict[int, int]:
        return {id(m): i for i, block in reversed(list(enumerate(self.blocks, start=1))) for m in block.whole.modules()}

    @cached_property
    def writers(self) -> dict[str, bool]:
        """Name of each weight that writes to the residual stream -> whether it is stored transposed, as (inputs, outputs)."""
        found = [weight for block in self.blocks for kind in WRITING for weight in block.weights.get(kind, ())]
        return {weight.tensor: weight.turned for weight in found}

    @cached_property
    def buffers(self) -> frozenset[str]:
        """The names of the model's buffers: tensors that are no parameters and are never trained."""
        return frozenset(name for name, _ in self.model.named_buffers())

    @cached_property
    def _parts(self) -> dict[str, str]:
        """Module name -> its part; modules of the part "other" are left out."""
        owners: dict[int, str] = {}
        text = text_model(self.model)
        if text is not self.model:
            around = [m for m in self.model.modules() if any(child is text for child in m.modules())]
            owners |= {id(m): "tower" for m in self.model.modules()}
            owners |= {id(m): "other" for m in (*text.modules(), *around)}
        for block in self.blocks:
            owners |= {id(m): "block" for m in block.whole.modules()}
        for _, module, kind in parted(self.model):
            if owners.get(id(module)) != "tower":
                owners |= dict.fromkeys(map(id, module.modules()), "other" if kind == "norm" else kind)
        for block in self.blocks:
            owners |= {id(m): "mlp" for mlp in block.mlps for m in mlp.modules()}
        for name in ("get_input_embeddings", "get_output_embeddings"):
            if (embedding := getattr(self.model, name, lambda: None)()) is not None:
                owners |= dict.fromkeys(map(id, embedding.modules()), "other")
        return {name: owners[id(m)] for name, m in self._modules.items() if owners.get(id(m), "other") != "other"}

    def _split(self, site: str, kinds: tuple[str, ...]) -> tuple[str, int]:
        match = SITE.fullmatch(site)
        kind = match[1] if match else site
        if kind not in kinds:
            unknown("site", site, kinds)
        if kind == "embed":
            return kind, 0
        i = int(match[2]) if match and match[2] else 0
        if self.layers and i >= self.layers:
            raise TiterError(f"site {site}: the model has {self.layers} layers", expected=f"{kind}[0] to {kind}[{self.layers - 1}]")
        if not self.layers or kind in self.blocks[i].lacking:
            reason = self.blocks[i].lacking[kind] if self.layers else self.lacking[kind]
            raise TiterError(f"this model has no {kind}[{i}]: {reason}", next_step="name another site.")
        return kind, i


def block_linears(sites: Sites) -> dict[str, Linear]:
    """Returns a unique name -> module for every Linear of the blocks; an adapted Linear includes its adapter.

    Errors: as `Sites.single`: stacked experts are no Linears, so their weights would be missed.
    """
    sites.single()
    return {f"block {i}, {name}": layer for i, block in enumerate(sites.blocks) for name, layer in linears(block.whole).items()}


def layer_of(site: str) -> int:
    """Returns the layer (from 0) in a site's name; 0 if it names none."""
    match = SITE.fullmatch(site)
    return int(match[2]) if match and match[2] else 0


def _layers(numbers: list[int], of: int) -> str:
    """Writes layer numbers as text: "layers 1 to 3, 5", or "every layer" if all are there."""
    if len(numbers) == of:
        return "every layer"
    runs = [[j for _, j in group] for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    told = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(told)}"
