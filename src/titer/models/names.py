"""Maps the tensor names in a model's files to the model's parameters, by the rules that transformers' `from_pretrained` applies.

Files of the Hugging Face Hub may lack a prefix (GPT-2, BLOOM), carry an old one (Gemma 3), store experts separately that the model
holds in one tensor, or store a head that the configuration calls tied. All code that reads weights uses the parameters' names; a
parameter made of several stored tensors is made when it is asked for, so a model is never whole in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from titer.core.errors import TiterError, visible
from titer.models.stream_norm import StreamNormForCausalLM  # noqa: F401  (registers the variant with transformers)

WITHIN = ("language_model", "text_model")  # what a vision-language wrapper calls its text model
MASKS = (
    r"\.inv_freq$",
    r"\.attn(\.attention)?\.(masked_bias|bias|causal_mask)$",
    r"\.position_ids$",
)  # tensors of older files that models no longer have


def opener(config: Any) -> Any:
    """Returns transformers' Auto class that opens a configuration: that of causal language models or, for models of text with images or
    audio whose text model is a decoder, that of multimodal ones (they get text alone). Errors: the model has an encoder and a decoder."""
    if config.is_encoder_decoder:
        raise TiterError(
            f"{visible(config.model_type, 60)} has an encoder that reads the prompt, and a decoder that answers",
            expected="a causal language model, where one decoder does both",
        )
    wrapper = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING and config.get_text_config(decoder=True) is not config
    return AutoModelForMultimodalLM if wrapper and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForCausalLM


@dataclass(frozen=True)
class Described:
    """A configuration as a cache key: two are equal if their class, contents and `trusted` are the same."""

    kind: type
    text: str
    trusted: bool
    config: Any = field(compare=False)


def outline(config: Any, trusted: bool) -> Any:
    """Returns the model that a configuration describes, without weights in memory (on PyTorch's meta device). Equal configurations
    share one model, so it must not be changed. Errors: what transformers raises."""
    said = config.to_dict()
    if not trusted:  # a trusted folder's path is kept, as its code is found by it
        said.pop("_name_or_path", None)
    return _outline(Described(type(config), json.dumps(said, sort_keys=True, default=repr), trusted, config))


@lru_cache(maxsize=8)  # the models of a fleet are of one architecture
def _outline(asked: Described) -> Any:
    config = deepcopy(asked.config)
    config._attn_implementation = "eager"  # every architecture has it, and nothing is computed here
    with torch.device("meta"):
        return opener(config).from_config(config, trust_remote_code=asked.trusted)


@dataclass(frozen=True)
class Origin:
    """What a parameter is made of. `stored`: name pattern -> the stored tensors that matched it. `maker`: transformers' converter that
    makes the parameter of them, `first`: the target name passed to it; None and "" for a tensor that is used as stored."""

    stored: Mapping[str, Sequence[str]]
    shape: tuple[int, ...]
    maker: WeightConverter | None = None
    first: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for names in self.stored.values() for name in names)


class Names(NamedTuple):
    """Which of the tensors in a model's files make up which parameter."""

    origins: dict[str, Origin]  # parameter -> what it is made of
    tied: dict[str, str]  # tied parameter that is not stored -> the stored one whose values it has
    unused: tuple[str, ...]  # stored tensors that belong to no parameter

    @property
    def used(self) -> set[str]:
        """All parameters that have a value, tied ones (a head that is the embedding) included."""
        return {*self.origins, *self.tied}


def named(model: Any, stored: Iterable[str], shape: Callable[[str], tuple[int, ...]]) -> Names:
    """Maps stored tensors to the parameters of `model` (from `outline`); `shape` returns a stored tensor's shape.

    Errors: stored tensors that cannot be converted to the parameter they belong to.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    makers = {pattern: one for one in converters for pattern in one.source_patterns}
    known, prefix = model.state_dict(), model.base_model_prefix
    origins: dict[str, Origin] = {}
    unused: list[str] = []
    gathered: dict[str, tuple[WeightConverter, dict[str, list[str]]]] = {}
    for name in sorted(stored, key=dot_natural_key):  # the order in which experts are stacked
        found, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if found not in known and name in known:
            found, pattern = rename_source_key(name, [], [], prefix, known)
        if found not in known:
            unused.append(name)
        elif pattern is None:
            origins[found] = Origin({name: (name,)}, shape(name))
        else:
            _, parts = gathered.setdefault(found, (makers[pattern], {}))
            parts.setdefault(pattern, []).append(name)
    for first, (maker, parts) in gathered.items():
        whole = Origin(parts, (), maker, first)
        for name, empty in made(model, whole, lambda one: torch.empty(shape(one), device="meta")).items():
            origins[name] = replace(whole, shape=tuple(empty.shape))
    ignored = (*MASKS, *(model._keys_to_ignore_on_load_unexpected or ()))  # the architecture itself allows these to be unused
    return Names(origins, tied_to(model, origins), tuple(name for name in unused if not any(re.search(one, name) for one in ignored)))


def alias(name: str, known: Container[str]) -> str:
    """Translates another model's parameter name into the matching name in `known`; returns `name` itself if there is none.

    A vision-language wrapper names `model.language_model.X` or `model.text_model.X` what its text model alone names `model.X`."""
    if name in known:
        return name
    bare = ".".join(part for part in name.split(".") if part not in WITHIN)
    places = (bare, *(place for within in WITHIN for place in (bare.replace(".", f".{within}.", 1), f"{within}.{bare}")))
    return next((place for place in places if place in known), name)


def made(model: Any, origin: Origin, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns every parameter that one group of stored tensors is converted to; `read` returns a stored tensor, `origin` has a maker."""
    maker: Any = deepcopy(origin.maker)
    for pattern, names in origin.stored.items():
        for name in names:
            maker.add_tensor(origin.first, name, pattern, read(name))
    try:
        found = maker.convert(origin.first, model=model, config=model.config)
    except Exception as error:  # noqa: BLE001  transformers raises errors of any type on wrong shapes
        raise TiterError(
            f"{visible(origin.names[0], 120)} and {len(origin.names) - 1} more cannot be joined to {visible(origin.first, 120)} "
            f"({visible(f'{type(error).__name__}: {error}', 120)})",
            next_step="fetch or build it again.",
        ) from None
    return {name: one[0] if isinstance(one, list) else one for name, one in found.items()}


def tied_to(model: Any, origins: Mapping[str, Origin]) -> dict[str, str]:
    """Returns tied parameter that is not stored -> the stored one whose values it has, by transformers' rules: where both of a pair
    are stored they are separate, even if the configuration calls the head tied."""
    pairs = dict(getattr(model, "all_tied_weights_keys", None) or {})
    held: dict[str, str] = {}
    for target, source in pairs.items():
        here = [one for one in (source, target, *(t for t, s in pairs.items() if s == source)) if one in origins]
        held |= {one: here[0] for one in (target, source) if here and one not in origins}
    return held
