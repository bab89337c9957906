"""Models measured: an audit, an evaluation, the tasks of lm-evaluation-harness and of inspect_ai. L7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from titer.api.running import CALLED, RUNS, Place, Settings, reporter
from titer.core.config import filled
from titer.core.run import Store, slug, write_text
from titer.integrations import inspect_ai
from titer.integrations import lm_eval as harness
from titer.integrations.inspect_log import check, write_log, write_logs
from titer.models.fast import engine_told, serving_of
from titer.models.fetch import resolve
from titer.models.lm import load
from titer.report.places import report_folder
from titer.studies import measuring
from titer.studies.audit import gate
from titer.studies.audit.ask import Order, Prepared, prepared
from titer.studies.audit.lacking import INTERRUPTED
from titer.studies.audit.report import audit_report
from titer.studies.audit.study import measured
from titer.studies.judging import Review
from titer.studies.measuring import Evaluated
from titer.workbench import Reading, Reporter


@dataclass(frozen=True)
class Audited:
    """An audit's page, its answer in a sentence or two, every table by name (`verdicts`, `rates`, `shifts`, `flips`, ...).

    `beside`: what people and a second judge say of the judge, as of `evaluate`. `gate`: every limit of `fail_if`, decided.
    """

    page: Path
    answer: str
    tables: Mapping[str, pd.DataFrame]
    beside: Review
    gate: Sequence[gate.Held] = ()

    @property
    def status(self) -> int:
        """0, 3 where a limit failed, 4 where one could not be resolved: the command's exit status."""
        return gate.status(self.gate)


def audit(
    *models: str,
    data: Place,
    prompts: int | Literal["auto"] | None = None,
    system: Place | None = None,
    resolution: float | None = None,
    fail_if: Sequence[str] = (),
    junit: Place | None = None,
    max_new_tokens: int = 48,
    judge: str = "refusal",
    judge_set: Settings | None = None,
    second_judge: str | None = None,
    second_judge_set: Settings | None = None,
    labelled: Place | None = None,
    capability: Sequence[str] = (),
    contexts: bool = False,
    prefill: bool = True,
    attack: str | None = None,
    attack_set: Settings | None = None,
    trained: Sequence[str] = (),
    strict: bool = False,
    control: str | None = None,
    landscape: bool = False,
    landscape_set: Settings | None = None,
    inspect_logs: Place | None = None,
    engine: str = "transformers",
    bf16: bool = False,
    runs: Place = RUNS,
    progress: bool = True,
    trust_remote_code: bool = False,
    reading: str | None = None,
) -> Audited:
    """What tuning did to an alignment: [BASE,] ALIGNED[, TUNED] on labelled prompts. As `titer audit`.

    `fail_if`: limits, as docs/gate.md words them; `junit`: a file for them. `inspect_logs`: a folder for the judged answers, a log of
    inspect_ai a model.
    """
    order = filled(Order, Order.__dataclass_fields__, locals())
    if inspect_logs is not None:
        inspect_ai.must_be_installed()
    ready, serving = prepared(order), serving_of(engine)
    with reporter(progress) as shown:
        found = audited(order, ready, Path(runs), shown, CALLED.format("audit"), Reading(serving, bf16))
    if inspect_logs is not None:
        write_logs(found.tables["verdicts"], inspect_logs, judge=order.judge)
    if junit is not None:
        write_text(Path(junit), gate.junit(found.gate, found.answer))
    return found


def audited(order: Order, ready: Prepared, runs: Path, reporter: Reporter, command: str, reading: Reading) -> Audited:
    """The audit that was prepared, measured and reported; `command` stands in the report as what reproduces it."""
    found, asked = ready.found, ready.question
    for line in gate.foreseen(asked, ready.limits) if ready.limits else ():
        reporter.tell(line)
    findings = measured(reading.bench(Store(runs, reporter.tell), reporter), found, asked, ready.settings)
    read = {**engine_told(reading.serving), **({"precision": "bfloat16"} if reading.bf16 else {})}
    how: dict[str, object] = {"judge": f"{order.judge} {asked.judge.model_dump_json()}", **asked.judges.told, **read}
    how |= {"system text": ready.system} if ready.system else {}
    name = f"audit-{slug((found.last.after if found.last else found.models[0]).name)}"
    folder = report_folder(runs, name, {**ready.identity, **read})
    held = gate.held(found, asked, findings, ready.limits)
    page, answer = audit_report(found, asked, findings, ready.text, how, command, folder, ready.left_out, held)
    if (findings.missing.reason == INTERRUPTED).any():
        reporter.tell(f"Report of what there is: {page}")
        raise KeyboardInterrupt
    kept = {name: table for name, table in vars(findings).items() if name != "beside"}
    return Audited(page, answer, kept, findings.beside, held)


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
    order = filled(measuring.Order, measuring.Order.__dataclass_fields__, locals())
    if inspect_log is not None:
        check(inspect_log)
    ready, serving = measuring.prepared(order), serving_of(engine)
    with reporter(progress) as shown:
        bench = Reading(serving, bf16).bench(Store(Path(runs), shown.tell), shown)
        found = measuring.evaluated(bench, order, ready, CALLED.format("evaluate"))
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
) -> pd.DataFrame:
    """Tasks of lm-evaluation-harness on the model that Titer measures: task, metric, value, stderr, n, ... As `titer lm-eval`."""
    harness.must_be_installed()
    return harness.evaluate(load(resolve(model, trust_remote_code)), tasks, limit=limit, shots=shots, include_path=tasks_from, chat=chat)


def inspect(
    model: str, *tasks: Any, logs: Place = RUNS / "inspect", limit: int | None = None, trust_remote_code: bool = False
) -> pd.DataFrame:
    """Tasks of inspect_ai on the model that Titer measures, its logs kept in `logs`; their metrics. As `titer inspect`."""
    inspect_ai.must_be_installed()
    return inspect_ai.metrics(inspect_ai.evaluate(load(resolve(model, trust_remote_code)), list(tasks), logs, limit=limit))
