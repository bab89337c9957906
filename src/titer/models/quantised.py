"""Reads quantised weights from safetensors: finds the tensors that make up each weight, dequantises it, refuses unknown formats.

FP8, bitsandbytes, GPTQ and AWQ are in models/packed.py. compressed-tensors, the format of llm-compressor and vLLM, stores beside
`X.weight` (int8; or `X.weight_packed` with `X.weight_shape`) the scales `X.weight_scale`, one per row, group or tensor:
W = scale (q - zero). Its library decompresses on the CPU and saves safetensors that transformers opens there. Not read: optimum-quanto,
whose models transformers cannot save, and torchao, whose import would slow down every command and print a line on stderr.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import CompressedTensorsConfig

from titer.core.errors import TiterError, visible
from titer.models.packed import Held, Packing, Said, packing, shape_before, unpacked
from titer.models.safetensors_io import AGAIN, shape, tensor_of

METHOD = "compressed-tensors"
MLX = "quantization"  # the field of config.json that MLX writes, beside quantization_config or without it
NUMBERS = ("weight", "weight_packed", "qweight")  # the part that holds the weight's numbers is one of these
PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale")
RUNNING = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "k_scale", "v_scale")
CODES = (torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2)  # a weight of these types needs a scale
INSTALL = "pip install 'titer[int8]'  (or: pip install compressed-tensors)"


def quantisation(config: Mapping[str, Any], label: str) -> str:
    """Describes in words how a config.json says that the weights are quantised; "" if they are not.

    Errors: a method, or a variant of one, that Titer does not read; one part of the model quantised on its own; several schemes,
    rotations or sparsity; compressed-tensors is needed and not installed.
    """
    said = _said(config)
    if not said:
        if place := _within(config):  # transformers reads it there too
            raise TiterError(
                f"{label} is quantised in a part of it ({visible(place, 60)} of config.json), which Titer does not read",
                expected="plain safetensors, or one quantization_config for the whole model",
                next_step="give the model before it was quantised.",
            )
        return ""
    method = said.get("quant_method") if isinstance(said, dict) else None
    if isinstance(said, dict) and (way := packing(said, label)):
        return f"{way.words}, dequantised by the published formula"
    if method != METHOD:
        own = "MLX" if said is config.get(MLX) else visible(str(method), 60)
        raise TiterError(
            f"{label} is quantised with {own}, which Titer does not read",
            expected="plain safetensors, or weights by compressed-tensors (llm-compressor, vLLM), FP8, bitsandbytes, GPTQ, AWQ or GGUF",
            next_step="give the model before it was quantised, or its dequantised weights (transformers: dequantize, save_pretrained; MLX: "
            "mlx_lm.convert --dequantize).",
        )
    groups = said.get("config_groups")
    (group,) = groups.values() if isinstance(groups, dict) and len(groups) == 1 else ({},)
    weights = group.get("weights") if isinstance(group, dict) else None
    odd = [key for key in ("transform_config", "sparsity_config", "moe_sparsity_config") if said.get(key)]
    if odd or not isinstance(weights, dict):
        what = f"with {odd[0]}" if odd else "in more than one way, or in none"
        raise TiterError(f"{label} is quantised {what}, which Titer does not read", expected="one scheme for all quantised weights")
    if find_spec("compressed_tensors") is None:
        raise TiterError(f"{label} is quantised, and compressed-tensors is not installed", next_step=INSTALL)
    kind = f"{'int' if weights.get('type', 'int') == 'int' else 'float'}{weights.get('num_bits', 8)}"
    form = visible(str(group.get("format") or said.get("format")), 40)
    rest = [name for name, there in (("activations", group.get("input_activations")), ("cache", said.get("kv_cache_scheme"))) if there]
    aside = f"; its {' and '.join(rest)}, quantised where it is served, stay in floating point here" if rest else ""
    return f"{kind} weights ({METHOD}, {form}), dequantised{aside}"


def _said(config: Mapping[str, Any]) -> Any:
    return config.get(MLX) or config.get("quantization_config") or config.get("compression_config") or {}


def _within(config: Mapping[str, Any]) -> str:
    """Returns the name of a nested part of the configuration that has a quantization_config; "" if none has."""
    parts = {key: part for key, part in config.items() if isinstance(part, dict)}
    return next((key for key, part in parts.items() if part.get("quantization_config") or _within(part)), "")


def _decompressed(held: Held, said: Said) -> torch.Tensor:
    """Decompresses a weight with the compressed-tensors library; its settings are parsed as transformers parses them to load the model."""
    from compressed_tensors.compressors import BaseCompressor  # noqa: PLC0415  an optional extra

    parsed: Any = CompressedTensorsConfig.from_dict(dict(said)).quantization_config
    (scheme,) = parsed.config_groups.values()
    form = str(getattr(scheme.format or parsed.format, "value", scheme.format or parsed.format))
    return BaseCompressor.get_value_from_registry(form).decompress(dict(held), scheme)["weight"]  # type: ignore[no-any-return]


COMPRESSED = Packing("weights by compressed-tensors", "weight_scale", ("weight_scale",), PARTS, _decompressed)


class Stored:
    """The tensors of a folder's safetensors; the parts of a quantised weight appear as one tensor, under the name before quantisation.

    `paths`: stored tensor name -> the file that holds it; `config`: the config.json of a quantised model, {} for any other.
    Errors: parts without a weight; a weight that lacks a part; no quantised weight at all, though the configuration names a method.
    """

    def __init__(self, paths: Mapping[str, Path], config: Mapping[str, Any]) -> None:
        self._paths, self._said = paths, _said(config)
        self._way = packing(self._said, "") or COMPRESSED
        self.parts, self.files = tuple(sorted(set(paths.values()))), dict(paths)
        self._joined: dict[str, dict[str, str]] = {}  # weight -> {part: stored name}
        if self._said:
            self._join()
            aside = {name for parts in self._joined.values() for name in parts.values()}
            plain = {name: file for name, file in paths.items() if name not in aside and name.rpartition(".")[2] not in RUNNING}
            self.files = plain | {weight: paths[_numbers(parts)] for weight, parts in self._joined.items()}

    def _join(self) -> None:
        way, end = self._way, f".{self._way.marker}"
        modules = [name.removesuffix(end) for name in self._paths if name.endswith(end)]
        if not modules:
            raise TiterError(
                f"config.json says {way.words}, but there is no {way.marker} in the files",
                next_step="where the weights are plain (merged or dequantised), give a copy of the folder whose config.json has no "
                f"quantization_config; else {AGAIN}",
            )
        for module in modules:
            there = {part: name for part in (*way.needed, *way.others) if (name := f"{module}.{part}") in self._paths}
            if lost := [part for part in way.needed if part not in there]:
                raise TiterError(f"{visible(module, 120)} has no {lost[0]}, which {way.words} need", next_step=AGAIN)
            if not _numbers(there):
                raise TiterError(f"{visible(f'{module}.weight', 120)} has a scale but no weight", next_step=AGAIN)
            self._joined[f"{module}.weight"] = there
        if way is COMPRESSED and (ordered := sorted(name for name in self._paths if name.endswith(".weight_g_idx"))):
            raise TiterError(
                f"{visible(ordered[0], 120)}: columns ordered by activation are not read", expected="weights in their own order"
            )

    def shape(self, name: str) -> tuple[tuple[int, ...], str]:
        """Returns (shape as the model has it, stored type as safetensors names it) of a tensor."""
        parts = self._joined.get(name)
        own = _numbers(parts) if parts else name
        stored, kind = shape(self._paths[own], own)
        return shape_before(self._way, {part: (self._paths[one], one) for part, one in parts.items()}, stored) if parts else stored, kind

    def weight(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Returns a tensor, or some rows of it, in float32, dequantised if need be: (outputs, inputs). Errors: it does not fit what the
        configuration says."""
        if parts := self._joined.get(name):
            held = {part: tensor_of(self._paths[one], one) for part, one in parts.items()}
            whole = unpacked(self._way, held, self._said, parts[self._way.needed[0]])
            return whole if rows is None else whole[rows]
        found = tensor_of(self._paths[name], name, rows)
        if found.dtype in CODES:
            kind = str(found.dtype).removeprefix("torch.")
            why = "there is no scale for it" if self._said else "config.json does not say how it is quantised"
            raise TiterError(f"{visible(name, 120)} is stored as {kind}, and {why}", next_step=AGAIN)
        return found.float()


def _numbers(parts: Mapping[str, str]) -> str:
    """Returns the name of the stored tensor that holds a weight's numbers; "" if none does."""
    return next((parts[part] for part in NUMBERS if part in parts), "")
