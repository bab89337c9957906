"""Runs the benchmarks one after the other, each in its own process, the demo last, and prints one JSON object with all results.

A benchmark of `NEEDS` runs only where its library is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

THREADS = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000")}  # as the command line sets it
NAMES = ("step", "dpo_step", "vaccine_step", "sampler", "generation", "startup", "pair", "audit", "peers", "places", "demo")
NEEDS = {"peers": "trl", "places": "ray"}


def run(name: str) -> dict[str, Any]:
    """Runs a benchmark and returns its last line, read as JSON; `ok` is False if it broke off or missed a limit."""
    file = Path(__file__).with_name(f"{name}.py")
    done = subprocess.run([sys.executable, file], stdout=subprocess.PIPE, text=True, check=False, env=os.environ | THREADS)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    print(last or f"{name}: no output", flush=True)
    try:
        found: dict[str, Any] = json.loads(last)
    except ValueError:  # it ended before its last line
        return {"benchmark": name, "ok": False, "status": done.returncode}
    return {**found, "ok": bool(found["ok"]) and done.returncode == 0}


def main() -> None:
    found = {name: run(name) for name in NAMES if name not in NEEDS or find_spec(NEEDS[name])}
    ok = all(one["ok"] for one in found.values())
    print(json.dumps({"benchmarks": found, "ok": ok}), flush=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
