"""Settles a study's claims: each claim's effect minus its control on every base, then a verdict over bases and worlds. L7.

A claim uses only the bases whose preconditions hold (`Found.fault`). It names each of the others, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from titer.core.claims import Claim, Statement, settle
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found, UnsaidError


class Measured(NamedTuple):
    """One claim's values on one base: `effect` is the effect minus the control, `control` the control's value alone."""

    base: Found
    effect: float
    control: float
    note: str


def settled(rows: Sequence[Row], found: Sequence[Found], source: str) -> list[Claim]:
    """Settles every claim whose tables were measured on some base. The claim names each base that has no value for it, with the reason."""
    return [_settled(row, found, source) for row in rows if any(one.has(*row.needs) for one in found)]


def _settled(row: Row, found: Sequence[Found], source: str) -> Claim:
    said = [_said(row, one) for one in found]
    values = [one for one in said if isinstance(one, Measured)]
    dropped = ". ".join(one for one in said if isinstance(one, str))
    stated = _stated(row, source)
    if not values:
        return settle(stated, {found[0].seed: [math.nan]}, math.nan, failed=dropped)
    worlds: dict[int, list[float]] = {}
    for one in values:
        worlds.setdefault(one.base.seed, []).append(one.effect)
    several, all_worlds = any(one.base for one in found), len({one.seed for one in found})
    each = f"by {'base' if several else 'seed'} " + ", ".join(f"{one.effect:.3g}" for one in values) if len(found) > 1 else ""
    names = [f"base {one.base.base}" if several and all_worlds == 1 else one.base.unit for one in values]
    note = "; ".join(part for part in (each, dropped, *_told([one.note for one in values], names)) if part)
    return settle(stated, worlds, sum(one.control for one in values) / len(values), note=note)


def _said(row: Row, one: Found) -> Measured | str:
    """Returns a base's values for a claim, or a text that says why it has none."""
    if fault := one.fault(row.models) or ("" if one.has(*row.needs) else f"{one.unit}: not measured"):
        return fault
    if why := row.unless(one) if row.unless else "":
        return f"{one.unit}: {why}"
    try:
        return Measured(one, row.net(one), row.control(one), row.note(one) if row.note else "")
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


def _told(notes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the bases' notes, each after its base's name; a single note without a name if all are equal."""
    if len(set(notes)) == 1:
        return [notes[0]]
    return [f"{name}: {note}" for name, note in zip(names, notes, strict=True) if note]
