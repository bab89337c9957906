"""The study's claims: every statistic declared beforehand as effect minus control, judged over seeds. L6.

Thresholds follow section 11 of the specification (its acceptance checks), which were set before this study was built.
A claim is drawn from the seeds whose base learned the task and whose tuned models it speaks of were tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from titer.core.claims import Claim, Statement, settle
from titer.studies.jain2024.evidence import Evidence, Measured, not_tuned, unlearned

MECHANISM = "arXiv 2407.10264"


class Declared(NamedTuple):
    """A statement, the models it speaks of, the tables it needs and how one seed's value is computed."""

    stated: Statement
    models: tuple[str, ...]
    needs: tuple[str, ...]
    value: Callable[[Evidence], Measured | None]


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


def settled(declared: Sequence[Declared], evidence: Sequence[Evidence]) -> list[Claim]:
    """Every claim whose tables were measured."""
    return [_settled(one, evidence) for one in declared if all(e.has(*one.needs) for e in evidence)]


def _settled(one: Declared, evidence: Sequence[Evidence]) -> Claim:
    faults, values, seeds = [], [], []
    for e in evidence:
        fault = unlearned(e) or not_tuned(e, one.models)
        found = None if fault else one.value(e)
        if found is None:
            faults.append(fault or f"seed {e.seed}: too few inputs for the statistic")
        else:
            values.append(found)
            seeds.append(e.seed)
    dropped = ". ".join(faults)
    if not values:
        nothing = Evidence(evidence[0].seed, {}).weights_only(float("nan"), float("nan"))
        return settle(one.stated, [nothing.effect], float("nan"), [evidence[0].seed], failed=dropped)
    control = sum(v.control for v in values) / len(values)
    notes = [dropped, *_told(values, seeds)]
    if len(seeds) > 1 or len(evidence) > 1:
        notes.insert(0, "by seed " + ", ".join(f"{v.effect.value:.3g}" for v in values))
    return settle(one.stated, [v.effect for v in values], control, seeds, note="; ".join(note for note in notes if note))


def _told(values: Sequence[Measured], seeds: Sequence[int]) -> list[str]:
    """What the seeds add in words, each under its number unless they all say the same."""
    different = dict.fromkeys(v.note for v in values)
    if len(different) == 1:
        return list(different)
    return [f"seed {seed}: {v.note}" for seed, v in zip(seeds, values, strict=True) if v.note]
