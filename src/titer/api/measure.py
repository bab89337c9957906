"""Measure models: audits, evaluations, gates, and the tasks of lm-evaluation-harness and inspect_ai. L8."""

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


@asked(cast(Callable[..., AuditRequest], AuditRequest))  # no Python type says that a record's models are given one after the other
def audit(order: AuditRequest, shown: Reporter, command: str) -> Audited:
    """Compare models on labelled prompts: what did tuning do to the alignment? Same as `titer audit`.

    Models are given in the order [BASE,] ALIGNED[, TUNED]; or BASE, ALIGNED and several tunes; or, with `no_base=True`, ALIGNED and any
    number of tunes. `fail_if`: the limits of a gate, worded as in docs/gate.md; `junit`: a file for their results. `inspect_logs`: a
    folder for the judged answers, one log of inspect_ai for each model.
    """
    return audited(order, prepare(order), shown, command)


def must_hold(*models: str, unresolved: bool = False, **options: Any) -> Audited:
    """Run an audit as a test for pytest or unittest: it passes if every limit of the gate passes. `options` are those of `audit`.

    With `unresolved=True` limits that cannot be resolved pass too. Errors: AssertionError, with a line for each limit that does not pass,
    the audit's answer and the path of its page.
    """
    found = audit(*models, **options)
    broken = [one for one in found.gate if one.decided == "fail" or (one.decided != "pass" and not unresolved)]
    if broken:
        raise AssertionError("\n".join([*lines(broken), found.answer, f"Report: {found.page}"]))
    return found


def prepared(order: EvaluationRequest) -> Prepared:
    """Checks the request and finds the model; it is not loaded. Errors: those of `measuring.prepared`; a missing engine or package."""
    if order.inspect_log is not None:
        check(order.inspect_log)
    serving_of(order.engine)
    return measuring.prepared(order)


def evaluated(order: EvaluationRequest, ready: Prepared, shown: Reporter, command: str) -> Evaluated:
    """Generates the answers, judges them and writes the report. `command` is printed in the report as the way to reproduce it."""
    pipeline = ReadAs(serving_of(order.engine), order.bf16).pipeline(Store(Path(order.runs), shown.tell), shown)
    found = measuring.evaluated(pipeline, order, ready, command)
    if order.inspect_log is not None:
        write_log(found.verdicts, order.inspect_log, judge=order.judge, decoding=ready.decoding)
    return found


@asked(EvaluationRequest)
def evaluate(order: EvaluationRequest, shown: Reporter, command: str) -> Evaluated:
    """Ask a model labelled prompts and judge its answers; `inspect_log`: a file for an inspect_ai log of them. Same as `titer evaluate`."""
    return evaluated(order, prepared(order), shown, command)


def harness_table(order: LmEvalRequest) -> pd.DataFrame:
    """Loads the model, runs tasks of lm-evaluation-harness on it, and returns their table; see `lm_eval`."""
    harness.must_be_installed()
    lm = load(resolve(order.model, order.trust_remote_code, order.thinking))
    return harness.evaluate(lm, order.tasks, limit=order.limit, shots=order.shots, include_path=order.tasks_from, chat=order.chat)


def inspected(order: InspectRequest) -> pd.DataFrame:
    """Loads the model, runs tasks of inspect_ai on it, and returns their metrics; see `inspect`."""
    inspect_ai.must_be_installed()
    lm = load(resolve(order.model, order.trust_remote_code, order.thinking))
    return inspect_ai.metrics(inspect_ai.evaluate(lm, list(order.tasks), order.logs, limit=order.limit))


@asked(cast(Callable[..., LmEvalRequest], LmEvalRequest))
def lm_eval(order: LmEvalRequest, shown: Reporter, command: str) -> pd.DataFrame:
    """Run tasks of lm-evaluation-harness; returns rows with task, metric, value, stderr, n and others. Same as `titer lm-eval`."""
    return harness_table(order)


@asked(cast(Callable[..., InspectRequest], InspectRequest))
def inspect(order: InspectRequest, shown: Reporter, command: str) -> pd.DataFrame:
    """Run tasks of inspect_ai; returns their metrics and keeps the logs in `logs`. Same as `titer inspect`."""
    return inspected(order)
