"""Whole studies, from nothing to a report. L8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from titer.api.running import CALLED, RUNS, Place, reporter
from titer.core.claims import Claim, read_claims
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.studies import real, world
from titer.studies.demo import run_demo
from titer.studies.engine.run import BASES
from titer.studies.real import RealStudyRequest
from titer.studies.world import WorldOrder


@dataclass(frozen=True)
class Studied:
    """A study's page and its answer; `claims` as in claims.json, none on a real model."""

    page: Path
    answer: str
    claims: tuple[Claim, ...]


def demo(seed: int = 0, bases: int = 3, runs: Place = RUNS, progress: bool = True) -> Studied:
    """The whole life of an alignment on the synthetic world. As `titer demo`."""
    with reporter(progress) as shown:
        return _studied(*run_demo(Store(Path(runs), shown.tell), shown, seed, bases=bases))


def study(
    name: str,
    scale: str = "",
    seeds: int = 3,
    bases: int = BASES,
    part: str = "all",
    only: str = "",
    base: str | None = None,
    aligned: str | None = None,
    data: Place | None = None,
    harmful: Place | None = None,
    alpha: int | None = None,
    prompts: int | None = None,
    bf16: bool = False,
    trust_remote_code: bool = False,
    keep_weights: bool = False,
    runs: Place = RUNS,
    progress: bool = True,
) -> Studied:
    """A paper's study: jain2024, huang2024 or qi2024, on worlds of seeds 0, 1, ... (`bases` base models each); with `base` on a
    real model. As `titer study`.

    `part` and `only` belong to the world, what follows them to real models.
    """
    given = RealStudyRequest(name, base, aligned, data, scale, harmful, alpha, prompts, bf16, trust_remote_code, keep_weights)
    if base is None and aligned is None:
        if given != RealStudyRequest(name, scale=scale):
            raise TiterError("options of a study on a real model without one", next_step="add base (and aligned).")
        order = WorldOrder(name, scale, range(seeds), part, only, bases)
        with reporter(progress) as shown:
            return _studied(*world.run(order, Store(Path(runs), shown.tell), shown, CALLED.format("study")))
    real.unused({"part": part != "all", "only": only, "bases": bases != BASES})
    ready = real.prepared(given)
    with reporter(progress) as shown:
        return _studied(*ready.run(Store(Path(runs), shown.tell), shown, CALLED.format("study")))


def _studied(page: Path, answer: str) -> Studied:
    return Studied(page, answer, read_claims(page.with_name("claims.json")))
