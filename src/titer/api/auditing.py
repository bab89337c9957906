"""Runs an audit, from the request to the page. If there are several tunes, each is measured as if it were the only one. L8."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from titer.audit import fleet, gate, kinds
from titer.audit.ask import Prepared, prepared
from titer.audit.fleet import Tune
from titer.audit.lacking import FAULTS, INTERRUPTED, told
from titer.audit.pieces import measured_elsewhere
from titer.audit.report import audit_report
from titer.audit.roles import each
from titer.audit.study import OWN, Findings, measured
from titer.commands import attacking
from titer.commands.judging import Review
from titer.commands.requests import AuditRequest
from titer.core.errors import TiterError, visible
from titer.core.gate import limit
from titer.core.run import Store, replaceable, slug, write_text
from titer.integrations import inspect_ai
from titer.integrations.inspect_log import write_logs
from titer.models.checkpoint import Checkpoint
from titer.models.vllm_engine import engine_told, serving_of
from titer.pipeline import ReadAs, Reporter
from titer.report.places import report_folder


@dataclass(frozen=True)
class Audited:
    """The result of an audit: its page, its answer in a sentence or two, every table by name (`verdicts`, `rates`, `shifts`, `flips`, ...).

    `beside`: the judge compared with people and with a second judge, as in `evaluate`. `gate`: each limit of `fail_if` with its decision.
    For several tunes the tables are `tunes` (one row per tune) and `verdicts`, and the field `tunes` holds each tune's audit, the worst
    first.
    """

    page: Path
    answer: str
    tables: Mapping[str, pd.DataFrame]
    beside: Review
    gate: Sequence[gate.Held] = ()
    tunes: Sequence[Tune] = ()

    @property
    def status(self) -> int:
        """The exit status: 3 if a limit failed, else 4 if one could not be resolved, else 1 if a tune could not be measured, else 0."""
        return gate.status(self.gate) or int(any(one.reason for one in self.tunes))


def prepare(order: AuditRequest) -> list[Tune]:
    """Checks the request and finds every model; none is loaded. Of several tunes, one that cannot be audited is returned with the reason.

    Errors: with one tune, those of `prepared`; with several, only if none can be audited; a missing engine or package; a malformed limit.
    """
    serving_of(order.engine)
    if order.inspect_logs is not None:
        inspect_ai.must_be_installed()
    if order.junit is not None:
        replaceable(Path(order.junit), b"<?xml", "JUnit file")
    for text in order.fail_if:
        limit(text)  # its form is checked before anything is opened
    parts, opened, found = each(order.models, not order.no_base), dict[str, Checkpoint](), list[Tune]()
    for models in parts:
        try:
            ready = prepared(replace(order, models=models), opened)
            last = ready.found.last
            found.append(Tune(last.after.name if last and len(parts) > 1 else ready.found.models[-1].name, ready))
        except TiterError as error:
            if len(parts) == 1 or (models is parts[-1] and not any(one.ready for one in found)):
                raise
            found.append(Tune(Path(models[-1]).name or models[-1], reason=told(error)))
    counts = Counter(one.name for one in found)
    given = Counter(models[-1] for models in parts)
    again = [models[-1] if given[models[-1]] == 1 else f"{models[-1]} #{i}" for i, models in enumerate(parts, start=1)]
    return [one if counts[one.name] == 1 else _renamed(one, visible(name, 120)) for one, name in zip(found, again, strict=True)]


def _renamed(one: Tune, name: str) -> Tune:
    return replace(one, name=name, ready=fleet.renamed(one.ready, name) if one.ready else None)


def audited(order: AuditRequest, tunes: Sequence[Tune], reporter: Reporter, command: str) -> Audited:
    """Measures the tunes and writes the report. `command` is printed in the report as the way to reproduce it.

    Errors: with one tune, whatever keeps it from being measured; with several, only if none could be measured.
    """
    found = _reported(order, tunes, reporter, command, ReadAs(serving_of(order.engine), order.bf16))
    if order.inspect_logs is not None:
        write_logs(found.tables["verdicts"], order.inspect_logs, judge=order.judge)
    if order.junit is not None:
        write_text(Path(order.junit), gate.junit(found.gate, found.answer))
    return found


def _reported(order: AuditRequest, tunes: Sequence[Tune], reporter: Reporter, command: str, reading: ReadAs) -> Audited:
    how: dict[str, object] = {**engine_told(reading.serving), **({"precision": "bfloat16"} if reading.bf16 else {})}
    ready = next(one.ready for one in tunes if one.ready)
    for line in gate.foreseen(ready.question, ready.limits) if ready.limits else ():
        reporter.tell(line)
    done: list[Tune] = []
    if order.on != "here":
        tunes = _elsewhere(order, tunes, reporter)
    for one in tunes:
        try:
            done.append(_measured(order, one, reporter, command, reading, how) if one.ready else one)
        except FAULTS as error:
            if len(tunes) == 1 or (one is tunes[-1] and not any(other.findings for other in done)):
                raise
            done.append(Tune(one.name, reason=told(error)))
        if done[-1].reason:
            reporter.tell(f"{one.name} is not measured: {done[-1].reason}")
            done[-1] = replace(done[-1], held=[_unheld(one.name, text) for text in order.fail_if])
    done = fleet.ordered(done)
    held = [h for one in done for h in one.held]
    first = next(one for one in done if one.findings)
    assert first.findings is not None and first.page is not None  # noqa: PT018  the one above
    if len(tunes) == 1:
        kept = {name: table for name, table in vars(first.findings).items() if name != "beside"}
        kept |= {"kind": kinds.table(ready.found, first.findings)}
        return Audited(first.page, first.answer, kept, first.findings.beside, held)
    name = f"audit-{slug(ready.found.changes[-1].before.name)}-{len(tunes)}-tunes"
    folder = report_folder(Path(order.runs), name, {"tunes": [one.ready.identity if one.ready else one.name for one in tunes], **how})
    about = _told(order, ready, [one.findings for one in done if one.findings], how)
    page, answer = fleet.fleet_report(done, about, command, folder)
    verdicts = [one.findings.verdicts for one in done if one.findings]
    tables = {"tunes": fleet.table(done), "verdicts": pd.concat(verdicts, ignore_index=True).drop_duplicates(["model", "kind", "place"])}
    return Audited(page, answer, tables, first.findings.beside, held, done)


def _elsewhere(order: AuditRequest, tunes: Sequence[Tune], reporter: Reporter) -> list[Tune]:
    """Measures the tunes in the place `order.on`, into the store. Returns all tunes, with the reason if one failed. Errors: all failed."""
    parts = each(order.models, not order.no_base)
    reasons = measured_elsewhere(order, {one.name: models for one, models in zip(tunes, parts, strict=True) if one.ready}, reporter)
    if all(one.reason or one.name in reasons for one in tunes):
        raise TiterError(
            f"no tune could be measured: {next(iter(reasons.values()))}",
            next_step="audit one of them by itself, with --on here, to see where.",
            status=1,
        )
    return [Tune(one.name, reason=reasons[one.name]) if one.name in reasons else one for one in tunes]


def _told(order: AuditRequest, ready: Prepared, measured: Sequence[Findings], how: Mapping[str, object]) -> dict[str, object]:
    """How it was asked and judged, for a report's provenance. A second judge and labelled answers only where they could be had."""
    asked = ready.question
    told: dict[str, object] = {"judge": f"{order.judge} {asked.judge.model_dump_json()}", **attacking.told(asked.attacks)}
    told |= asked.judges.told(OWN) if all(f.beside.tables for f in measured) else {}
    told |= {"system text": ready.system} if ready.system else {}
    return told | ({"decoder": asked.decoder.guided.told} if asked.decoder else {}) | dict(how)


def _unheld(name: str, text: str) -> gate.Held:
    return gate.Held(name, text, "cannot resolve", math.nan, math.nan, math.nan, "the tune could not be measured")


def _measured(order: AuditRequest, one: Tune, reporter: Reporter, command: str, reading: ReadAs, how: Mapping[str, object]) -> Tune:
    """Measures one tune, writes its page, and returns the tune with what was found.

    Errors: those of `measured`; KeyboardInterrupt, if the user interrupted, once the page of what was measured is written.
    """
    assert one.ready is not None
    found, asked = one.ready.found, one.ready.question
    f = measured(reading.pipeline(Store(Path(order.runs), reporter.tell), reporter), found, asked, one.ready.settings)
    name = f"audit-{slug((found.last.after if found.last else found.models[0]).name)}"
    folder = report_folder(Path(order.runs), name, {**one.ready.identity, **how})
    held = gate.held(found, asked, f, one.ready.limits)
    page, answer = audit_report(
        found, asked, f, one.ready.text, _told(order, one.ready, [f], how), command, folder, one.ready.left_out, held, order.trained
    )
    if (f.missing.reason == INTERRUPTED).any():
        reporter.tell(f"Report of what there is: {page}")
        raise KeyboardInterrupt
    return replace(one, findings=f, held=held, answer=answer, page=page)
