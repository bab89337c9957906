"""Helpers shared by the benchmarks: medians, interleaved timing, the closing JSON line and exit status."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

LOWER, UPPER = "at least", "at most"
Limit = tuple[str, float]


def timed(work: Callable[[], Any]) -> float:
    """Returns the wall time of one call, in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleaved(works: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Returns the seconds of every call by name. Calls take turns (A B A B ...), so that other load on the machine affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm + rounds):
        for name, work in works.items():
            taken = timed(work)
            if turn >= warm:
                seconds[name].append(taken)
    return seconds


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def rounded(value: Any) -> Any:
    """Rounds every float to four significant digits, within lists and mappings too."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def within(value: float, limit: Limit) -> bool:
    """Tells whether a number is within its limit; NaN never is."""
    side, bound = limit
    return value >= bound if side == LOWER else value <= bound


def finish(name: str, numbers: Mapping[str, Any], limits: Mapping[str, Limit]) -> NoReturn:
    """Prints the benchmark's last line (JSON) and exits: status 0 if every limit is kept, 1 if not.

    `limits` maps names of `numbers` to ("at least" or "at most", bound).
    """
    kept = {number: within(numbers[number], limit) for number, limit in limits.items()}
    ok = all(kept.values())
    shown = {number: f"{side} {bound:g}" for number, (side, bound) in limits.items()}
    missed = [number for number, held in kept.items() if not held]
    print(json.dumps({"benchmark": name, **rounded(numbers), "limits": shown, "missed": missed, "ok": ok}), flush=True)
    sys.exit(0 if ok else 1)
