"""The commands `audit` (what tuning did to an alignment), `evaluate` (judges one model's answers), `lm-eval` and `inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from titer.cli.options import AsJson, Dry, command
from titer.cli.output import announce, as_records, command_line, forms, show_result
from titer.commands.requests import AuditRequest, EvaluationRequest, InspectRequest, LmEvalRequest

if TYPE_CHECKING:
    from titer.audit.fleet import Tune
    from titer.commands.measuring import Prepared


@command
def evaluate(order: EvaluationRequest, dry_run: Dry = False, as_json: AsJson = False) -> None:
    """Ask one model labelled prompts and judge its answers.

    The report has the rates of refused unsafe prompts, refused safe prompts (over-refusal) and degenerate answers.
    """
    from titer.api.measure import evaluated, prepared
    from titer.terminal import Terminal

    ready = prepared(order)
    if dry_run:
        return _plan(as_json, order, ready)
    with Terminal() as terminal:
        announce(terminal, [order.data], ready.text.notes, order.reading, "prompts")
        found = evaluated(order, ready, terminal, command_line())
    result = {
        "answer": found.answer,
        "report": str(found.page),
        "notes": ready.text.notes,
        **as_records({"rates": found.rates}),
        "judges": as_records(found.beside.tables),
    }
    show_result(as_json, result, f"{found.lines}\n{found.answer}\nReport: {found.page}")


def _plan(as_json: bool, order: EvaluationRequest, ready: Prepared) -> None:
    """Prints what the evaluation would run, for --dry-run."""
    from titer.commands.measuring import planned

    plan = planned(order, ready)
    cost, found = f"at most {plan.tokens} new tokens", forms([order.data], order.reading, "prompts")
    lines = [*found, f"{plan.asked}: {cost}", *(f"{name}: {bill}" for name, bill in plan.bills.items())]
    show_result(as_json, {"model": ready.subject.key, "data": found, "prompts": plan.asked, "cost": cost, **plan.bills}, "\n".join(lines))


@command
def audit(order: AuditRequest, dry_run: Dry = False, as_json: AsJson = False) -> None:
    """Measure what a tuning did to a model's safety.

    The report says how much safety the tuning cost or gained, where in the model, and what to try.
    """
    from titer.api.auditing import audited, prepare
    from titer.audit import gate
    from titer.audit.fleet import rows, together
    from titer.terminal import Terminal

    tunes = prepare(order)
    if dry_run:
        return _priced(order, tunes, as_json)
    ready = together(tunes)
    with Terminal() as terminal:
        announce(terminal, [order.data], ready.text.notes, order.reading, "prompts")
        found = audited(order, tunes, terminal, command_line())
    lines = found.beside.lines if order.second_judge or order.labelled else []
    tables = {"gate": gate.as_table(found.gate)} if order.fail_if else {}
    result = {"answer": found.answer, "report": str(found.page), "notes": list(ready.left_out), "judges": as_records(found.beside.tables)}
    if "kind" in found.tables:
        tables["kind"] = found.tables["kind"]
    if found.tunes:
        lines, tables = rows(found.tunes), {**tables, "tunes": found.tables["tunes"]}
    text = "\n".join([*lines, *gate.lines(found.gate), found.answer, f"Report: {found.page}"])
    show_result(as_json, {**result, **as_records(tables)}, text)
    raise typer.Exit(found.status)


def _priced(order: AuditRequest, tunes: list[Tune], as_json: bool) -> None:
    """Prints what the audit would compute, for --dry-run, and which tunes cannot be audited."""
    from titer.audit.cost import audit_cost
    from titer.audit.fleet import together

    said = "; ".join(line.strip() for line in forms([order.data], order.reading, "prompts"))
    ready = together(tunes)
    cost = {"data": said, **audit_cost(ready.found, ready.question, ready.settings, order.bf16, ready.limits)}
    cost |= {f"{one.name} is not measured": one.reason for one in tunes if one.reason}
    show_result(as_json, cost, "\n".join(f"{key}: {value}" for key, value in cost.items()))


@command
def lm_eval(order: LmEvalRequest, as_json: AsJson = False) -> None:
    """Run tasks of lm-evaluation-harness on a model.

    The model is loaded as Titer measures it: an adapter is merged, int8 weights are dequantised.
    """
    from titer.api.measure import harness_table

    table = harness_table(order)
    show_result(as_json, as_records({"tasks": table}), table.to_string(index=False))


@command
def inspect(order: InspectRequest, as_json: AsJson = False) -> None:
    """Run tasks of inspect_ai on a model.

    The task files are code, and they are run: give only files that you trust.
    """
    from titer.api.measure import inspected

    table = inspected(order)
    show_result(as_json, as_records({"metrics": table}), f"{table.to_string(index=False)}\nLogs: {order.logs}")
