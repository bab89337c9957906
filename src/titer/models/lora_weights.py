"""Reads a LoRA adapter as peft saves it (adapter_config.json, adapter_model.safetensors), tensor by tensor.

A tensor W (outputs, inputs) of the base becomes W + s B A, with A (r, inputs), B (outputs, r) and s = alpha / r, or
alpha / sqrt(r) with rsLoRA; rank and alpha may be a module's own (rank_pattern, alpha_pattern). Where W is stored
as (inputs, outputs), and for embeddings (words, width), B A is transposed. Modules that were trained whole
(modules_to_save, biases) replace the base's. Anything else in the adapter is refused, never silently left out.
Source: LoRA, arXiv 2106.09685, equation 3; rsLoRA, arXiv 2312.03732.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from titer.core.config import Record, build, digest
from titer.core.errors import TiterError, visible
from titer.core.run import sha256_of
from titer.models.safetensors_io import ADAPTER, names, read_json, shape, tensor_of
from titer.models.tried import ends

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")
# Where the vocabulary grew, peft writes a module that was trained whole three times: plainly, and twice under these names.
COPY = re.compile(r"\.(original_module|modules_to_save)\.")
HEADS = ("lm_head.weight", "embed_out.weight")  # a model may call its head otherwise than its file does
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # ways to begin that leave the base's weights as they are
SAFE = {  # settings that change nothing of a trained adapter's weights, or that are respected here
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version"),
    *("qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_rslora"),
}
KNOWN_AS = {"use_dora": "DoRA", "use_qalora": "QALoRA", "target_parameters": "LoRA on bare parameters", "trainable_token_indices": "tokens"}
WORDS = re.compile("PROMPT|PREFIX|P_TUNING|CPT")  # kinds that peft cannot merge
MERGED = "merge it where it was trained (peft: merge_and_unload, then save_pretrained) and give that folder."
Shapes = Mapping[str, tuple[tuple[int, ...], str]]


class LoraShape(Record):
    """The fields of adapter_config.json that the weights depend on, under peft's names."""

    r: int = Field(default=8, ge=1)
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)

    def rank(self, module: str) -> int:
        return self.rank_pattern.get(_pattern(self.rank_pattern, module), self.r)

    def scale(self, module: str) -> float:
        """Returns the factor s of W + s B A for one module."""
        alpha = self.alpha_pattern.get(_pattern(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


@dataclass(frozen=True)
class LoraChange:
    """How an adapter changes one tensor of its base: a replacement, a pair A and B, or both; `whole`, `a` and `b` are names in `file`."""

    parameter: str  # the tensor's name in the model
    file: Path
    whole: str = ""
    a: str = ""
    b: str = ""
    scale: float = 0.0
    flipped: bool = False  # whether B A is transposed

    def applied(self, stored: torch.Tensor) -> torch.Tensor:
        """Returns the base's tensor `stored` with the adapter's change applied, float32."""
        weight = tensor_of(self.file, self.whole).float() if self.whole else stored
        if not self.a:
            return weight
        product = tensor_of(self.file, self.b).float() @ tensor_of(self.file, self.a).float()
        return weight + (product.T if self.flipped else product) * self.scale


class Adapter:
    """An adapter in a folder; `base` is the model that it names as its base, "" where it names none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_json(folder / CONFIG)
        self.base, self.revision = (str(config.get(key) or "") for key in ("base_model_name_or_path", "revision"))
        self.lora, self.file, self._config = _settings(config, folder), folder / ADAPTER, config
        if not self.file.is_file():
            pickled = sorted(p.name for p in folder.glob("adapter_model.*"))
            what = f"holds its weights only as a pickle ({pickled[0]}), which Titer never loads" if pickled else f"has no {ADAPTER}"
            raise TiterError(f"{folder} {what}", next_step="save it again with peft's save_pretrained (safetensors) where you trust it.")

    @property
    def key(self) -> str:
        """The content key. The adapter's name for its base is not part of it, because it differs from place to place."""
        said = {k: v for k, v in self._config.items() if k not in ("base_model_name_or_path", "revision", "inference_mode")}
        others = [f for f in sorted(self.folder.iterdir()) if f.suffix in (".json", ".jinja") and f.name not in (CONFIG, "manifest.json")]
        return digest({"config": said, "weights": sha256_of(self.file), "files": {f.name: sha256_of(f) for f in others}})

    def changes(self, base: Shapes, tied: bool, turned: Container[str], label: str) -> dict[str, LoraChange]:
        """Returns tensor of the base -> how the adapter changes it.

        base: shapes of its tensors. tied: whether its head is its embedding. turned: its matrices that are stored as (inputs, outputs);
        the layers decide that, as in peft, for fan_in_fan_out only describes the last layer that peft changed.
        Errors: an adapter for another base; parts that are not LoRA; an adapter on embedding or head where they are one tensor.
        """
        found = {}
        for parameter, parts in _read(self.file, self.folder).items():
            tensor = _stored_as(parameter, base)
            table = "whole" not in parts or len(parts) > 1 or len(shape(self.file, parts["whole"])[0]) == 2  # a norm is none
            if tied and "." in parameter and not re.search(r"\.\d+\.", parameter) and table:
                raise TiterError(
                    f"{self.folder} changes {visible(parameter, 120)} of {label}, whose embedding and head are one tensor",
                    next_step=MERGED,
                )
            if not tensor:
                raise self._misfit(label, f"it changes {visible(parameter, 120)}, which that model does not hold")
            found[tensor] = self._change(parameter, parts, base[tensor][0], tensor in turned, label)
        return found

    def _change(self, parameter: str, parts: Mapping[str, str], size: tuple[int, ...], flipped: bool, label: str) -> LoraChange:
        whole, pair = parts.get("whole", ""), [parts[side] for side in "AB" if side in parts]
        if whole and (given := shape(self.file, whole)[0]) != size:
            raise self._misfit(label, f"{visible(parameter, 120)} is {given} there and {size} in that model")
        if not pair:
            return LoraChange(parameter, self.file, whole)
        module = parameter.removesuffix(".weight")
        if len(pair) < 2:
            raise TiterError(
                f"{self.folder} has only one of the two matrices A and B for {visible(module, 120)}", next_step="fetch or train it again."
            )
        (a, _), (b, _) = (shape(self.file, name) for name in pair)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] != self.lora.rank(module):
            raise TiterError(
                f"{self.folder}: A {a} and B {b} of {visible(module, 120)} do not form a pair of rank {self.lora.rank(module)}",
                next_step="fetch or train it again.",
            )
        sizes = {False: (b[0], a[1]), True: (a[1], b[0])}
        wanted = pair[0].endswith("lora_embedding_A") or (flipped if sizes[flipped] == size else not flipped)
        if sizes[wanted] != size:
            raise self._misfit(label, f"{visible(module, 120)} is {sizes[flipped]} there and {size} in that model")
        return LoraChange(parameter, self.file, whole, pair[0], pair[1], self.lora.scale(module), wanted)

    def _misfit(self, label: str, why: str) -> TiterError:
        return TiterError(
            f"{self.folder} is a LoRA for another base than {label}: {why}",
            expected=f"the model it was trained on{f' ({visible(self.base, 120)}, as it says itself)' if self.base else ''}",
            next_step=f"give the right base, as BASE+ADAPTER. If tokens were added to it in training: {MERGED}",
        )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter (adapter_config.json)."""
    return os.path.isfile(folder / CONFIG)


def _settings(config: dict[str, Any], folder: Path) -> LoraShape:
    kind = str(config.get("peft_type", "no peft_type"))
    if kind != "LORA":
        then = "give a LoRA or a whole model: it trained tokens before the prompt, which no weights hold." if WORDS.search(kind) else MERGED
        raise TiterError(f"{folder} is an adapter of the kind {visible(kind, 60)}", expected="a LoRA", next_step=then)
    if odd := sorted(key for key, value in config.items() if value and key not in SAFE):
        called = KNOWN_AS.get(odd[0], visible(odd[0], 60))
        raise TiterError(f"{folder} is a LoRA with {called}, whose weights are not W + s B A", expected="a plain LoRA", next_step=MERGED)
    if (start := config.get("init_lora_weights", True)) not in PLAIN_STARTS:
        raise TiterError(
            f"{folder} was initialised by {visible(str(start), 60)}, which changes the base's own weights",
            expected="a plain LoRA",
            next_step=MERGED,
        )
    given = {key: config[key] for key in LoraShape.model_fields if config.get(key) is not None}
    return build(LoraShape, given, str(folder / CONFIG))


def _read(file: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Returns the model's name of each tensor -> the adapter's names of its parts: "A" and "B" of a pair, "whole" if trained whole."""
    found: dict[str, dict[str, str]] = {}
    held = names(file)
    for name in sorted(one for one in held if one == (plain := COPY.sub(".", one)) or plain not in held):
        rest = name.removeprefix(PREFIX)
        match = PART.fullmatch(rest)
        if rest == name or (match is None and ("lora_" in rest or "token_adapter" in rest)):
            raise TiterError(f"{folder} holds {visible(name, 120)}, which is not part of a plain LoRA", next_step=MERGED)
        if match is None:
            found.setdefault(rest.replace(".base_layer.", "."), {})["whole"] = name
        else:
            found.setdefault(f"{match['module']}.weight", {})["A" if "_A" in match["part"] else "B"] = name
    if not found:
        raise TiterError(f"{file} is empty", next_step="fetch or train it again.")
    return found


def _stored_as(parameter: str, base: Shapes) -> str:
    """Returns the base's name of the model's `parameter`, "" for none; a file may omit the model's prefix."""
    if parameter in base:
        return parameter
    if parameter in HEADS:
        return next((head for head in HEADS if head in base), "")
    near = [name for name in base if parameter.endswith(f".{name}")]
    return near[0] if len(near) == 1 else ""


def _pattern(patterns: Mapping[str, object], module: str) -> str:
    """Returns the first pattern that matches the end of a module's name, as peft matches; "" for none."""
    if wild := next((key for key in patterns if not ends(key)), ""):
        raise TiterError(f"{CONFIG} has a pattern that may go on without end ({visible(wild, 120)})", next_step=MERGED)
    try:
        return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), "")
    except re.error as error:
        raise TiterError(f"{CONFIG} has a pattern that is no regular expression ({visible(str(error), 120)})", next_step=MERGED) from None
