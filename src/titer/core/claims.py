"""A claim: one statistic that is declared before any number is seen, as effect minus control, with a margin and a verdict.

The claim is supported if the statistic's whole 95 % interval is above the margin, not supported if it is all below, else inconclusive. The
unit of observation is a base: an independently pretrained model of a world (a seed). The interval is Student's t interval over one
world's bases, or over the means of several worlds. A single base has no interval, since rounding alone moves a trained base further than
an interval over its inputs would show. With fewer than three worlds the verdict is provisional. If a precondition fails, the claim is
not testable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from titer.core.config import Record
from titer.core.run import write_text
from titer.core.stats import Interval, over_bases

Verdict = Literal["supported", "not supported", "inconclusive", "not testable"]
SEEDS_FOR_A_VERDICT = 3
WHY = {
    "supported": "the interval lies wholly above the margin",
    "not supported": "the interval lies wholly below the margin",
    "inconclusive": "the interval includes the margin",
}
ALONE = "one base has no interval: ask for more (--bases, --seeds)"
UNMADE = "the statistic is not a number on every base"


class Control(Record):
    """What the effect is compared with: its name, and its value in the statistic's unit."""

    name: str
    value: float | None


class Claim(Record):
    """One claim as in claims.json; `value` is effect minus control."""

    name: str
    statement: str
    source: str
    paper_value: str | None
    statistic: str
    value: float | None
    interval: tuple[float, float] | None
    seeds: tuple[int, ...]
    control: Control
    margin: float
    verdict: Verdict
    provisional: bool
    reason: str


class Statement(Record):
    """The part of a claim that is declared before any number is seen."""

    name: str
    statement: str
    source: str
    statistic: str
    control: str
    margin: float
    paper_value: str | None = None


def decide(interval: Interval, margin: float) -> Verdict:
    """Compares an interval with a margin and returns the verdict. An interval that is not finite is inconclusive."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "inconclusive"
    if interval.low > margin:
        return "supported"
    return "not supported" if interval.high < margin else "inconclusive"


def settle(stated: Statement, worlds: Mapping[int, Sequence[float]], control: float, failed: str = "", note: str = "") -> Claim:
    """Decides a statement and returns it as a claim. `worlds`: seed -> effect minus control for each base of that world.

    `failed` names a precondition that does not hold; `note` is added to the reason.
    """
    measured, spread = over_bases(list(worlds.values()))
    finite = math.isfinite(measured.low) and math.isfinite(measured.high)
    verdict = decide(measured, stated.margin)
    told = [WHY[verdict] if finite else ALONE if sum(map(len, worlds.values())) < 2 else UNMADE, _made(worlds, spread), note]
    if failed:
        verdict, told = "not testable", [failed, note]
    return Claim(
        **stated.model_dump(include={"name", "statement", "source", "paper_value", "statistic", "margin"}),
        value=None if failed or not math.isfinite(measured.value) else measured.value,
        interval=(measured.low, measured.high) if finite and not failed else None,
        seeds=tuple(worlds),
        control=Control(name=stated.control, value=control if math.isfinite(control) and not failed else None),
        verdict=verdict,
        provisional=len(worlds) < SEEDS_FOR_A_VERDICT,
        reason=". ".join(part for part in told if part),
    )


def _made(worlds: Mapping[int, Sequence[float]], spread: float) -> str:
    """Says in words what the interval is taken over, and how much the bases of one world differ."""
    counts = sorted({len(bases) for bases in worlds.values()})
    if counts[-1] < 2:
        return f"Over {len(worlds)} worlds, one base each" if len(worlds) > 1 else ""
    bases = " to ".join(map(str, counts)) + " bases"
    made = f"Over {bases} of one world" if len(worlds) == 1 else f"Over the means of {len(worlds)} worlds, {bases} each"
    return f"{made}, which lie {spread:.2g} apart (standard deviation)"


def write_claims(path: Path, claims: Sequence[Claim]) -> None:
    """Writes claims as claims.json, with the keys of `Claim`."""
    write_text(path, json.dumps({"claims": [c.model_dump(mode="json") for c in claims]}, indent=1) + "\n")


def read_claims(path: Path) -> tuple[Claim, ...]:
    """Reads the claims of a claims.json."""
    return tuple(Claim(**one) for one in json.loads(path.read_text(encoding="utf-8"))["claims"])
