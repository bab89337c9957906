"""One map from the names in a model's files to its parameters: transformers' own, as `from_pretrained` applies it.

Hub files lack a prefix (GPT-2, BLOOM), carry an old one (Gemma 3), keep experts apart that the model holds in one tensor, or a
head that the configuration calls tied. Every reader of weights goes by the parameters' names; a parameter that is made of several
stored tensors is made when it is asked for, so that no model is ever whole in memory.
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
MASKS = (r"\.rotary_emb\.inv_freq$", r"\.attn\.masked_bias$")  # that older files hold


def opener(config: Any) -> Any:
    """transformers' class that opens a configuration: that of causal language models, else that of text with pictures or sound where the
    text model within is a decoder. No picture and no sound is ever shown to it. Errors: an encoder beside the decoder."""
    if config.is_encoder_decoder:
        raise TiterError(
            f"{visible(config.model_type, 60)} has an encoder that reads the prompt, and a decoder that answers",
            expected="a causal language model, where one decoder does both",
        )
    wrapper = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING and config.get_text_config(decoder=True) is not config
    return AutoModelForMultimodalLM if wrapper and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForCausalLM


@dataclass(frozen=True)
class Described:
    """A configuration, equal to another that says the same."""

    kind: type
    text: str
    trusted: bool
    config: Any = field(compare=False)


def outline(config: Any, trusted: bool) -> Any:
    """The model that a configuration describes, on no device; of equal ones the same, to be read only. Errors: what transformers raises."""
    said = config.to_dict()
    if not trusted:  # else it is where the code lies
        said.pop("_name_or_path", None)
    return _outline(Described(type(config), json.dumps(said, sort_keys=True, default=repr), trusted, config))


@lru_cache(maxsize=8)  # the models of a fleet are of one architecture
def _outline(asked: Described) -> Any:
    config = deepcopy(asked.config)
    config._attn_implementation = "eager"  # which every architecture has: nothing is computed here
    with torch.device("meta"):
        return opener(config).from_config(config, trust_remote_code=asked.trusted)


@dataclass(frozen=True)
class Origin:
    """What a parameter is made of: stored tensors by the pattern that found them; `maker` and `first` are None and "" of a plain one."""

    stored: Mapping[str, Sequence[str]]
    shape: tuple[int, ...]
    maker: WeightConverter | None = None
    first: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for names in self.stored.values() for name in names)


class Names(NamedTuple):
    """parameter -> its origin; tied parameter that is not stored -> the one that stands for it; stored tensors that no parameter takes."""

    origins: dict[str, Origin]
    tied: dict[str, str]
    unused: tuple[str, ...]

    @property
    def used(self) -> set[str]:
        """Every parameter that has a value: a head that is the embedding too."""
        return {*self.origins, *self.tied}


def named(model: Any, stored: Iterable[str], shape: Callable[[str], tuple[int, ...]]) -> Names:
    """The map for the stored tensors of `model`, an `outline`; `shape` of one comes from its file's header.

    Errors: stored tensors that do not make up the parameter they belong to.
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
    ignored = (*MASKS, *(model._keys_to_ignore_on_load_unexpected or ()))  # which the architecture says may stand there unused
    return Names(origins, tied_to(model, origins), tuple(name for name in unused if not any(re.search(one, name) for one in ignored)))


def alias(name: str, known: Container[str]) -> str:
    """The one of `known` that stands for another model's `name` of it: a vision-language wrapper holds its text model within it, as
    `model.language_model.X` or `model.text_model.X`, whose own file says `model.X`; `name` itself where there is none."""
    if name in known:
        return name
    bare = ".".join(part for part in name.split(".") if part not in WITHIN)
    places = (bare, *(place for within in WITHIN for place in (bare.replace(".", f".{within}.", 1), f"{within}.{bare}")))
    return next((place for place in places if place in known), name)


def made(model: Any, origin: Origin, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every parameter that a group of stored tensors makes, which `read` gives; `origin` has a maker."""
    maker: Any = deepcopy(origin.maker)
    for pattern, names in origin.stored.items():
        for name in names:
            maker.add_tensor(origin.first, name, pattern, read(name))
    try:
        found = maker.convert(origin.first, model=model, config=model.config)
    except Exception as error:  # noqa: BLE001  an operation of transformers raises whatever wrong shapes lead it to
        raise TiterError(
            f"{visible(origin.names[0], 120)} and {len(origin.names) - 1} more do not make up {visible(origin.first, 120)} "
            f"({visible(f'{type(error).__name__}: {error}', 120)})",
            next_step="fetch or build it again.",
        ) from None
    return {name: one[0] if isinstance(one, list) else one for name, one in found.items()}


def tied_to(model: Any, origins: Mapping[str, Origin]) -> dict[str, str]:
    """As transformers ties: where both of a pair are stored, each is its own (a head beside a configuration that calls it tied)."""
    pairs = dict(getattr(model, "all_tied_weights_keys", None) or {})
    held: dict[str, str] = {}
    for target, source in pairs.items():
        here = [one for one in (source, target, *(t for t, s in pairs.items() if s == source)) if one in origins]
        held |= {one: here[0] for one in (target, source) if here and one not in origins}
    return held
