"""A claim: one statistic declared beforehand, as effect minus control, with a margin and a verdict.

Supported if the 95 % interval lies wholly above the margin, not supported if wholly below, else
inconclusive. The unit is a base: an independently pretrained model of a world (a seed); the interval is Student's over one world's
bases, or over the means of several worlds. With fewer than three worlds the verdict is provisional. Where a world has one base, and
there are fewer than three, the interval is over inputs: it does not hold how far rounding alone moves a trained base.
A precondition that fails makes the claim not testable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from titer.core.config import Record
from titer.core.run import write_text
from titer.core.stats import Interval, mean_over_inputs, over_bases, t_interval

Verdict = Literal["supported", "not supported", "inconclusive", "not testable"]
SEEDS_FOR_A_VERDICT = 3
WHY = {
    "supported": "the interval lies wholly above the margin",
    "not supported": "the interval lies wholly below the margin",
    "inconclusive": "the interval holds the margin, or could not be made",
}


class Control(Record):
    """What the effect is measured against: its name and its value in the statistic's own unit."""

    name: str
    value: float | None


class Claim(Record):
    """One claim as it stands in claims.json; `value` is effect minus control."""

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
    """What is declared before any number is seen."""

    name: str
    statement: str
    source: str
    statistic: str
    control: str
    margin: float
    paper_value: str | None = None


def decide(interval: Interval, margin: float) -> Verdict:
    """The verdict of an interval against a margin; an interval that is not finite decides nothing."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "inconclusive"
    if interval.low > margin:
        return "supported"
    return "not supported" if interval.high < margin else "inconclusive"


def settle_over_bases(stated: Statement, worlds: Mapping[int, Sequence[float]], control: float, failed: str = "", note: str = "") -> Claim:
    """Judge a statement by effect minus control of every base, world by world (`stats.over_bases`)."""
    measured, spread = over_bases(list(worlds.values()))
    counts = {len(bases) for bases in worlds.values()}
    bases = f"{min(counts)} to {max(counts)} bases" if len(counts) > 1 else f"{counts.pop()} bases"
    made = f"Over {bases} of one world" if len(worlds) == 1 else f"Over the means of {len(worlds)} worlds, {bases} each"
    told = f"{made}, which lie {spread:.2g} apart (standard deviation)" if math.isfinite(spread) else made
    few = len(worlds) < SEEDS_FOR_A_VERDICT
    return _claim(stated, measured, control, list(worlds), few, failed, ". ".join(part for part in (told, note) if part))


def settle(
    stated: Statement, per_seed: Sequence[Interval], control: float, seeds: Sequence[int], failed: str = "", note: str = ""
) -> Claim:
    """Judge a statement by one effect-minus-control interval (over inputs) for each seed.

    With three or more seeds the interval is Student's over the seeds' values, else that of the seeds' mean
    over inputs. `failed` names a precondition that does not hold; `note` is added to the reason.
    """
    if not per_seed or len(per_seed) != len(seeds):
        raise ValueError(f"claim {stated.name}: {len(per_seed)} values for {len(seeds)} seeds")
    provisional = len(seeds) < SEEDS_FOR_A_VERDICT
    measured = mean_over_inputs(per_seed) if provisional else t_interval([one.value for one in per_seed])
    return _claim(stated, measured, control, seeds, provisional, failed, note)


def _claim(stated: Statement, measured: Interval, control: float, seeds: Sequence[int], provisional: bool, failed: str, note: str) -> Claim:
    verdict = decide(measured, stated.margin)
    reason = WHY[verdict]
    if failed:
        verdict, reason = "not testable", failed
    finite = math.isfinite(measured.low) and math.isfinite(measured.high) and not failed
    return Claim(
        **stated.model_dump(include={"name", "statement", "source", "paper_value", "statistic", "margin"}),
        value=None if failed or not math.isfinite(measured.value) else measured.value,
        interval=(measured.low, measured.high) if finite else None,
        seeds=tuple(seeds),
        control=Control(name=stated.control, value=control if math.isfinite(control) and not failed else None),
        verdict=verdict,
        provisional=provisional,
        reason=". ".join(part for part in (reason, note) if part),
    )


def write_claims(path: Path, claims: Sequence[Claim]) -> None:
    """claims.json, with the keys of `Claim`."""
    write_text(path, json.dumps({"claims": [c.model_dump(mode="json") for c in claims]}, indent=1) + "\n")


def read_claims(path: Path) -> tuple[Claim, ...]:
    """The claims of a claims.json."""
    return tuple(Claim(**one) for one in json.loads(path.read_text(encoding="utf-8"))["claims"])
