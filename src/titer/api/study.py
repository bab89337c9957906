"""Run whole studies, from untrained models to a report. L8."""

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
    """The result of a study: its page, its answer, and its claims as in claims.json (none for a real model)."""

    page: Path
    answer: str
    claims: tuple[Claim, ...]


@asked(DemoRequest)
def demo(order: DemoRequest, shown: Reporter, command: str) -> Studied:
    """Train, align and fine-tune a small model on a synthetic world, and see what breaks its safety. Same as `titer demo`."""
    return _studied(*run_demo(Store(Path(order.runs), shown.tell), shown, order.seed, bases=order.bases))


@asked(StudyRequest)
def study(order: StudyRequest, shown: Reporter, command: str) -> Studied:
    """Run a study on synthetic worlds, or with `base=MODEL` on a real model. Same as `titer study`.

    `seeds`: how many worlds, or a list of their seeds. `bases`: how many base models are pretrained on each. `only`, `part` and `bases`
    are for worlds; the arguments after `part` are for real models.
    """
    return _studied(*prepared(order).run(Store(Path(order.runs), shown.tell), shown, command))


@asked(SweepRequest)
def sweep(order: SweepRequest, shown: Reporter, command: str) -> Studied:
    """Search for the worst attack on each defence of a recipe, then repeat it on fresh bases and prompts. Same as `titer sweep`."""
    return _studied(*swept(order).run(Store(Path(order.runs), shown.tell), shown, command))


def _studied(page: Path, answer: str) -> Studied:
    return Studied(page, answer, read_claims(page.with_name("claims.json")))
