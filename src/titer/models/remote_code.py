"""Code that a model brings in its folder (auto_map, trust_remote_code): who needs it, when it is run or refused, what is kept apart.

It is run only where its user asked for it, and then as transformers runs it under trust_remote_code: before a class of its own, even
where it knows the architecture. Unasked, transformers' own class is taken where there is one, and the code that is left alone is named.
What may run are the *.py files at the top of the folder, which the model's key covers; whatever would come from elsewhere is refused.
Nothing here runs any of it.
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

OPENED = ("AutoConfig", "AutoModelForCausalLM")  # of an auto_map in config.json: without these nothing opens
HERE = re.compile(r"\w[\w-]*\.\w+")  # MODULE.CLASS, in a file at the top of the folder
GENERATE = Path("custom_generate", "generate.py")  # transformers runs it in loading, and answers by it


@dataclass(frozen=True)
class OwnCode:
    """What a folder's files say of its own code. `config`: config.json. `words`: tokenizer_config.json, {} where there is none;
    `words_config`: the config.json beside that file, which an adapter has not."""

    config: Mapping[str, Any]
    words: Mapping[str, Any] = field(default_factory=dict)
    words_config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def unknown(self) -> bool:
        """Whether the model opens by its folder's code alone: transformers, as it is installed, does not know the architecture."""
        kind = str(self.config.get("model_type"))
        known = kind in CONFIG_MAPPING and not _of_a_folder(CONFIG_MAPPING[kind])  # a model opened before may have registered itself
        return bool(self.config.get("auto_map")) and not known

    @cached_property
    def unread(self) -> bool:
        """Whether the tokenizer opens by its folder's code alone. The reading is transformers' own (AutoTokenizer.from_pretrained)."""
        if not self.tokenizer:
            return False
        kind = str(self.words_config.get("model_type"))
        if kind in getattr(auto, "MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS", ()):  # there it passes over the code that is not trusted
            return False
        if kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in TOKENIZER_MAPPING:
            return False
        name = str(self.words.get("tokenizer_class") or "").removesuffix("Fast")
        return not (name and any(auto.tokenizer_class_from_name(one) for one in (name, f"{name}Fast")))

    @property
    def needed(self) -> bool:
        """Whether nothing opens without it."""
        return self.unknown or self.unread

    @cached_property
    def model(self) -> tuple[str, ...]:
        """MODULE.CLASS of configuration and model that transformers takes where the code is trusted; () of its own and of Titer's."""
        said = self.config.get("auto_map")
        if not said:
            return ()
        if not isinstance(said, Mapping):
            return tuple(_references(said)) if self.unknown else ()  # it looks classes up by name, and finds none here
        kind = str(self.config.get("model_type"))
        if not self.unknown and not CONFIG_MAPPING[kind].__module__.startswith("transformers."):
            return ()  # what a library registered goes before what a folder says
        return tuple(_references([said.get(name) for name in OPENED]))

    @cached_property
    def tokenizer(self) -> str:
        """MODULE.CLASS of the tokenizer that transformers takes where the code is trusted; "" where the folder names none."""
        said = self.words.get("auto_map")
        found = said.get("AutoTokenizer") if isinstance(said, Mapping) else said
        pair = found[:2] if isinstance(found, list) else [found]  # [slow, fast]
        return next((one for one in reversed(pair) if isinstance(one, str) and one), "")

    @property
    def named(self) -> tuple[str, ...]:
        """Every MODULE.CLASS that would be run."""
        return (*self.model, *([self.tokenizer] if self.tokenizer else ()))


def code_files(folder: Path) -> list[Path]:
    """The files of code at the top of a folder."""
    return sorted(p for p in folder.glob("*.py") if p.is_file())


def unasked(label: str, code: OwnCode) -> TiterError:
    """The refusal of a model that needs code which nobody asked for."""
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
    """Of a model whose code is to be run; its tokenizer is in the folder `words`.

    Errors: code that lies elsewhere, or nowhere; a way of generating of its own.
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
    """Every MODULE.CLASS in an auto_map, whose values may be lists."""
    if isinstance(said, str):
        yield said
    elif isinstance(said, Mapping | list):
        for one in said.values() if isinstance(said, Mapping) else said:
            yield from _references(one)


@contextmanager
def apart() -> Iterator[None]:
    """Inside, transformers knows no class that came from a folder's code, whatever was opened before; what comes in is forgotten.

    It would give a class that one folder registered to the next folder of that type or configuration, though its code may differ.
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
    """Take out, and return, what came from a folder's code."""
    found = {key: value for key, value in registered.items() if _of_a_folder(key) or _of_a_folder(value)}
    for key in found:
        del registered[key]
    return found


def _of_a_folder(kind: Any) -> bool:
    """Whether transformers made a class (or one of several) of the code in a folder."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return any(str(getattr(one, "__module__", "")).startswith("transformers_modules.") for one in kinds)
