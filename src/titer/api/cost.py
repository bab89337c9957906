"""What a command would compute, before it runs: `--dry-run` from Python. L8.

from titer import api
print(api.cost(api.AuditRequest(["aligned", "tuned"], "prompts.csv", landscape=True)))
"""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path

from titer.api.auditing import prepare
from titer.api.running import RUNS, Place
from titer.audit import ask
from titer.audit.cost import audit_cost
from titer.audit.fleet import together
from titer.commands import measuring
from titer.commands.measuring import planned
from titer.commands.training import AlignRequest, FinetuneRequest, Planned, planned_alignment, planned_finetuning
from titer.core.run import Store, quiet
from titer.studies import real, world

Cost = dict[str, object]
"""What is asked for and what it costs, by name; everything is checked as by the command itself."""


def cost(order: object, flops: float | None = None, runs: Place = RUNS, bf16: bool = False) -> Cost:
    """Counts, operations, what stands already; in hours where the device's FLOP/s are given and the command has them; `bf16`: an audit's
    models read in bfloat16.

    `order` is a request's record, as `titer.api` has them. Errors: those of the command itself.
    """
    return _audit(order, bf16) if isinstance(order, ask.AuditRequest) else _cost(order, flops, Store(Path(runs), quiet))


@singledispatch
def _cost(order: object, flops: float | None, store: Store) -> Cost:
    raise TypeError(f"{type(order).__name__} is no request: AuditRequest, EvaluationRequest, AlignRequest, ... of titer.api")


def _audit(order: ask.AuditRequest, bf16: bool) -> Cost:
    ready = together(prepare(order))
    return audit_cost(ready.found, ready.question, ready.settings, bf16, ready.limits)


@_cost.register
def _evaluate(order: measuring.EvaluationRequest, flops: float | None, store: Store) -> Cost:
    ready = measuring.prepared(order)
    plan = planned(order, ready)
    return {"model": ready.subject.key, "prompts": plan.asked, "new tokens": plan.tokens, **plan.bills}


@_cost.register
def _align(order: AlignRequest, flops: float | None, store: Store) -> Cost:
    return _training(planned_alignment(order), store)


@_cost.register
def _finetune(order: FinetuneRequest, flops: float | None, store: Store) -> Cost:
    return _training(planned_finetuning(order), store)


def _training(plan: Planned, store: Store) -> Cost:
    return {"key": plan.key, "steps": plan.stage.steps, "batch": plan.stage.batch, "stands": plan.stands(store), **plan.about}


@_cost.register
def _world(order: world.WorldOrder, flops: float | None, store: Store) -> Cost:
    table, text = world.price(order, store, flops)
    return {"plan": table, "summary": text}


@_cost.register
def _real(order: real.RealStudyRequest, flops: float | None, store: Store) -> Cost:
    return dict(real.prepared(order).cost(flops))
