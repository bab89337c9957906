"""Models measured: an audit, an evaluation, the tasks of lm-evaluation-harness and of inspect_ai. L8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from titer.api.auditing import Audited, audited, prepare
from titer.api.running import CALLED, RUNS, Place, Settings, reporter
from titer.audit import gate
from titer.audit.ask import AuditRequest
from titer.commands import measuring
from titer.commands.measuring import Evaluated
from titer.core.config import filled
from titer.core.run import Store, write_text
from titer.data.templates import Thinking
from titer.integrations import inspect_ai
from titer.integrations import lm_eval as harness
from titer.integrations.inspect_log import check, write_log, write_logs
from titer.models.fetch import resolve
from titer.models.lm import load
from titer.models.vllm_engine import serving_of
from titer.pipeline import ReadAs


def audit(
    *models: str,
    data: Place,
    no_base: bool = False,
    prompts: int | Literal["auto"] | None = None,
    system: Place | None = None,
    resolution: float | None = None,
    fail_if: Sequence[str] = (),
    junit: Place | None = None,
    max_new_tokens: int | None = None,
    max_thinking_tokens: int | None = None,
    thinking: Thinking = "default",
    judge: str = "refusal",
    judge_set: Settings | None = None,
    second_judge: str | None = None,
    second_judge_set: Settings | None = None,
    labelled: Place | None = None,
    capability: Sequence[str] = (),
    contexts: bool = False,
    no_prefill: bool = False,
    attack: str | None = None,
    attack_set: Settings | None = None,
    trained: Sequence[str] = (),
    strict: bool = False,
    control: str | None = None,
    landscape: bool = False,
    landscape_set: Settings | None = None,
    mechanisms: bool = False,
    inspect_logs: Place | None = None,
    engine: str = "transformers",
    bf16: bool = False,
    runs: Place = RUNS,
    progress: bool = True,
    trust_remote_code: bool = False,
    reading: str | None = None,
) -> Audited:
    """What tuning did to an alignment: [BASE,] ALIGNED[, TUNED] on labelled prompts; BASE, ALIGNED and two tunes or more; with `no_base`
    ALIGNED and any number of tunes. As `titer audit`.

    `fail_if`: limits, as docs/gate.md words them; `junit`: a file for them. `inspect_logs`: a folder for the judged answers, a log of
    inspect_ai a model.
    """
    order = filled(AuditRequest, AuditRequest.__dataclass_fields__, locals())
    if inspect_logs is not None:
        inspect_ai.must_be_installed()
    tunes, serving = prepare(order), serving_of(engine)
    with reporter(progress) as shown:
        found = audited(order, tunes, Path(runs), shown, CALLED.format("audit"), ReadAs(serving, bf16))
    if inspect_logs is not None:
        write_logs(found.tables["verdicts"], inspect_logs, judge=order.judge)
    if junit is not None:
        write_text(Path(junit), gate.junit(found.gate, found.answer))
    return found


def evaluate(
    model: str,
    data: Place | None = None,
    canary: Place | None = None,
    judge: str = "refusal",
    judge_set: Settings | None = None,
    second_judge: str | None = None,
    second_judge_set: Settings | None = None,
    labelled: Place | None = None,
    attack: str | None = None,
    attack_set: Settings | None = None,
    prompts: int | None = None,
    system: Place | None = None,
    max_new_tokens: int | None = None,
    max_thinking_tokens: int | None = None,
    thinking: Thinking = "default",
    temperature: float = 0.0,
    inspect_log: Place | None = None,
    engine: str = "transformers",
    bf16: bool = False,
    runs: Place = RUNS,
    progress: bool = True,
    trust_remote_code: bool = False,
    reading: str | None = None,
) -> Evaluated:
    """A model's answers to labelled prompts, judged; `inspect_log`: a file for them as a log of inspect_ai. As `titer evaluate`."""
    order = filled(measuring.EvaluationRequest, measuring.EvaluationRequest.__dataclass_fields__, locals())
    if inspect_log is not None:
        check(inspect_log)
    ready, serving = measuring.prepared(order), serving_of(engine)
    with reporter(progress) as shown:
        pipeline = ReadAs(serving, bf16).pipeline(Store(Path(runs), shown.tell), shown)
        found = measuring.evaluated(pipeline, order, ready, CALLED.format("evaluate"))
    if inspect_log is not None:
        write_log(found.verdicts, inspect_log, judge=order.judge, decoding=ready.decoding)
    return found


def lm_eval(
    model: str,
    *tasks: str,
    tasks_from: Place | None = None,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    trust_remote_code: bool = False,
    thinking: Thinking = "default",
) -> pd.DataFrame:
    """Tasks of lm-evaluation-harness on the model that Titer measures: task, metric, value, stderr, n, ... As `titer lm-eval`."""
    harness.must_be_installed()
    return harness.evaluate(
        load(resolve(model, trust_remote_code, thinking)), tasks, limit=limit, shots=shots, include_path=tasks_from, chat=chat
    )


def inspect(
    model: str,
    *tasks: Any,
    logs: Place = RUNS / "inspect",
    limit: int | None = None,
    trust_remote_code: bool = False,
    thinking: Thinking = "default",
) -> pd.DataFrame:
    """Tasks of inspect_ai on the model that Titer measures, its logs kept in `logs`; their metrics. As `titer inspect`."""
    inspect_ai.must_be_installed()
    return inspect_ai.metrics(inspect_ai.evaluate(load(resolve(model, trust_remote_code, thinking)), list(tasks), logs, limit=limit))
