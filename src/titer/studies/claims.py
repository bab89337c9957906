"""How studies state and settle claims: every statistic declared beforehand as effect minus control, judged over seeds. L7.

A claim is drawn from the seeds whose preconditions hold (`Evidence.fault`), and says which did not and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from titer.core.claims import Claim, Statement, settle, settle_over_bases
from titer.core.stats import Interval


@dataclass(frozen=True)
class Measured:
    """One claim's statistic on one seed: effect minus control, and the control's own value."""

    effect: Interval
    control: float
    note: str = ""


class Evidence(Protocol):
    """What was measured on one seed."""

    @property
    def seed(self) -> int: ...

    def has(self, *names: str) -> bool:
        """Whether these tables were measured."""

    def fault(self, models: Sequence[str]) -> str:
        """Why this seed says nothing of these models; "" if it does."""


class Declared(NamedTuple):
    """A statement, the models it speaks of, the tables it needs and how one seed's value is computed."""

    stated: Statement
    models: tuple[str, ...]
    needs: tuple[str, ...]
    value: Callable[[Any], Measured | str | None]  # a sentence says why there is none


def settled(declared: Sequence[Declared], evidence: Sequence[Evidence]) -> list[Claim]:
    """Every claim whose tables were measured on some seed; a seed of which nothing could be measured says why."""
    return [_settled(one, evidence) for one in declared if any(e.has(*one.needs) for e in evidence)]


def _settled(one: Declared, evidence: Sequence[Evidence]) -> Claim:
    faults, values, units = [], [], []
    for e in evidence:
        fault = e.fault(one.models) or ("" if e.has(*one.needs) else f"{_unit(e)}: not measured")
        found = fault or one.value(e)
        if isinstance(found, Measured):
            values.append(found)
            units.append(e)
        else:
            faults.append(fault or f"{_unit(e)}: {found or 'too few inputs for the statistic'}")
    several = len({e.seed for e in evidence}) < len(evidence)
    alone = several and len({e.seed for e in evidence}) == 1
    dropped = ". ".join(faults)
    if not values:
        return settle(one.stated, [Interval(math.nan, math.nan, math.nan)], math.nan, [evidence[0].seed], failed=dropped)
    control = sum(v.control for v in values) / len(values)
    notes = [dropped, *_told(values, [f"base {getattr(e, 'base', 0)}" if alone else _unit(e) for e in units])]
    if len(values) > 1 or len(evidence) > 1:
        notes.insert(0, f"by {'base' if several else 'seed'} " + ", ".join(f"{v.effect.value:.3g}" for v in values))
    note = "; ".join(note for note in notes if note)
    if several:
        worlds = {
            seed: [v.effect.value for v, e in zip(values, units, strict=True) if e.seed == seed] for seed in {e.seed: 0 for e in units}
        }
        return settle_over_bases(one.stated, worlds, control, note=note)
    return settle(one.stated, [v.effect for v in values], control, [e.seed for e in units], note=note)


def _unit(e: Evidence) -> str:
    base = getattr(e, "base", 0)
    return f"seed {e.seed}, base {base}" if base else f"seed {e.seed}"


def _told(values: Sequence[Measured], units: Sequence[str]) -> list[str]:
    """What the seeds add in words, each under its number unless they all say the same."""
    different = dict.fromkeys(v.note for v in values)
    if len(different) == 1:
        return list(different)
    return [f"{unit}: {v.note}" for unit, v in zip(units, values, strict=True) if v.note]
