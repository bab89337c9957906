"""A study's claims from what its bases found: each row's effect minus its control, settled over bases and worlds. L7.

A claim is drawn from the bases whose preconditions hold (`Found.fault`), and says which did not and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from titer.core.claims import SEEDS_FOR_A_VERDICT, Claim, Statement, settle, settle_over_bases
from titer.core.stats import Interval
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found, UnsaidError

NOTHING = Interval(math.nan, math.nan, math.nan)


class Measured(NamedTuple):
    """One claim's statistic on one base: effect minus control, the control's own value, and what is told beside it."""

    effect: Interval
    control: float
    note: str


def settled(rows: Sequence[Row], found: Sequence[Found], source: str) -> list[Claim]:
    """Every claim whose tables were measured; a base that says nothing of it gives its reason.

    With too few seeds for a verdict over them, of one base each, terms that are made of samples are resampled over inputs.
    """
    few = len({one.seed for one in found}) == len(found) < SEEDS_FOR_A_VERDICT
    return [_settled(row, found, source, few) for row in rows if any(one.has(*row.needs) for one in found)]


def _settled(row: Row, found: Sequence[Found], source: str, few: bool) -> Claim:
    said = [(one, _said(row, one, few)) for one in found]
    values = [(one, value) for one, value in said if isinstance(value, Measured)]
    dropped = ". ".join(why for _, why in said if isinstance(why, str))
    stated = _stated(row, source)
    if not values:
        return settle(stated, [NOTHING], math.nan, [found[0].seed], failed=dropped)
    several, worlds = len({one.seed for one in found}) < len(found), dict.fromkeys(one.seed for one in found)
    names = [f"base {one.base}" if several and len(worlds) == 1 else one.unit for one, _ in values]
    notes = [dropped, *_told([value for _, value in values], names)]
    if len(found) > 1:
        notes.insert(0, f"by {'base' if several else 'seed'} " + ", ".join(f"{value.effect.value:.3g}" for _, value in values))
    control = sum(value.control for _, value in values) / len(values)
    note = "; ".join(note for note in notes if note)
    if several:
        bases = {seed: [value.effect.value for one, value in values if one.seed == seed] for seed in worlds}
        return settle_over_bases(stated, {seed: own for seed, own in bases.items() if own}, control, note=note)
    return settle(stated, [value.effect for _, value in values], control, [one.seed for one, _ in values], note=note)


def _said(row: Row, one: Found, few: bool) -> Measured | str:
    """A base's value of a claim, or why it has none."""
    if fault := one.fault(row.models) or ("" if one.has(*row.needs) else f"{one.unit}: not measured"):
        return fault
    if why := row.unless(one) if row.unless else "":
        return f"{one.unit}: {why}"
    try:
        effect = row.net.over_inputs(one, row.drawn or row.name) if few else row.net.read(one)
        return Measured(effect, row.control.at(one), row.note(one) if row.note else "")
    except UnsaidError as told:
        return f"{one.unit}: {told}"


def _stated(row: Row, source: str) -> Statement:
    return Statement(
        name=row.name,
        statement=row.statement,
        source=", ".join(part for part in (row.source or source, row.where) if part),
        statistic=row.statistic,
        control=row.against,
        margin=row.margin,
        paper_value=row.paper,
    )


def _told(values: Sequence[Measured], names: Sequence[str]) -> list[str]:
    """What the bases add in words, each under its name unless they all say the same."""
    different = dict.fromkeys(value.note for value in values)
    if len(different) == 1:
        return list(different)
    return [f"{name}: {value.note}" for name, value in zip(names, values, strict=True) if value.note]
