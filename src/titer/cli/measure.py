"""`titer evaluate`: a model's answers to text prompts, judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.detected import announce, forms
from titer.cli.options import (
    HERE,
    AsJson,
    Bf16,
    Asked,
    Dry,
    Engine,
    HowRead,
    JudgeSettings,
    People,
    Prompts,
    Runs,
    Second,
    SecondSettings,
    Set,
    System,
    Think,
    Thoughts,
    Trust,
)
from titer.cli.output import as_records, command_line, show_result

if TYPE_CHECKING:
    from titer.commands.measuring import EvaluationRequest, Prepared
    from titer.pipeline import ReadAs


def evaluate(
    model: str,
    data: Asked = None,
    reading: HowRead = None,
    canary: Annotated[
        Path | None, typer.Option("--canary", help="In place of --data: what --canary of align and finetune holds out.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Judge: a name (titer list judges) or a .py file.")] = "refusal",
    judge_set: JudgeSettings = None,
    second_judge: Second = None,
    second_judge_set: SecondSettings = None,
    labelled: People = None,
    attack: Annotated[str | None, typer.Option(help="Attack: a name (titer list attacks) or a .py file.")] = None,
    prompts: Prompts = None,
    system: System = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, max=2**17, help="Default: 64, or what the judge needs (number: 256).")
    ] = None,
    max_thinking_tokens: Thoughts = None,
    thinking: Think = "default",
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    settings: Set = None,
    inspect_log: Annotated[
        Path | None, typer.Option("--inspect-log", help="Write the judged answers as a log of inspect_ai (.eval or .json) too.")
    ] = None,
    engine: Engine = "transformers",
    bf16: Bf16 = False,
    trust_remote_code: Trust = False,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Refusal of unsafe prompts, over-refusal of safe ones, degenerate answers."""
    from titer.core.config import filled
    from titer.models.vllm_engine import serving_of
    from titer.pipeline import ReadAs
    from titer.commands.measuring import EvaluationRequest, prepared

    order = filled(EvaluationRequest, EvaluationRequest.__dataclass_fields__, {**locals(), "attack_set": settings})
    if inspect_log is not None:
        from titer.integrations.inspect_log import check

        check(inspect_log)
    ready, serving = prepared(order), serving_of(engine)
    if dry_run:
        return _plan(as_json, order, ready)
    _measured(order, ready, ReadAs(serving, bf16), inspect_log, (runs, as_json))


def _measured(order: EvaluationRequest, ready: Prepared, reading: ReadAs, log: Path | None, given: tuple[Path, bool]) -> None:
    """Run what was prepared, print it, and write the log where one is asked for."""
    from titer.core.run import Store
    from titer.commands.measuring import evaluated
    from titer.terminal import Terminal

    runs, as_json = given
    with Terminal() as terminal:
        announce(terminal, [order.data], ready.text.notes, order.reading, "prompts")
        found = evaluated(reading.pipeline(Store(runs, terminal.tell), terminal), order, ready, command_line())
    if log is not None:
        from titer.integrations.inspect_log import write_log

        write_log(found.verdicts, log, judge=order.judge, decoding=ready.decoding)
    result = {
        "answer": found.answer,
        "report": str(found.page),
        "notes": ready.text.notes,
        **as_records({"rates": found.rates}),
        "judges": as_records(found.beside.tables),
    }
    show_result(as_json, result, f"{found.lines}\n{found.answer}\nReport: {found.page}")


def _plan(as_json: bool, order: EvaluationRequest, ready: Prepared) -> None:
    """What would run, for --dry-run."""
    from titer.commands.measuring import planned

    plan = planned(order, ready)
    cost, found = f"at most {plan.tokens} new tokens", forms([order.data], order.reading, "prompts")
    lines = [*found, f"{plan.asked}: {cost}", *(f"{name}: {bill}" for name, bill in plan.bills.items())]
    show_result(as_json, {"model": ready.subject.key, "data": found, "prompts": plan.asked, "cost": cost, **plan.bills}, "\n".join(lines))


def lm_eval(
    model: str,
    tasks: Annotated[list[str], typer.Argument(help="Names of tasks of lm-evaluation-harness, or of those in --tasks-from.")],
    tasks_from: Annotated[Path | None, typer.Option("--tasks-from", help="A folder of task files (YAML) of yours.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N questions of each task.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples in the prompt. Default: the task's own.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the model's chat template, which the harness leaves out.")] = False,
    thinking: Think = "default",
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Tasks of lm-evaluation-harness on the model that Titer measures: an adapter merged, int8 weights dequantised."""
    from titer.integrations.lm_eval import evaluate as harness, must_be_installed
    from titer.models.fetch import resolve
    from titer.models.lm import load

    must_be_installed()
    table = harness(load(resolve(model, trust_remote_code, thinking)), tasks, limit=limit, shots=shots, include_path=tasks_from, chat=chat)
    show_result(as_json, {"tasks": json.loads(table.to_json(orient="records"))}, table.to_string(index=False))


def inspect(
    model: str,
    tasks: Annotated[list[str], typer.Argument(help="Files of inspect_ai tasks, FILE or FILE@NAME.")],
    logs: Annotated[Path, typer.Option(help="Folder of its logs.")] = Path("runs/inspect"),
    limit: Annotated[int | None, typer.Option(min=1, help="The first N samples of each task.")] = None,
    thinking: Think = "default",
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Tasks of inspect_ai on the model that Titer measures. The files are code: run those that you trust."""
    from titer.integrations.inspect_ai import evaluate as inspected, metrics, must_be_installed
    from titer.models.fetch import resolve
    from titer.models.lm import load

    must_be_installed()
    table = metrics(inspected(load(resolve(model, trust_remote_code, thinking)), tasks, logs, limit=limit))
    show_result(as_json, {"metrics": json.loads(table.to_json(orient="records"))}, f"{table.to_string(index=False)}\nLogs: {logs}")
