"""Measures how fast the command line starts (`titer --help` and `titer list`), and the size of what is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sysconfig
from functools import partial
from pathlib import Path

from _common import UPPER, finish, interleaved, median

ROUNDS = 9
LIMITS = {"help_seconds": (UPPER, 0.5), "list_seconds": (UPPER, 1.5)}


def run(*arguments: str) -> None:
    """Runs this environment's `titer` with the arguments and drops its output. A failure ends the benchmark."""
    script = Path(sysconfig.get_path("scripts")) / "titer"
    subprocess.run([script, *arguments], check=True, stdout=subprocess.DEVNULL)


def installed_megabytes() -> float:
    """Returns the size of all files in the environment's site-packages, in MB (10^6 bytes)."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    files = (Path(place, name) for folder in folders for place, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files) / 1e6


def core_dependencies() -> list[str]:
    """Returns the names of the packages that titer requires without extras."""
    stated = importlib.metadata.requires("titer") or []
    return [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in stated if not re.search(r"\bextra\b", line.partition(";")[2])]


def main() -> None:
    seconds = interleaved({"help": partial(run, "--help"), "list": partial(run, "list")}, ROUNDS)
    names = core_dependencies()
    megabytes = installed_megabytes()
    print(f"installed: {megabytes:,.0f} MB in site-packages; {len(names)} core dependencies: {', '.join(names)}")
    numbers = {
        "help_seconds": median(seconds["help"]),
        "list_seconds": median(seconds["list"]),
        "installed_megabytes": megabytes,
        "core_dependencies": len(names),
    }
    finish("startup", numbers, LIMITS)


if __name__ == "__main__":
    main()
