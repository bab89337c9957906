"""Make models: align, fine-tune as a user would, repair. L8."""

from __future__ import annotations

from pathlib import Path

from titer.api.running import asked
from titer.commands import repair as repairing
from titer.commands import training
from titer.commands.placed import check_free
from titer.commands.requests import AlignRequest, FinetuneRequest, RepairRequest
from titer.commands.training import Planned, Trained, planned_alignment, planned_finetuning
from titer.core.run import Store
from titer.pipeline import Pipeline, Reporter


def planned(order: AlignRequest | FinetuneRequest) -> Planned:
    """Checks the request and plans the training. Errors: those of `planned_alignment`, `planned_finetuning` and `check_free`."""
    plan = planned_alignment(order) if isinstance(order, AlignRequest) else planned_finetuning(order)
    check_free(_to(order), plan.key, (plan.start.path, Path(order.runs)))
    return plan


def trained(order: AlignRequest | FinetuneRequest, plan: Planned, shown: Reporter) -> Trained:
    """Trains the planned model, or finds it in the folder of runs if it was trained before."""
    return training.trained(Pipeline(Store(Path(order.runs), shown.tell), shown), plan, _to(order))


def _to(order: AlignRequest | FinetuneRequest) -> Path | None:
    return None if order.to is None else Path(order.to)


@asked(AlignRequest)
def align(order: AlignRequest, shown: Reporter, command: str) -> Trained:
    """Train a model with a method on prompts and answers. `streams`: name -> file, `reads`: role -> model. Same as `titer align`."""
    return trained(order, planned(order), shown)


@asked(FinetuneRequest)
def finetune(order: FinetuneRequest, shown: Reporter, command: str) -> Trained:
    """Fine-tune a model as its user would; a share of the examples may be answered harmful requests. Same as `titer finetune`."""
    return trained(order, planned(order), shown)


@asked(RepairRequest)
def repair(order: RepairRequest, shown: Reporter, command: str) -> repairing.Repaired:
    """Edit a tuned model's weights after training. `reads`: role -> model. Same as `titer repair`."""
    return repairing.repaired(repairing.planned(order), Store(Path(order.runs), shown.tell), shown)
