"""Finds and loads plug-ins. Each one is a file: a method, attack, judge, probe or study has its file's name. There is no registry.

A plug-in is named by a file of the package or by the path of a user's .py file. A large study is a folder with its class in `study.py`.
Listing plug-ins runs no code.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TypeVar

from pydantic import BaseModel

from titer.core.config import Record, build, digest
from titer.core.errors import TiterError, unknown, visible

T = TypeVar("T")
R = TypeVar("R", bound=Record)
KINDS = {  # plural -> singular
    "methods": "method",
    "repairs": "repair",
    "decoders": "decoder",
    "attacks": "attack",
    "judges": "judge",
    "probes": "probe",
    "studies": "study",
}
NO_EFFECT = {
    "methods": "Settings that equal plain SFT",
    "repairs": "Settings that change nothing",
    "decoders": "Settings that equal plain decoding",
}
PACKAGE = Path(__file__).parent.parent


def names(package: str) -> dict[str, str]:
    """Lists a sub-package's plug-ins (such as "methods"): name -> first line of its docstring. Nothing is imported."""
    return {name: summary(file) for name, file in _files(package).items()}


def _files(package: str) -> dict[str, Path]:
    """Name -> file of a package's plug-ins, sorted by name."""
    folder = PACKAGE / package
    found = {p.stem: p for p in folder.glob("*.py") if p.stem not in ("__init__", "base")}
    if package == "studies":  # that folder has other files too
        found |= {p.parent.name: p for p in folder.glob("*/study.py")}
        found = {name: p for name, p in found.items() if "(Study):" in p.read_text(encoding="utf-8")}
    return dict(sorted(found.items()))


def listed(kind: str | None = None) -> dict[str, dict[str, str]]:
    """Lists one kind of plug-in, or all: kind -> name -> first line of its docstring. Errors: an unknown kind."""
    if kind is not None and kind not in KINDS:
        unknown("kind", kind, KINDS)
    return {one: names(one) for one in ((kind,) if kind else KINDS)}


def summary(file: Path) -> str:
    """Returns the first line of a module's docstring, without importing the module."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n")[0]


def module(package: str, name: str) -> ModuleType:
    """Imports a plug-in's module, by its name or by the path of a .py file. Errors: an unknown name; a file that does not load."""
    if name.endswith(".py"):
        return _from_file(Path(name))
    files = _files(package)
    if name not in files:
        unknown(KINDS[package], name, files, "or give the path of a .py file.")
    return importlib.import_module(".".join(("titer", *files[name].relative_to(PACKAGE).with_suffix("").parts)))


def plugin(package: str, name: str, base: type[T]) -> type[T]:
    """Loads a plug-in: the only class in its file that derives from `base`. Errors: there is none, or several; an abstract class."""
    return _only(module(package, name), name, base)


def beside(package: str, name: str, part: str, base: type[T]) -> type[T] | None:
    """Loads the class in another file of a plug-in's folder, such as a study's `text.py`; None if there is no such file."""
    if not (PACKAGE / package / name / f"{part}.py").is_file():
        return None
    return _only(importlib.import_module(f"titer.{package}.{name}.{part}"), name, base)


def _only(loaded: ModuleType, name: str, base: type[T]) -> type[T]:
    found = [kind for kind in _classes(loaded) if issubclass(kind, base)]
    if len(found) != 1:
        raise TiterError(f"{visible(name, 80)} defines {len(found)} classes derived from {base.__name__}", expected="exactly one")
    if missing := sorted(getattr(found[0], "__abstractmethods__", ())):
        raise TiterError(
            f"{visible(name, 80)}: {found[0].__name__} does not define {', '.join(missing)}", next_step="define what is missing."
        )
    return found[0]


def _classes(loaded: ModuleType) -> list[type]:
    return [value for value in vars(loaded).values() if isinstance(value, type) and value.__module__ == loaded.__name__]


def made(package: str, name: str, base: type[R], settings: Mapping[str, object] = MappingProxyType({})) -> R:
    """Makes a plug-in, by its name, with these settings. Errors: an unknown name or setting, a value out of range."""
    return build(plugin(package, name, base), settings, f"{KINDS[package]} {name}")


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise TiterError(f"there is no file {visible(str(file), 120)!r}", expected="a Python file that defines one class")
    text = hashlib.sha256(file.read_bytes()).hexdigest()
    name = f"titer_file_{digest([str(file.resolve()), text])}.{file.stem}"  # a unique name, so no other module of that name is replaced
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise TiterError(f"{file.name} cannot be loaded as a Python module", expected="a .py file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # pydantic resolves annotations through it
    try:
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TiterError(
            f"{file.name} does not load: {type(error).__name__}: {visible(str(error), 160)}",
            next_step="correct that file, then run the same command again.",
        ) from error
    return loaded


def kinds_of(name: str) -> list[str]:
    """Returns the kinds of plug-in (sub-packages) that have this name; for a .py file's path, the kinds that its classes belong to.

    Errors: an unknown name (the message gives the nearest); a file whose classes belong to no kind.
    """
    if name.endswith(".py"):
        bases = {base.__module__ for kind in _classes(module("", name)) for base in kind.__mro__}
        where = [kind for kind in KINDS if any(base.startswith(f"titer.{kind}.") for base in bases)]
        if not where:
            raise TiterError(
                f"{visible(name, 80)} defines no plug-in",
                expected=f"a class of a {', '.join(KINDS.values())}",
                next_step="see docs/add_a_method.md and its neighbours.",
            )
        return where
    if not (where := [kind for kind in KINDS if name in _files(kind)]):
        unknown("name", name, dict.fromkeys(one for kind in KINDS for one in _files(kind)), "or give the path of a .py file.")
    return where


def shown(name: str) -> str:
    """Describes a name (see `describe`) in every kind that has it. Errors: as `kinds_of`."""
    where = kinds_of(name)
    if len(where) == 1:
        return describe(where[0], name)
    return "\n\n".join(f"{name}, a {KINDS[kind]}\n\n{describe(kind, name)}" for kind in where)


def describe(package: str, name: str) -> str:
    """Describes a plug-in: its docstring, its settings with their defaults, and the data and models that it reads."""
    loaded = module(package, name)
    lines, option = [(loaded.__doc__ or "").strip()], {"decoders": "--decoder-set", "judges": "--judge-set"}.get(package, "--set")
    if package == "studies":  # its records are sizes, which no option sets
        return lines[0]
    for record in (kind for kind in _classes(loaded) if issubclass(kind, BaseModel)):
        fields = record.model_fields
        lines += ["", f"Settings of {name} ({option} NAME=VALUE):" if fields else "It has no settings."]
        lines += [f"  {field} = {info.default!r}  {info.description or ''}".rstrip() for field, info in fields.items()]
        lines += [""] if hasattr(record, "MODELS") else []
        if hasattr(record, "STREAMS"):
            streams = ", ".join(record.STREAMS)
            lines += [f"Streams (--stream NAME=FILE; --data gives train, or preferred and rejected): {streams or 'none'}"]
        if data := getattr(record, "DATA", {}):
            lines += [f"Data (--data FILE): {', '.join(f'{name} ({need})' for name, need in data.items())}"]
        if models := getattr(record, "MODELS", ()):
            lines += [f"Models it needs (--read ROLE=MODEL): {', '.join(models)}"]
        if more := getattr(record, "OPTIONAL", ()):
            lines += [f"Models it may read: {', '.join(more)}"]
        if holds := getattr(record, "HOLDS", 0):
            lines += [f"Memory: {holds} x the model in float32; repairs without this line hold a few parameters at a time"]
        if strength := getattr(record, "STRENGTH", None):
            lines += [f"--strength sets {strength[0]}; --strength grid gives {', '.join(f'{one:g}' for one in strength[1])}"]
        if neutral := getattr(record, "NEUTRAL", ""):
            none = neutral if isinstance(neutral, str) else ", ".join(f"{field}={value}" for field, value in neutral.items())
            lines += [f"{NO_EFFECT[package]}: {none}"]
        if source := getattr(record, "SOURCE", ""):
            lines += [f"Source: {source}; version {getattr(record, 'VERSION', 1)}"]
    return "\n".join(lines)
