"""Measures the tunes of an audit elsewhere, each as a piece of work: in processes of this machine, or on a Ray cluster. L7.

A piece measures one tune and leaves every measurement in the run folder. The page's own process then reads them there, so what it writes
is the same wherever they were made. What the tunes share is measured by the piece that comes first; the others wait for it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from titer.audit.ask import prepared
from titer.audit.lacking import FAULTS, told
from titer.audit.study import measured
from titer.commands.requests import AuditRequest
from titer.core.parallel import LostError, Places, Silent, Work
from titer.core.ray_cluster import places
from titer.core.run import Store
from titer.models.vllm_engine import serving_of
from titer.pipeline import ReadAs, Reporter

TRIES = 3  # how often a tune is begun again if the process or machine that measured it is lost


def measured_elsewhere(order: AuditRequest, tunes: Mapping[str, Sequence[str]], reporter: Reporter) -> dict[str, str]:
    """Measures each tune in the place `order.on`. `tunes`: tune -> models of its audit. Returns failed tune -> why it was not measured.

    Errors: those of `places`; an error that is not the fault of a tune.
    """
    where = places(order.on, order.piece_cpus, order.piece_gpus, order.piece_memory)
    done = False
    try:
        reasons = _all(order, tunes, where, reporter)
        done = True
    finally:
        where.stop(at_once=not done)
    return reasons


def _all(order: AuditRequest, tunes: Mapping[str, Sequence[str]], where: Places, reporter: Reporter) -> dict[str, str]:
    reasons, running, lost = dict[str, str](), dict[Hashable, str](), Counter[str]()

    def begin(name: str) -> None:
        piece = partial(_measure, replace(order, models=tunes[name]), Path.cwd())
        running[where.submit(Work(piece, Path(order.runs).absolute(), None))] = name

    shown = reporter.task(f"measuring {len(tunes)} tunes on {order.on}: {where.told}")
    for name in tunes:
        begin(name)
    while running:
        reporter.running(running.values())
        for one in where.ended():
            name = running.pop(one.ticket)
            if isinstance(one.error, LostError) and lost[name] < TRIES:
                lost[name] += 1
                reporter.tell(f"{name} is begun again: {one.error}")
                begin(name)
            elif isinstance(one.error, (*FAULTS, LostError)):
                reasons[name] = told(one.error)
            elif one.error is not None:
                raise one.error
        shown(len(tunes) - len(running), len(tunes))
    reporter.running(())
    return reasons


def _measure(order: AuditRequest, folder: Path, root: Path) -> None:
    """Measures one tune; results go into the store at `root`. Paths in the order are relative to `folder`."""
    with contextlib.chdir(folder):
        ready = prepared(order)
        pipeline = ReadAs(serving_of(order.engine), order.bf16).pipeline(Store(root), Silent())
        measured(pipeline, ready.found, ready.question, ready.settings)
