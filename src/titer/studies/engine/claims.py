"""A study's claims from what its seeds found: each row's effect minus its control, settled over seeds. L7."""

from __future__ import annotations

from collections.abc import Sequence

from titer.core.claims import Claim, Statement
from titer.studies import claims
from titer.studies.claims import Declared, Measured
from titer.studies.engine.declare import Row
from titer.studies.engine.found import Found


def settled(rows: Sequence[Row], found: Sequence[Found], source: str) -> list[Claim]:
    """Every claim whose tables were measured; a seed that says nothing of it gives its reason."""
    return claims.settled([_declared(row, source) for row in rows], found)


def _declared(row: Row, source: str) -> Declared:
    stated = Statement(
        name=row.name,
        statement=row.statement,
        source=f"{row.source or source}, {row.where}",
        statistic=row.statistic,
        control=row.against,
        margin=row.margin,
        paper_value=row.paper,
    )

    def value(one: Found) -> Measured | str:
        if why := row.unless(one) if row.unless else "":
            return why
        effect = (row.effect - row.control).read(one)
        return Measured(effect, row.control.read(one).value, row.note(one) if row.note else "")

    return Declared(stated, row.models, row.needs, value)
