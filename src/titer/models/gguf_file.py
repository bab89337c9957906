"""Reads a GGUF file (llama.cpp's format), tensor by tensor, as the model that transformers makes of it.

The package gguf (llama.cpp's own) dequantises the blocks. transformers says which tensor is which parameter and how llama.cpp changed
it (the order of the rows of Llama's q and k, norms stored as w + 1, experts stored apart). What transformers silently ignores is added
or refused here: rotary scaling, head sizes, models in several files, tensors that the model has no place for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, LlamaFileType, dequantize
from tokenizers import Tokenizer, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoTokenizer
from transformers import modeling_gguf_pytorch_utils as legacy
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.integrations import gguf as newer

from titer.core.errors import TiterError, visible
from titer.models.names import outline
from titer.models.safetensors_io import AGAIN

OTHERWISE = "give the model's safetensors."
SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<of>\d{5})\.gguf")  # as llama.cpp's gguf-split names them
FREQUENCIES = "rope_freqs.weight"  # what each rotary frequency is divided by: scaling that the metadata does not state
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of every Llama 3.1 to 3.3
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")  # vocabularies that part every digit


def gguf_parts(file: Path) -> tuple[Path, ...]:
    """Returns the files of a model in order: the one file, or all parts that it was split into. Errors: a part is missing."""
    match = SPLIT.fullmatch(file.name)
    if match is None:
        return (file,)
    of = int(match["of"])
    files = tuple(file.with_name(f"{match['stem']}-{part:05d}-of-{of:05d}.gguf") for part in range(1, min(of, 1000) + 1))
    if lost := [f.name for f in files if not f.is_file()]:
        raise TiterError(f"{file.parent} lacks {visible(lost[0], 120)} ({len(lost)} of {of} parts are missing)", next_step=AGAIN)
    return files


def gguf_in(folder: Path) -> str:
    """Returns the file name of the GGUF model in a folder, "" where there is none. Errors: there are several."""
    found = sorted({f.name if SPLIT.fullmatch(f.name) is None else gguf_parts(f)[0].name for f in folder.glob("*.gguf") if f.is_file()})
    if len(found) > 1:
        shown = ", ".join(visible(name, 80) for name in found[:4]) + (", ..." if len(found) > 4 else "")
        raise TiterError(
            f"{folder} holds {len(found)} GGUF models ({shown})", expected="one model", next_step=f"name the file: {folder}/{found[0]}"
        )
    return found[0] if found else ""


class Gguf:
    """A model in one GGUF file or in several parts.

    Errors: files that are damaged or not GGUF; an architecture or a tensor type that cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.parts = gguf_parts(file)
        self._readers = [_opened(part) for part in self.parts]
        self.file = self.parts[0]
        self._tensors: dict[str, tuple[Any, Path]] = {
            tensor.name: (tensor, part) for reader, part in zip(self._readers, self.parts, strict=True) for tensor in reader.tensors
        }
        self.architecture = str(self.said("general.architecture"))

    def said(self, key: str, default: Any = None) -> Any:
        """Returns the metadata's value for `key`, or `default`."""
        field = self._readers[0].fields.get(key)
        return default if field is None else field.contents()

    @cached_property
    def words(self) -> str:
        """How the weights are stored, in words: the file's quantisation and the number of tensors of each type."""
        kinds = Counter(tensor.tensor_type.name for tensor, _ in self._tensors.values())
        try:
            name = LlamaFileType(self.said("general.file_type")).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:
            name = ""
        each = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])))
        return f"GGUF{f', {name}' if name else ''} (tensors: {each}), dequantised"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as transformers reads it from the metadata, completed where transformers leaves something out.

        Errors: an architecture that transformers cannot read; an unknown scaling of the rotary embedding.
        """
        with _reading(self.file):
            if self.architecture in newer.GGUF_CONFIG_ARCHS:
                found = dict(newer.get_gguf_config(newer.read_gguf_metadata(str(self.file))[0], tuple(self._tensors)))
            elif self.architecture in legacy.GGUF_SUPPORTED_ARCHITECTURES:
                found = dict(legacy.load_gguf_checkpoint(str(self.file), return_tensors=False)["config"])
                found |= {"tie_word_embeddings": "output.weight" not in self._tensors} | self._left_out(found) | self._rope()
            else:
                raise TiterError(
                    f"{self.file.name} is a GGUF of the architecture {visible(self.architecture, 60)}, which transformers does not read",
                    expected=f"one of {', '.join(sorted(legacy.GGUF_SUPPORTED_ARCHITECTURES))}",
                    next_step=OTHERWISE,
                )
            return {key: value.item() if isinstance(value, np.generic) else value for key, value in found.items()}

    def _left_out(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Returns settings that the metadata or the tensors give and transformers ignores. Errors: an impossible number of blocks."""
        more: dict[str, Any] = {"n_positions": found["n_ctx"]} if "n_ctx" in found else {}
        size, layers = (self.said(f"{self.architecture}.{key}") for key in ("attention.key_length", "block_count"))
        if isinstance(size, int) and not {"head_dim", "global_head_dim"} & set(found):
            more["head_dim"] = size
        if "token_embd.weight" in self._tensors:
            more["vocab_size"] = int(self._tensors["token_embd.weight"][0].shape[1])  # gguf counts the fastest dimension first
        if not isinstance(layers, int) or not 0 < layers <= len(self._tensors):
            raise TiterError(
                f"{self.file.name} says that it has {visible(str(layers), 40)} blocks, and it holds {len(self._tensors)} tensors",
                next_step=AGAIN,
            )
        return more

    def _rope(self) -> dict[str, Any]:
        """Returns the scaling of the rotary embedding in the form of transformers' configuration; {} where there is none."""
        place = f"{self.architecture}.rope.scaling"
        kind, factor = self.said(f"{place}.type", "none"), self.said(f"{place}.factor")
        if FREQUENCIES in self._tensors:
            divisors = torch.from_numpy(np.array(self._tensors[FREQUENCIES][0].data)).float()
            base, largest = float(self.said(f"{self.architecture}.rope.freq_base", 1e4)), round(float(divisors.max()), 4)
            if torch.allclose(_llama3(base, largest, len(divisors)), divisors, rtol=1e-4):
                return {"rope_scaling": {"rope_type": "llama3", "factor": largest, **LLAMA3}}
            kind = FREQUENCIES
        if kind in ("linear", "yarn") and factor:
            length = self.said(f"{place}.original_context_length") if kind == "yarn" else None
            stated = {"original_max_position_embeddings": length} if length else {}
            return {"rope_scaling": {"rope_type": kind, "factor": float(factor)} | stated}
        if kind != "none" and self.architecture != "gpt-oss":
            raise TiterError(
                f"{self.file.name} scales its rotary embedding in a way that is not read here ({visible(str(kind), 40)})",
                expected="none, linear, yarn, or that of Llama 3",
                next_step=OTHERWISE,
            )
        return {}

    @cached_property
    def _model(self) -> Any:
        """The model without any weight in memory."""
        with _reading(self.file):
            return outline(CONFIG_MAPPING[self.config["model_type"]].from_dict(dict(self.config)), False)

    @cached_property
    def _plan(self) -> dict[str, tuple[str, ...]]:
        """Parameter of the model -> the tensors it is made of.

        Errors: a tensor that the model has no place for, a parameter that no tensor gives.
        """
        targets = self._targets()
        found: dict[str, tuple[str, ...]] = {}
        for name in self._tensors:
            if name != FREQUENCIES:
                if not targets.get(name):
                    raise TiterError(
                        f"{self.file.name} holds {visible(name, 120)}, for which transformers' {type(self._model).__name__} has no place",
                        next_step=OTHERWISE,
                    )
                found[targets[name]] = (*found.get(targets[name], ()), name)
        if lost := [name for name, _ in self._model.named_parameters() if name not in found]:
            raise TiterError(f"{self.file.name} holds no tensor for {lost[0]} ({len(lost)} such parameters)", next_step=AGAIN)
        return found

    def _targets(self) -> dict[str, str]:
        """Returns tensor -> the parameter that it belongs to, "" for none."""
        with _reading(self.file):
            if self._steps is not None:
                renamings, converters = self._steps
                return {name: rename_source_key(name, renamings, converters)[0] for name in self._tensors}
            mapped = legacy.get_gguf_hf_weights_map(self._model, self._processor())
        return {name: mapped.get(name) or mapped.get(name.removesuffix(".weight"), "") for name in self._tensors}

    @cached_property
    def _steps(self) -> tuple[list[Any], list[Any]] | None:
        """(renamings, conversions) for architectures that transformers maps in its newer way; None for the others."""
        if not newer.is_gguf_arch_supported(self.architecture):
            return None
        steps = newer.get_gguf_conversion_mapping(self.architecture, self._model.config)
        renaming = [step for step in steps if isinstance(step, WeightRenaming)]
        return renaming, [step for step in steps if isinstance(step, WeightConverter)]

    def _processor(self) -> Any:
        kinds = legacy.TENSOR_PROCESSORS
        return kinds.get(self.architecture, legacy.TensorProcessor)(config=self.config)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Parameter -> the file that holds it (the first, where it is made of several tensors)."""
        return {parameter: self._tensors[names[0]][1] for parameter, names in self._plan.items()}

    def shape(self, parameter: str) -> tuple[tuple[int, ...], str]:
        """Returns (shape in the model, gguf's name of the stored type) of a parameter."""
        return tuple(self._model.get_parameter(parameter).shape), self._tensors[self._plan[parameter][0]][0].tensor_type.name

    def weight(self, parameter: str) -> torch.Tensor:
        """Returns a parameter, dequantised to float32. Errors: a type that gguf cannot dequantise; a shape other than the model's."""
        names = self._plan[parameter]
        with _reading(self.file):
            stored = {name: self._tensors[name][0] for name in names}
            read = {name: np.array(dequantize(tensor.data, tensor.tensor_type)) for name, tensor in stored.items()}
            made = self._converted(parameter, read) if self._steps else self._processed(parameter, read)
        wanted = self.shape(parameter)[0]
        if made is None or tuple(made.shape) != wanted:
            given = "nothing" if made is None else tuple(made.shape)
            raise TiterError(f"{self.file.name}: {parameter} is {given}, but its metadata asks for {wanted}", next_step=AGAIN)
        return made.float()

    def _processed(self, parameter: str, read: Mapping[str, np.ndarray]) -> torch.Tensor | None:
        """Makes a parameter from its tensors as `transformers.modeling_gguf_pytorch_utils.load_gguf_checkpoint` does."""
        placed: dict[str, Any] = {"tensors": {}}
        mapping = {name.removesuffix(end): parameter for name in read for end in ("", ".weight")}
        for name, values in read.items():
            result = self._processor().process(weights=values, name=name, tensor_key_mapping=mapping, parsed_parameters=placed)
            if result.name is not None:
                placed["tensors"][parameter] = torch.from_numpy(np.ascontiguousarray(result.weights))
        return placed["tensors"].get(parameter)

    def _converted(self, parameter: str, read: Mapping[str, np.ndarray]) -> torch.Tensor | None:
        """Makes a parameter from its tensors as `transformers.core_model_loading` does."""
        renamings, converters = deepcopy(self._steps or ([], []))  # a step keeps the tensors it is given
        patterns = {name: rename_source_key(name, renamings, converters)[1] for name in read}
        step = next((one for one in converters if set(patterns.values()) <= set(one.source_patterns)), None)
        if step is None:
            return torch.from_numpy(next(iter(read.values())))
        for name, values in read.items():
            step.add_tensor(parameter, name, patterns[name], torch.from_numpy(values))
        found = step.convert(parameter, model=self._model, config=self._model.config).get(parameter)
        return found[0] if isinstance(found, list) else found

    def tokenizer(self) -> Any:
        """Returns the tokenizer in the metadata, with its chat template. Errors: there is none, or it cannot be read."""
        with _reading(self.file):
            made: Any = AutoTokenizer.from_pretrained(self.file.parent, gguf_file=self.file.name, local_files_only=True)
            state, held = json.loads(made.backend_tokenizer.to_str()), len(self.said("tokenizer.ggml.tokens"))
            own = [token for token in state["added_tokens"] if token["id"] < held]
            if own != state["added_tokens"]:  # transformers adds GPT-2's <|endoftext|>, for which the model has no embedding
                made._tokenizer = Tokenizer.from_str(json.dumps(state | {"added_tokens": own}))
            if self.said("tokenizer.ggml.pre") in DIGITS:  # transformers knows no way to split of these
                made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
                )
        return made


def _opened(file: Path) -> Any:
    """Opens a file with gguf's reader. transformers' reader checks it first: gguf's would trust any count in it, beyond the file's end."""
    with _reading(file):
        newer.read_gguf_metadata(str(file))
        return GGUFReader(file)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns whatever a reader raises for a damaged or unknown file into one clear error."""
    try:
        yield
    except TiterError:
        raise
    except Exception as error:  # noqa: BLE001  the readers raise whatever a wrong value leads them to
        raise TiterError(
            f"{file.name} in {file.parent} is damaged, cut short, or no GGUF that is read here "
            f"({visible(f'{type(error).__name__}: {error}', 200)})",
            next_step=AGAIN,
        ) from None


def _llama3(base: float, factor: float, half: int) -> torch.Tensor:
    """Returns the divisors of a head's `half` rotary frequencies (half of the head's size) under Llama 3's scaling by `factor`.

    Source: transformers' modeling_rope_utils, llama3; llama.cpp's conversion writes the same numbers.
    """
    waves = 2 * torch.pi * base ** (torch.arange(half, dtype=torch.float32) / half)
    low, high, length = LLAMA3.values()
    smooth = ((length / waves - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
