"""Records with strict keys, content keys, and what the environment was.

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
    """Base of every configuration: frozen, validated, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


R = TypeVar("R", bound=Record)


def build(record: type[R], values: Mapping[str, Any], what: str) -> R:
    """A `record` from untrusted `values`; every fault becomes one readable TiterError."""
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
    """`["rho=2", "name=x"]` -> `{"rho": 2, "name": "x"}`; values are read as JSON where they are JSON."""
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
    """JSON with sorted keys and no spaces; equal values give equal text."""
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
    """Content key of a JSON-like value: the first `length` hex digits of its sha256."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def environment() -> dict[str, str]:
    """What computes, for a run's provenance: versions, processor, this process's threads (no path, no host name).

    Threads and processor decide a trained model's last bits, and so, by chaos, more than those.
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
    """What decides the last bits of what is computed here: the processor's model, this process's threads."""
    import torch  # noqa: PLC0415  what only reads settings need not wait for it

    return {"processor": processor(), "threads": str(torch.get_num_threads())}


def processor(listed: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model, as the system calls it; its family where no model is told."""
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*names, platform.processor(), platform.machine()]), "unknown")


def git_state() -> str:
    """Commit of the source tree, with `+changes` if it is dirty; "" outside a checkout."""
    here = Path(__file__).parent
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
