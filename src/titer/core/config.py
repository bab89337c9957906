"""Records with strict keys, content keys, and a description of the environment.

A record is a frozen pydantic model. Its content key is the sha256 of its canonical JSON.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from titer.core.errors import TiterError, nearest, visible

PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "numpy", "scipy", "pandas")


class Record(BaseModel):
    """The base of every configuration: frozen and validated; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


R = TypeVar("R", bound=Record)


def build(record: type[R], values: Mapping[str, Any], what: str) -> R:
    """Builds a `record` from untrusted `values`. Errors: one readable TiterError with all faults, in which `what` names the record."""
    try:
        return record(**{str(name): value for name, value in values.items()})
    except ValidationError as error:
        fault = "; ".join(_fault(record, item) for item in error.errors())
    except (TypeError, RecursionError) as error:  # an abstract record; nesting without end
        fault = visible(str(error), 160)
    raise TiterError(f"{what}: {fault}", next_step=f"its settings are {', '.join(record.model_fields) or 'none'}.")


def _fault(record: type[Record], item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        close = nearest(name, record.model_fields)
        return f"unknown setting {visible(name, 80)!r}" + (f", did you mean {close!r}?" if close else "")
    return f"{visible(name, 80) or 'value'}: {visible(item['msg'])} (given {_shown(item.get('input'))})"


def _shown(value: Any) -> str:
    try:
        return visible(repr(value), 80)
    except (ValueError, RecursionError):  # a number of thousands of digits; nesting without end
        return f"a {type(value).__name__} too large to show"


def parse_settings(pairs: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Parses settings: `["rho=2", "name=x"]` -> `{"rho": 2, "name": "x"}`. Values are JSON, or else text. Errors: not NAME=VALUE."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise TiterError(f"{option} {visible(pair, 80)!r} is not NAME=VALUE", next_step=f"write for example {option} beta=0.1")
        try:
            settings[name] = json.loads(text)
        except (ValueError, RecursionError):  # not JSON: a bare word is a string
            settings[name] = text
    return settings


def canonical(value: Any) -> str:
    """Writes a value as JSON with sorted keys and without spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no canonical form")


def digest(value: Any, length: int = 16) -> str:
    """Returns a JSON-like value's content key: the first `length` hex digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def environment() -> dict[str, str]:
    """Describes the environment for a run's provenance: versions, processor and number of threads. It has no path and no host name.

    Threads and processor decide the last bits of each training step, and such small differences grow in training.
    """
    found = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    for name in ("titer", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["git"] = git_state()
    return found | made_by()


def made_by() -> dict[str, str]:
    """Returns what decides the last bits of a computation here: the processor's model and this process's number of threads."""
    import torch  # noqa: PLC0415  code that only reads settings need not import torch

    return {"processor": processor(), "threads": str(torch.get_num_threads())}


def processor(listed: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's model as the system names it, or its family if the system names no model."""
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine() or "unknown"  # processor() starts a program


def git_state() -> str:
    """Returns the commit of the source tree, with `+changes` if files differ from it; "" outside of a git checkout."""
    here = Path(__file__).parent
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
