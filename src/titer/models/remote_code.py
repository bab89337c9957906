"""Code that comes in a model's folder (auto_map, trust_remote_code): which models need it, and when it is run or refused.

It is run only if the user asked for it, and then as transformers runs it under trust_remote_code: in preference to transformers' own
class, even for an architecture that transformers knows. If the user did not ask, transformers' own class is used where there is one, and
the code that was not run is named. Only *.py files at the top of the folder may run, which the model's content key covers; code from
anywhere else is refused. Nothing in this module runs any of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, TOKENIZER_MAPPING
from transformers.models.auto import tokenization_auto as auto

from titer.core.errors import TiterError, visible
from titer.models.safetensors_io import read_json

OPENED = ("AutoConfig", "AutoModelForCausalLM")  # the keys of auto_map in config.json that open a model
HERE = re.compile(r"\w[\w-]*\.\w+")  # MODULE.CLASS, in a file at the top of the folder
GENERATE = Path("custom_generate", "generate.py")  # transformers runs it on loading, and generates with it


@dataclass(frozen=True)
class OwnCode:
    """What a folder's files say about code of its own. `config`: config.json. `words`: tokenizer_config.json, {} if there is none;
    `words_config`: the config.json beside tokenizer_config.json, {} if there is none, as beside an adapter's."""

    config: Mapping[str, Any]
    words: Mapping[str, Any] = field(default_factory=dict)
    words_config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def unknown(self) -> bool:
        """Whether the model cannot be opened without its folder's code: the installed transformers does not know the architecture."""
        kind = str(self.config.get("model_type"))
        known = kind in CONFIG_MAPPING and not _of_a_folder(CONFIG_MAPPING[kind])  # a model opened before may have registered itself
        return bool(self.config.get("auto_map")) and not known

    @cached_property
    def unread(self) -> bool:
        """Whether the tokenizer cannot be opened without its folder's code, by the rules of transformers' AutoTokenizer.from_pretrained."""
        if not self.tokenizer:
            return False
        kind = str(self.words_config.get("model_type"))
        if kind in getattr(auto, "MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS", ()):  # for these types transformers ignores untrusted code
            return False
        if kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in TOKENIZER_MAPPING:
            return False
        name = str(self.words.get("tokenizer_class") or "").removesuffix("Fast")
        return not (name and any(auto.tokenizer_class_from_name(one) for one in (name, f"{name}Fast")))

    @property
    def needed(self) -> bool:
        """Whether the model or its tokenizer cannot be opened without this code."""
        return self.unknown or self.unread

    @cached_property
    def model(self) -> tuple[str, ...]:
        """MODULE.CLASS of the configuration and the model that transformers takes from the folder if its code is trusted; () if it would
        use its own class, or one that a library such as Titer registered with it."""
        said = self.config.get("auto_map")
        if not said:
            return ()
        if not isinstance(said, Mapping):
            return tuple(_references(said)) if self.unknown else ()  # transformers looks classes up by key, and finds none here
        kind = str(self.config.get("model_type"))
        if not self.unknown and not CONFIG_MAPPING[kind].__module__.startswith("transformers."):
            return ()  # transformers prefers a class that a library registered to the folder's
        return tuple(_references([said.get(name) for name in OPENED]))

    @cached_property
    def tokenizer(self) -> str:
        """MODULE.CLASS of the tokenizer that transformers takes from the folder if its code is trusted; "" if the folder names none."""
        said = self.words.get("auto_map")
        found = said.get("AutoTokenizer") if isinstance(said, Mapping) else said
        pair = found[:2] if isinstance(found, list) else [found]  # [slow, fast]
        return next((one for one in reversed(pair) if isinstance(one, str) and one), "")

    @property
    def named(self) -> tuple[str, ...]:
        """Every MODULE.CLASS of the folder that would be run if its code were trusted."""
        return (*self.model, *([self.tokenizer] if self.tokenizer else ()))


def unasked(label: str, code: OwnCode) -> TiterError:
    """Returns the error for a model that needs its folder's code, which the user did not ask to run."""
    kind = visible(str(code.config.get("model_type")), 60)
    part, of = ("", "the model") if code.unknown else (f"'s tokenizer {visible(code.tokenizer, 120)}", "its tokenizer")
    return TiterError(
        f"{label} ({kind}){part} needs code of its own (auto_map, trust_remote_code), which Titer does not run unless it is asked to",
        expected="an architecture and a tokenizer that transformers knows",
        next_step=f"update transformers if it knows {of} by now, or save {of} again in a class of transformers. "
        "Where you trust its author and have read that code: --trust-remote-code (audit, evaluate, align, finetune, study, lm-eval, "
        "inspect) runs it on this machine.",
    )


def check_code(label: str, code: OwnCode, folders: Sequence[Path], words: Path) -> None:
    """Checks a model whose folder's code is to be run; `words` is the folder of its tokenizer.

    Errors: the code lies outside of the folder, or is missing; the folder has its own generation code (custom_generate).
    """
    without = "" if code.needed else " Or leave out --trust-remote-code: transformers has classes of its own for it."
    for folder in folders:
        for name in ("config.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                for reference in _references(read_json(folder / name).get("auto_map")):
                    if "--" in reference or not HERE.fullmatch(reference):
                        raise TiterError(
                            f"{label} takes code from outside of its folder ({visible(reference, 120)} in auto_map): "
                            "it would be run unseen",
                            expected="code in files beside the weights",
                            next_step="fetch that code, read it, put its files into a copy of the folder, and name them in auto_map as "
                            f"MODULE.CLASS.{without}",
                        )
        if (folder / GENERATE).is_file():
            raise TiterError(
                f"{label} brings its own way of generating ({GENERATE.as_posix()}): answers would not be decoded as the report says",
                next_step="give a copy of its folder without custom_generate.",
            )
    for place, references in ((folders[-1], code.model), (words, [code.tokenizer] if code.tokenizer else [])):
        for reference in references:
            file = f"{reference.partition('.')[0]}.py"
            if not (place / file).is_file():
                raise TiterError(
                    f"{label} lacks {visible(file, 120)}, the code that its auto_map names", next_step=f"fetch it again, whole.{without}"
                )


def _references(said: Any) -> Iterator[str]:
    """Yields every MODULE.CLASS in an auto_map, whose values may be lists."""
    if isinstance(said, str):
        yield said
    elif isinstance(said, Mapping | list):
        for one in said.values() if isinstance(said, Mapping) else said:
            yield from _references(one)


@contextmanager
def apart() -> Iterator[None]:
    """Hides from transformers, inside a `with` block, all classes from folders' code opened before; forgets those registered inside.

    Else transformers would use a class that one folder registered for the next folder of that type, though its code may differ.
    """
    known = [mapping._extra_content for mapping in (CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, TOKENIZER_MAPPING)]
    aside = [_taken(registered) for registered in known]
    try:
        yield
    finally:
        for registered, before in zip(known, aside, strict=True):
            _taken(registered)
            registered.update(before)


def _taken(registered: dict[Any, Any]) -> dict[Any, Any]:
    """Removes and returns the classes that came from a folder's code."""
    found = {key: value for key, value in registered.items() if _of_a_folder(key) or _of_a_folder(value)}
    for key in found:
        del registered[key]
    return found


def _of_a_folder(kind: Any) -> bool:
    """Whether a class, or one of a tuple of classes, was made by transformers from the code in a folder."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return any(str(getattr(one, "__module__", "")).startswith("transformers_modules.") for one in kinds)
