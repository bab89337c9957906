"""Titer from Python: every command as a function; the command line prints what they return. L8.

    from titer import api
    found = api.audit("aligned", "tuned", data="prompts.csv", prompts=100)
    print(found.answer, found.page)

MODEL is a folder, BASE+ADAPTER, a fetched name or a hub id. `runs` is the folder of runs: what stands there is not made again.
`progress`: progress on standard error. `trust_remote_code` runs the code of the models' authors on this machine, before
transformers' own; a judge's is refused even then. `cost` says what an order would compute. Errors: TiterError, with what
was given, what was expected and what to do next.
"""

from __future__ import annotations

from titer.api.about import Told, bundle, card, doctor, models_get, prune, push, report, stored, verify
from titer.api.cost import cost
from titer.api.measure import Audited, audit, evaluate, inspect, lm_eval, must_hold
from titer.api.study import Studied, demo, study, sweep
from titer.api.train import align, finetune, repair
from titer.commands.measuring import Evaluated
from titer.commands.repair import Repaired
from titer.commands.requests import AlignRequest, AuditRequest, EvaluationRequest, FinetuneRequest, RepairRequest
from titer.commands.training import Trained
from titer.core.plugins import listed
from titer.core.plugins import shown as show
from titer.studies.request import StudyRequest

__all__ = [
    "AlignRequest",
    "AuditRequest",
    "Audited",
    "Evaluated",
    "EvaluationRequest",
    "FinetuneRequest",
    "RepairRequest",
    "Repaired",
    "Studied",
    "StudyRequest",
    "Told",
    "Trained",
    "align",
    "audit",
    "bundle",
    "card",
    "cost",
    "demo",
    "doctor",
    "evaluate",
    "finetune",
    "inspect",
    "listed",
    "lm_eval",
    "models_get",
    "must_hold",
    "prune",
    "push",
    "repair",
    "report",
    "show",
    "stored",
    "study",
    "sweep",
    "verify",
]
