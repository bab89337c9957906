"""Code that a model brings in its folder (transformers: auto_map, trust_remote_code): who needs it, when it is refused, what is kept apart.

It is run only where its user asked for it and transformers does not know the architecture. What may run are the *.py files at the
top of the folder, which the model's key covers; whatever would come from elsewhere is refused. Nothing here runs any of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from titer.core.errors import TiterError, visible
from titer.models.stored import read_json

OPENED = ("AutoConfig", "AutoModelForCausalLM")  # of an auto_map in config.json: without these nothing opens
HERE = re.compile(r"\w[\w-]*\.\w+")  # MODULE.CLASS, in a file at the top of the folder
GENERATE = Path("custom_generate", "generate.py")  # transformers runs it in loading, and answers by it


def needs_code(config: Mapping[str, Any]) -> bool:
    """Whether a model of this configuration opens by its folder's code alone: transformers, as it is installed, does not know it."""
    if not config.get("auto_map"):
        return False
    from transformers import CONFIG_MAPPING  # noqa: PLC0415

    kind = str(config.get("model_type"))
    return kind not in CONFIG_MAPPING or _of_a_folder(CONFIG_MAPPING[kind])  # a model that was opened before may have registered itself


def code_files(folder: Path) -> list[Path]:
    """The files of code at the top of a folder."""
    return sorted(p for p in folder.glob("*.py") if p.is_file())


def check_code(label: str, config: Mapping[str, Any], folders: Sequence[Path], trusted: bool) -> None:
    """Of a model that needs its own code. Errors: nobody asked for it; it lies elsewhere, or nowhere; it would generate in its own way."""
    if not trusted:
        kind = visible(str(config.get("model_type")), 60)
        raise TiterError(
            f"{label} ({kind}) needs code of its own (auto_map, trust_remote_code), which Titer does not run unless it is asked to",
            expected="an architecture that transformers knows",
            next_step="update transformers if it knows the architecture by now, or save the model again in a class of transformers. "
            "Where you trust its author and have read that code: --trust-remote-code (audit, evaluate, align, finetune, study, lm-eval, "
            "inspect) runs it on this machine.",
        )
    for folder in folders:
        for name in ("config.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                for reference in _references(read_json(folder / name).get("auto_map")):
                    _check_here(label, reference)
        if (folder / GENERATE).is_file():
            raise TiterError(
                f"{label} brings its own way of generating ({GENERATE.as_posix()}): answers would not be decoded as the report says",
                next_step="give a copy of its folder without custom_generate.",
            )
    said = config["auto_map"]
    for reference in _references([said.get(name) for name in OPENED] if isinstance(said, Mapping) else said):
        file = f"{reference.partition('.')[0]}.py"
        if not (folders[-1] / file).is_file():
            raise TiterError(f"{label} lacks {visible(file, 120)}, the code that its auto_map names", next_step="fetch it again, whole.")


def _check_here(label: str, reference: str) -> None:
    """Errors: a reference to code outside of the folder."""
    if "--" in reference or not HERE.fullmatch(reference):
        raise TiterError(
            f"{label} takes code from outside of its folder ({visible(reference, 120)} in auto_map): it would be run unseen",
            expected="code in files beside the weights",
            next_step="fetch that code, read it, put its files into a copy of the folder, and name them in auto_map as MODULE.CLASS.",
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
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, TOKENIZER_MAPPING  # noqa: PLC0415

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
