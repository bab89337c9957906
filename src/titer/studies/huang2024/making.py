"""The study's bases, alignments and attacks made on several processes, in that order, for each needs the one before. L7."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from titer.core.parallel import Silent, parallel
from titer.core.run import Store
from titer.recipes.huang2024 import Budget, Scale
from titer.studies.huang2024.attack import Defence, attacked, stands
from titer.studies.huang2024.subject import Alignment, Subject
from titer.workbench import Workbench

Cell = tuple[Defence, Budget]


def bases(bench: Workbench, scale: Scale, seeds: Sequence[int]) -> None:
    """The base models of all seeds."""
    parallel(_base, [(bench.store.root, scale, seed) for seed in seeds], bench.reporter, f"{len(seeds)} base models")


def alignments(s: Subject, hows: Iterable[Alignment | None]) -> None:
    """Every alignment of one seed that does not stand yet."""
    wanted = {how.label: how for how in hows if how is not None and not s.stands(how)}
    pieces = [(s.bench.store.root, s.scale, s.seed, how) for how in wanted.values()]
    parallel(_aligned, pieces, s.bench.reporter, f"seed {s.seed}: {len(pieces)} alignments")


def attacks(s: Subject, cells: Sequence[Cell]) -> None:
    """Every attack of one seed, its alignments first."""
    alignments(s, (defence.how for defence, _ in cells))
    pieces = [(s.bench.store.root, s.scale, s.seed, *cell) for cell in cells if not stands(s, *cell)]
    parallel(_attacked, pieces, s.bench.reporter, f"seed {s.seed}: {len(pieces)} attacks")


def _subject(root: Path, scale: Scale, seed: int) -> Subject:
    silent = Silent()
    return Subject(Workbench(Store(root, silent.tell), silent, scale.save_every), scale, seed)


def _base(root: Path, scale: Scale, seed: int) -> None:
    _ = _subject(root, scale, seed).base


def _aligned(root: Path, scale: Scale, seed: int, how: Alignment) -> None:
    _subject(root, scale, seed).aligned(how)


def _attacked(root: Path, scale: Scale, seed: int, defence: Defence, budget: Budget) -> None:
    attacked(_subject(root, scale, seed), defence, budget)
