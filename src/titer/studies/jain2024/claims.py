"""How the mechanistic study declares a claim. L7.

Thresholds follow section 11 of the specification (its acceptance checks), which were set before this study was built.
A claim is drawn from the seeds whose base learned the task and whose tuned models it speaks of were tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from titer.core.claims import Statement
from titer.studies.claims import Declared, Measured
from titer.studies.jain2024.evidence import Evidence

MECHANISM = "arXiv 2407.10264"


def declare(
    name: str,
    statement: str,
    where: str,
    statistic: str,
    control: str,
    margin: float,
    models: Sequence[str],
    needs: Sequence[str],
    value: Callable[[Evidence], Measured | None],
    paper: str | None = None,
) -> Declared:
    """One claim's declaration; `where` is the figure or section of the paper."""
    stated = Statement(
        name=name,
        statement=statement,
        source=f"{MECHANISM}, {where}",
        statistic=statistic,
        control=control,
        margin=margin,
        paper_value=paper,
    )
    return Declared(stated, tuple(models), tuple(needs), value)
