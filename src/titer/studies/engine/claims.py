"""A study's claims from what its seeds found: each row's effect minus its control, settled over seeds. L7."""

from __future__ import annotations

from collections.abc import Sequence

from titer.core.claims import SEEDS_FOR_A_VERDICT, Claim, Statement
from titer.studies import claims
from titer.studies.claims import Declared, Measured
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found, UnsaidError


def settled(rows: Sequence[Row], found: Sequence[Found], source: str) -> list[Claim]:
    """Every claim whose tables were measured; a seed that says nothing of it gives its reason.

    With too few seeds for a verdict over them, of one base each, terms that are made of samples are resampled over inputs.
    """
    few = len({one.seed for one in found}) == len(found) < SEEDS_FOR_A_VERDICT
    return claims.settled([_declared(row, source, few) for row in rows], found)


def _declared(row: Row, source: str, few: bool) -> Declared:
    stated = Statement(
        name=row.name,
        statement=row.statement,
        source=", ".join(part for part in (row.source or source, row.where) if part),
        statistic=row.statistic,
        control=row.against,
        margin=row.margin,
        paper_value=row.paper,
    )

    def value(one: Found) -> Measured | str:
        if why := row.unless(one) if row.unless else "":
            return why
        net = row.net
        try:
            effect = net.over_inputs(one, row.drawn or row.name) if few else net.read(one)
            return Measured(effect, row.control.at(one), row.note(one) if row.note else "")
        except UnsaidError as told:
            return str(told)

    return Declared(stated, row.models, row.needs, value)
