"""Titer from Python: every command as a function; the command line prints what they return. L8.

    from titer import api
    found = api.audit("aligned", "tuned", data="prompts.csv", prompts=100)
    print(found.answer, found.page)

A model is given as a folder, BASE+ADAPTER, a name that `models_get` has fetched, or a hub id. Results are kept in the folder `runs`, and
what is there is not computed again. `progress=True` shows progress on standard error. `trust_remote_code=True` runs code that the models'
authors wrote on this machine; code of a judge's model is refused even then. `cost` says what a command would compute. Every error is a
TiterError, which says what was given, what was expected and what to do next.
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
