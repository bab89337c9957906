"""Quantised weights in safetensors: which tensors belong together, what the weight is, what is refused.

By compressed-tensors, the format of llm-compressor and vLLM; FP8, bitsandbytes, GPTQ and AWQ are in models/packed.py.

Beside `X.weight` (int8, or `X.weight_packed` with `X.weight_shape`) stands `X.weight_scale`, one a row, a group or a tensor:
W = scale (q - zero). The library decompresses; here is only which tensors belong together, and what is refused.
The library works on the CPU and saves safetensors that transformers opens there; optimum-quanto's models transformers
cannot save, and torchao's cost every command its import and a line on stderr.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from titer.core.errors import TiterError, visible
from titer.models.packed import Packing, packing, shape_before, unpacked
from titer.models.safetensors_io import shape, tensor_of

METHOD = "compressed-tensors"
NEEDED = ("weight", "weight_packed")  # one of these is the weight itself
PARTS = (*NEEDED, "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale")
RUNNING = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "k_scale", "v_scale")
INSTALL = "pip install 'titer[int8]'  (or: pip install compressed-tensors)"
Files = Mapping[str, Path]


def quantisation(config: Mapping[str, Any], label: str) -> str:
    """What a config.json says of quantised weights, in words; "" where they are not.

    Errors: a method, or a variant of one, that is not read; a part of the model quantised for itself; several schemes, rotations or
    sparsity; the library is not installed.
    """
    said = config.get("quantization_config") or config.get("compression_config")
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
        raise TiterError(
            f"{label} is quantised with {visible(str(method), 60)}, which Titer does not read",
            expected="plain safetensors, or weights by compressed-tensors (llm-compressor, vLLM), FP8, bitsandbytes, GPTQ, AWQ or GGUF",
            next_step="give the model before it was quantised, or its dequantised weights (transformers: dequantize, save_pretrained).",
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
    return _in_words(group, weights, said)


def _within(config: Mapping[str, Any]) -> str:
    """The part of a configuration that has a quantisation of its own, "" where none has."""
    parts = {key: part for key, part in config.items() if isinstance(part, dict)}
    return next((key for key, part in parts.items() if part.get("quantization_config") or _within(part)), "")


def _in_words(group: Mapping[str, Any], weights: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    kind = f"{'int' if weights.get('type', 'int') == 'int' else 'float'}{weights.get('num_bits', 8)}"
    form = visible(str(group.get("format") or said.get("format")), 40)
    rest = [name for name, there in (("activations", group.get("input_activations")), ("cache", said.get("kv_cache_scheme"))) if there]
    aside = f"; its {' and '.join(rest)}, quantised where it is served, stay in floating point here" if rest else ""
    return f"{kind} weights ({METHOD}, {form}), dequantised{aside}"


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config.get("quantization_config") or config.get("compression_config") or {})


def joined(files: Files, config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The weight each group of stored tensors stands for -> {part: stored name}; plain tensors are not in it.

    Errors: parts without a weight; none at all, where the configuration speaks of some.
    """
    if way := packing(_said(config), ""):
        parts, end = (*way.needed, *way.others), f".{way.marker}"
        packed = [name.removesuffix(end) for name in files if name.endswith(end)]
        if not packed:
            raise TiterError(f"config.json says {way.words}, and no {way.marker} stands in the files", next_step="fetch or build it again.")
        if lost := [(m, part) for m in packed for part in way.needed if f"{m}.{part}" not in files]:
            module, part = lost[0]
            raise TiterError(f"{visible(module, 120)} has no {part}, which {way.words} need", next_step="fetch or build it again.")
        return {f"{m}.weight": {part: f"{m}.{part}" for part in parts if f"{m}.{part}" in files} for m in packed}
    modules = {name.removesuffix(".weight_scale") for name in files if name.endswith(".weight_scale")}
    found = {f"{m}.weight": {part: f"{m}.{part}" for part in PARTS if f"{m}.{part}" in files} for m in modules}
    if bare := sorted(weight for weight, parts in found.items() if not any(part in parts for part in NEEDED)):
        raise TiterError(f"{visible(bare[0], 120)} has a scale and no weight", next_step="fetch or build it again.")
    if sorted_ := sorted(name for name in files if name.endswith(".weight_g_idx")):
        raise TiterError(f"{visible(sorted_[0], 120)}: columns ordered by activation are not read", expected="weights in their own order")
    return found


def logical(files: Files, config: Mapping[str, Any]) -> dict[str, Path]:
    """Weights by the names that the model before its quantisation gave them -> the file that holds them."""
    groups, way = joined(files, config), packing(_said(config), "")
    aside = {name for parts in groups.values() for name in parts.values()}
    plain = {name: file for name, file in files.items() if name not in aside and name.rpartition(".")[2] not in RUNNING}
    whole = {weight: files[_first(parts, way)] for weight, parts in groups.items()}
    return plain | whole


def _first(parts: Mapping[str, str], way: Packing | None) -> str:
    """The stored tensor that holds a weight's numbers; any of its parts where it is not there, which reading it will say."""
    wanted = NEEDED if way is None else way.needed[:1]
    return next((parts[part] for part in wanted if part in parts), next(iter(parts.values())))


def shape_of(parts: Mapping[str, str], files: Files, config: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """(shape, stored type) of a quantised weight as the model has it."""
    way = packing(_said(config), "")
    name = _first(parts, way)
    stored, kind = shape(files[name], name)
    if way is not None:
        return shape_before(way, {part: (files[one], one) for part, one in parts.items()}, stored), kind
    if "weight_shape" in parts:
        return tuple(tensor_of(files[parts["weight_shape"]], parts["weight_shape"]).tolist()), kind
    return stored, kind


def dequantised(parts: Mapping[str, str], files: Files, config: Mapping[str, Any]) -> torch.Tensor:
    """A quantised weight (outputs, inputs), float32.

    Errors: parts that the scheme of config.json does not fit.
    """
    held = {part: tensor_of(files[name], name) for part, name in parts.items()}
    if way := packing(_said(config), ""):
        return unpacked(way, held, _said(config), _first(parts, way))
    compressor, scheme = _scheme(_said(config))
    try:
        return compressor.decompress(held, scheme)["weight"].float()  # type: ignore[no-any-return]
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        name = parts.get("weight_scale", "")
        raise TiterError(
            f"{visible(name, 120)}: {visible(f'{type(error).__name__}: {error}', 160)}",
            expected="tensors as the quantization_config of config.json describes them",
        ) from None


def _scheme(said: Mapping[str, Any]) -> tuple[Any, Any]:
    """(the library's compressor, the scheme) of a quantization_config, parsed as transformers parses it to load the model."""
    from compressed_tensors.compressors import BaseCompressor  # noqa: PLC0415
    from transformers import CompressedTensorsConfig  # noqa: PLC0415

    parsed: Any = CompressedTensorsConfig.from_dict(dict(said)).quantization_config
    (scheme,) = parsed.config_groups.values()
    form = str(getattr(scheme.format or parsed.format, "value", scheme.format or parsed.format))
    return BaseCompressor.get_value_from_registry(form), scheme
