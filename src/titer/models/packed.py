"""Dequantises weights stored by FP8, bitsandbytes, GPTQ and AWQ, with the formulas that their libraries publish.

Those libraries need not be installed: most of them run on GPUs only (bitsandbytes has a build for CPUs too), the formulas anywhere.

FP8 (DeepSeek, Qwen; AutoFP8)  W = q scale, a scale per block or tensor. Source: DeepSeek-V3, weight_dequant; transformers, finegrained_fp8.
bitsandbytes 8 bit             W = q SCB / 127, one SCB per row. Source: bitsandbytes, int8_vectorwise_dequant.
bitsandbytes 4 bit             W = map[q] absmax, one absmax per block, quantised too where nested. Source: bitsandbytes, dequantize_4bit.
GPTQ                           W = scale (q - zero - 1), one scale per group of inputs; g_idx gives an input's group; the stored
                               zero is one too low, except in the format gptq_v2. Source: AutoGPTQ, QuantLinear.
AWQ                            W = scale (q - zero), eight columns per word in the order of ORDER. Source: AutoAWQ, WQLinear_GEMM.
W is (outputs, inputs); GPTQ and AWQ store (inputs, outputs). Any other variant is refused, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from titer.core.errors import TiterError, visible
from titer.models.safetensors_io import shape, tensor_of

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each nibble of an AWQ word, the lowest first
Held = Mapping[str, torch.Tensor]
Said = Mapping[str, Any]


@dataclass(frozen=True)
class Packing:
    """One format of quantised weights. A weight is stored as several tensors, its parts, named by what follows the module's name."""

    words: str  # the format's name in messages
    marker: str  # the part that every quantised weight has, by which it is found
    needed: tuple[str, ...]  # the parts that a weight must have
    others: tuple[str, ...]  # further parts that it may have
    unpacked: Callable[[Held, Said], torch.Tensor]  # dequantises the parts, by the quantization_config


def packing(said: Said, label: str) -> Packing | None:
    """Returns the format that a quantization_config names; None if it is none of these. Errors: a variant that Titer does not read."""
    method = said.get("quant_method")
    if method == "fp8":
        block, scale = said.get("weight_block_size"), "weight_scale_inv" if said.get("weight_block_size") else "weight_scale"
        _only(said, label, fmt=(None, "e4m3", "float8_e4m3fn"), expert_dtype=(None, "fp8"))
        each = f"a scale a block of {visible(str(block), 20)}" if block else "a scale a tensor"
        return Packing(f"FP8 weights ({each})", scale, ("weight", scale), ("activation_scale", "input_scale"), _fp8)
    if method == "bitsandbytes":
        if said.get("load_in_4bit") and not said.get("load_in_8bit"):
            _only(said, label, bnb_4bit_quant_type=("nf4", "fp4", None), bnb_4bit_quant_storage=("uint8", None))
            state = f"weight.quant_state.bitsandbytes__{said.get('bnb_4bit_quant_type') or 'fp4'}"
            needed, nested = ("weight", "weight.absmax", "weight.quant_map", state), ("weight.nested_absmax", "weight.nested_quant_map")
            return Packing("4-bit weights (bitsandbytes)", "weight.absmax", needed, nested, _bnb4)
        return Packing("8-bit weights (bitsandbytes)", "SCB", ("weight", "SCB"), ("weight_format",), _bnb8)
    if method == "gptq":
        formats = (None, "gptq", "gptq_v2")
        _only(said, label, bits=(2, 4, 8), checkpoint_format=(*formats, ""), dynamic=(None, {}), format=formats)
        return Packing(f"{said['bits']}-bit weights (GPTQ)", "qweight", ("qweight", "qzeros", "scales"), ("g_idx",), _gptq)
    if method == "awq":
        _only(said, label, bits=(4,), version=(None, "gemm", "GEMM"), zero_point=(True,))
        return Packing("4-bit weights (AWQ)", "qweight", ("qweight", "qzeros", "scales"), (), _awq)
    return None


def _only(said: Said, label: str, **known: tuple[Any, ...]) -> None:
    for key, values in known.items():
        if said.get(key) not in values:
            raise TiterError(
                f"{label} is quantised by {said['quant_method']} with {key} {visible(repr(said.get(key)), 60)}, which Titer does not read",
                expected=f"one of {', '.join(repr(value) for value in values if value not in (None, '', {}))}",
                next_step="give the model before it was quantised.",
            )


def unpacked(way: Packing, held: Held, said: Said, name: str) -> torch.Tensor:
    """Dequantises one weight: (outputs, inputs), float32. Errors: parts that do not fit each other or the format."""
    try:
        return way.unpacked(held, said).float().contiguous()
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise TiterError(
            f"{visible(name, 120)}: {visible(f'{type(error).__name__}: {error}', 160)}",
            expected=f"{way.words} as the quantization_config of config.json describes them",
        ) from None


def shape_before(way: Packing, parts: Mapping[str, tuple[Path, str]], stored: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape (outputs, inputs) of a weight before it was quantised. `stored`: the shape of the tensor that holds its numbers
    now; `parts`: part -> (file, tensor name)."""
    if state := next((one for part, one in parts.items() if "quant_state" in part), None):
        return tuple(json.loads(bytes(tensor_of(*state).tolist()))["shape"])
    if "weight_shape" in parts:
        return tuple(tensor_of(*parts["weight_shape"]).tolist())
    if way.marker != "qweight":
        return stored
    _, outputs = shape(*parts["scales"])[0]
    per_word = outputs // max(1, shape(*parts["qzeros"])[0][1])
    return (outputs, stored[0] if stored[1] != outputs else stored[0] * per_word)


def _pair(block: Any) -> bool:
    return isinstance(block, list | tuple) and len(block) == 2 and all(isinstance(size, int) and size > 0 for size in block)


def _fp8(held: Held, said: Said) -> torch.Tensor:
    q, block = held["weight"], said.get("weight_block_size")
    if q.dtype != torch.float8_e4m3fn:
        raise ValueError(f"weight is {q.dtype}, not float8_e4m3fn")
    if not block:
        scale = held["weight_scale"].float()
        if scale.numel() not in (1, len(q)):
            raise ValueError(f"weight {tuple(q.shape)} with scales {tuple(scale.shape)}")
        return q.float() * scale.reshape(-1, 1)
    if not _pair(block):
        raise ValueError(f"weight_block_size is {block!r}")
    scale = held["weight_scale_inv"].float()
    if tuple(scale.shape) != tuple(-(-size // step) for size, step in zip(q.shape, block, strict=True)):
        raise ValueError(f"weight {tuple(q.shape)} with scales {tuple(scale.shape)} for blocks of {tuple(block)}")
    whole = scale.repeat_interleave(block[0], 0)[: q.shape[0]].repeat_interleave(block[1], 1)[:, : q.shape[1]]
    return q.float() * whole


def _bnb8(held: Held, _: Said) -> torch.Tensor:
    q, form = held["weight"], held.get("weight_format")
    if q.dtype != torch.int8 or (form is not None and int(form) != 0):
        raise ValueError(f"weight is {q.dtype} in format {None if form is None else int(form)}, not int8 by rows")
    return q.float() * held["SCB"].float().reshape(len(q), 1) / 127


def _bnb4(held: Held, _: Said) -> torch.Tensor:
    state = json.loads(bytes(next(part for name, part in held.items() if "quant_state" in name).tolist()))
    absmax, codes = held["weight.absmax"], held["weight"].flatten()
    if "nested_offset" in state:
        nested = held["weight.nested_absmax"].float().repeat_interleave(state["nested_blocksize"])[: absmax.numel()]
        absmax = held["weight.nested_quant_map"].float()[absmax.long()] * nested + state["nested_offset"]
    elif absmax.dtype == torch.uint8:
        raise ValueError("absmax is quantised, and its own scales are not there")
    if codes.dtype != torch.uint8:
        raise ValueError(f"weight is {codes.dtype}, not uint8")
    values = held["weight.quant_map"].float()[torch.stack([codes >> 4, codes & 15], dim=1).flatten().long()]
    rows = absmax.float().repeat_interleave(state["blocksize"])[: values.numel()]
    return (values * rows)[: torch.Size(state["shape"]).numel()].reshape(state["shape"])


def _fields(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Splits each 32-bit word into unsigned fields of `bits` bits, the lowest bits first, side by side along `dim`."""
    if words.dtype != torch.int32:
        raise ValueError(f"packed words are {words.dtype}, not int32")
    parts = torch.stack([(words >> shift) & (2**bits - 1) for shift in range(0, 32, bits)], dim=dim + 1)
    return parts.flatten(dim, dim + 1)


def _gptq(held: Held, said: Said) -> torch.Tensor:
    bits, scales = said["bits"], held["scales"].float()
    q, zeros = _fields(held["qweight"], bits, 0), _fields(held["qzeros"], bits, 1)
    less_one = 0 if "gptq_v2" in (said.get("checkpoint_format"), said.get("format")) else 1
    group = held["g_idx"].long() if "g_idx" in held else torch.arange(len(q)) // -(-len(q) // len(scales))
    if len(group) != len(q) or zeros.shape != scales.shape:
        raise ValueError(f"{len(q)} inputs in {len(group)} places, zeros {tuple(zeros.shape)}, scales {tuple(scales.shape)}")
    return (scales[group] * (q - (zeros + less_one)[group])).T


def _awq(held: Held, _: Said) -> torch.Tensor:
    back = torch.tensor(ORDER).argsort()
    q, zeros = (_fields(held[part], 4, 1).unflatten(1, (-1, len(ORDER)))[:, :, back].flatten(1) for part in ("qweight", "qzeros"))
    scales = held["scales"].float()
    if len(q) % len(scales) or zeros.shape != scales.shape:
        raise ValueError(f"{len(q)} inputs, zeros {tuple(zeros.shape)}, scales {tuple(scales.shape)}")
    group = torch.arange(len(q)) // (len(q) // len(scales))
    return (scales[group] * (q - zeros[group])).T
