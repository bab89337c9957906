"""Models measured: an audit, an evaluation, the tasks of lm-evaluation-harness and of inspect_ai. L8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pandas as pd

from titer.api.auditing import Audited, audited, prepare
from titer.api.running import asked
from titer.audit.gate import lines
from titer.commands import measuring
from titer.commands.measuring import Evaluated, Prepared
from titer.commands.requests import AuditRequest, EvaluationRequest, InspectRequest, LmEvalRequest
from titer.core.run import Store
from titer.integrations import inspect_ai
from titer.integrations import lm_eval as harness
from titer.integrations.inspect_log import check, write_log
from titer.models.fetch import resolve
from titer.models.lm import load
from titer.models.vllm_engine import serving_of
from titer.pipeline import ReadAs, Reporter


@asked(cast(Callable[..., AuditRequest], AuditRequest))  # models one after the other: what no type of Python's says of a record
def audit(order: AuditRequest, shown: Reporter, command: str) -> Audited:
    """What tuning did to an alignment: [BASE,] ALIGNED[, TUNED] on labelled prompts; BASE, ALIGNED and two tunes or more; with `no_base`
    ALIGNED and any number of tunes. As `titer audit`.

    `fail_if`: limits, as docs/gate.md words them; `junit`: a file for them. `inspect_logs`: a folder for the judged answers, a log of
    inspect_ai a model.
    """
    return audited(order, prepare(order), shown, command)


def must_hold(*models: str, unresolved: bool = False, **options: Any) -> Audited:
    """A gate as a test, of pytest or unittest: the audit, where every limit passes; `options` are those of `audit`.

    `unresolved`: limits that cannot be resolved may stand. Errors: AssertionError with a line a limit that fails or cannot be resolved,
    the answer and the page's place.
    """
    found = audit(*models, **options)
    broken = [one for one in found.gate if one.decided == "fail" or (one.decided != "pass" and not unresolved)]
    if broken:
        raise AssertionError("\n".join([*lines(broken), found.answer, f"Report: {found.page}"]))
    return found


def prepared(order: EvaluationRequest) -> Prepared:
    """An evaluation, checked. Errors: as `measuring.prepared`; an engine or a package that is not there."""
    if order.inspect_log is not None:
        check(order.inspect_log)
    serving_of(order.engine)
    return measuring.prepared(order)


def evaluated(order: EvaluationRequest, ready: Prepared, shown: Reporter, command: str) -> Evaluated:
    """The evaluation that was prepared; `command` stands in the report as what reproduces it."""
    pipeline = ReadAs(serving_of(order.engine), order.bf16).pipeline(Store(Path(order.runs), shown.tell), shown)
    found = measuring.evaluated(pipeline, order, ready, command)
    if order.inspect_log is not None:
        write_log(found.verdicts, order.inspect_log, judge=order.judge, decoding=ready.decoding)
    return found


@asked(EvaluationRequest)
def evaluate(order: EvaluationRequest, shown: Reporter, command: str) -> Evaluated:
    """A model's answers to labelled prompts, judged; `inspect_log`: a file for them as a log of inspect_ai. As `titer evaluate`."""
    return evaluated(order, prepared(order), shown, command)


def harness_table(order: LmEvalRequest) -> pd.DataFrame:
    """As `lm_eval`."""
    harness.must_be_installed()
    lm = load(resolve(order.model, order.trust_remote_code, order.thinking))
    return harness.evaluate(lm, order.tasks, limit=order.limit, shots=order.shots, include_path=order.tasks_from, chat=order.chat)


def inspected(order: InspectRequest) -> pd.DataFrame:
    """As `inspect`."""
    inspect_ai.must_be_installed()
    lm = load(resolve(order.model, order.trust_remote_code, order.thinking))
    return inspect_ai.metrics(inspect_ai.evaluate(lm, list(order.tasks), order.logs, limit=order.limit))


@asked(cast(Callable[..., LmEvalRequest], LmEvalRequest))
def lm_eval(order: LmEvalRequest, shown: Reporter, command: str) -> pd.DataFrame:
    """Tasks of lm-evaluation-harness on the model that Titer measures: task, metric, value, stderr, n, ... As `titer lm-eval`."""
    return harness_table(order)


@asked(cast(Callable[..., InspectRequest], InspectRequest))
def inspect(order: InspectRequest, shown: Reporter, command: str) -> pd.DataFrame:
    """Tasks of inspect_ai on the model that Titer measures, its logs kept in `logs`; their metrics. As `titer inspect`."""
    return inspected(order)
