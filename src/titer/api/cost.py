"""Say what a command would compute before it runs, as `--dry-run` does. L8.

from titer import api
print(api.cost(api.AuditRequest(["aligned", "tuned"], "prompts.csv", landscape=True)))
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from titer.api.auditing import prepare
from titer.api.measure import prepared as prepared_evaluation
from titer.api.train import planned as planned_training
from titer.audit.cost import audit_cost
from titer.audit.fleet import together
from titer.commands.measuring import planned
from titer.commands.repair import planned as planned_repair
from titer.commands.requests import AlignRequest, AuditRequest, EvaluationRequest, FinetuneRequest, RepairRequest
from titer.core.run import Store, quiet
from titer.studies.prepare import prepared
from titer.studies.request import StudyRequest

Cost = dict[str, object]
"""What is asked for and what it costs, by name; everything is checked as by the command itself."""
Request = AuditRequest | EvaluationRequest | AlignRequest | FinetuneRequest | RepairRequest | StudyRequest


def cost(order: Request, **changes: Any) -> Cost:
    """Returns what a command would compute: counts, operations and what is stored already; for a study also hours, if `flops` is given.

    `order` is a request record such as AuditRequest; `changes` are fields to change in it, e.g. bf16=True, flops=1e15. Errors: those
    of the command itself.
    """
    if not isinstance(order, Request):
        raise TypeError(f"{type(order).__name__} is no request: AuditRequest, EvaluationRequest, AlignRequest, ... of titer.api")
    order = replace(order, **changes)
    store = Store(Path(order.runs), quiet)
    if isinstance(order, AuditRequest):
        audit = together(prepare(order))
        return audit_cost(audit.found, audit.question, audit.settings, order.bf16, audit.limits)
    if isinstance(order, EvaluationRequest):
        ready = prepared_evaluation(order)
        asked = planned(order, ready)
        return {"model": ready.subject.key, "prompts": asked.asked, "new tokens": asked.tokens, **asked.bills}
    if isinstance(order, StudyRequest):
        return dict(prepared(order).cost(store))
    if isinstance(order, RepairRequest):
        return planned_repair(order).cost()
    plan = planned_training(order)
    return {"key": plan.key, "steps": plan.stage.steps, "batch": plan.stage.batch, "stands": plan.stands(store), **plan.about}
