"""Measures the wall time of `titer demo` in an empty folder of runs."""

from __future__ import annotations

import subprocess
import sysconfig
import tempfile
from pathlib import Path

from _common import UPPER, finish, timed

LIMITS = {"demo_seconds": (UPPER, 360.0), "failed": (UPPER, 0.0)}


def main() -> None:
    statuses: list[int] = []
    with tempfile.TemporaryDirectory() as runs:
        command = [str(Path(sysconfig.get_path("scripts"), "titer")), "demo", "--runs", runs]
        seconds = timed(lambda: statuses.append(subprocess.run(command, check=False).returncode))
    finish("demo", {"demo_seconds": seconds, "failed": int(statuses != [0])}, LIMITS)


if __name__ == "__main__":
    main()
