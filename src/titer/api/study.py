"""Whole studies, from nothing to a report. L8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from titer.api.running import asked
from titer.core.claims import Claim, read_claims
from titer.core.run import Store
from titer.pipeline import Reporter
from titer.studies.demo import run_demo
from titer.studies.prepare import prepared, swept
from titer.studies.request import DemoRequest, StudyRequest, SweepRequest


@dataclass(frozen=True)
class Studied:
    """A study's page and its answer; `claims` as in claims.json, none on a real model."""

    page: Path
    answer: str
    claims: tuple[Claim, ...]


@asked(DemoRequest)
def demo(order: DemoRequest, shown: Reporter, command: str) -> Studied:
    """The whole life of an alignment on the synthetic world. As `titer demo`."""
    return _studied(*run_demo(Store(Path(order.runs), shown.tell), shown, order.seed, bases=order.bases))


@asked(StudyRequest)
def study(order: StudyRequest, shown: Reporter, command: str) -> Studied:
    """A paper's study: jain2024, huang2024 or qi2024, on worlds of seeds 0, 1, ... (`bases` base models each); with `base` on a
    real model. As `titer study`.

    `seeds` counts the worlds, or names them. `only`, `part` and `bases` belong to the world, what follows `part` to real models.
    """
    return _studied(*prepared(order).run(Store(Path(order.runs), shown.tell), shown, command))


@asked(SweepRequest)
def sweep(order: SweepRequest, shown: Reporter, command: str) -> Studied:
    """The worst attack on each defence of a recipe, searched, then repeated on fresh bases and prompts. As `titer sweep`."""
    return _studied(*swept(order).run(Store(Path(order.runs), shown.tell), shown, command))


def _studied(page: Path, answer: str) -> Studied:
    return Studied(page, answer, read_claims(page.with_name("claims.json")))
