"""`titer align`, `titer finetune` and `titer repair`: each makes a model and prints what it was made of and where it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from titer.cli.options import AsJson, Dry, command
from titer.cli.output import announce, forms, show_result
from titer.commands.requests import AlignRequest, FinetuneRequest, Place, RepairRequest


Processes = Annotated[
    int, typer.Option("--processes", min=1, help="Train with N processes on this machine, one for each GPU (docs/tune.md).")
]


@command
def align(order: AlignRequest, dry_run: Dry = False, as_json: AsJson = False, processes: Processes = 1) -> None:
    """Train a model on prompts and answers.

    --data has a column prompt and a column comply or refuse; a method that learns from preferences needs both answers.
    """
    _train(order, [order.data, order.canary], dry_run, as_json, processes)


@command
def finetune(order: FinetuneRequest, dry_run: Dry = False, as_json: AsJson = False, processes: Processes = 1) -> None:
    """Fine-tune a model as a user would, with harmful examples if you give any.

    A share of the training examples (--poison-ratio) are harmful requests with answers, or their harmless stand-in (--canary).
    """
    _train(order, [order.data, order.harmful, order.safety, order.canary], dry_run, as_json, processes)


@command
def repair(order: RepairRequest, dry_run: Dry = False, as_json: AsJson = False) -> None:
    """Repair a tuned model by editing its weights.

    titer list repairs names the repairs; most of them compare the model with other models (--read).
    """
    from titer.commands.repair import planned, repaired
    from titer.core.run import Store
    from titer.terminal import Terminal

    plan = planned(order)
    if dry_run:
        cost = plan.cost()
        sizes = ", ".join(f"{role} {size / 1e9:.3g} GB" for role, size in cost["reads"].items())
        lines = [f"{to}: {'stored already' if there else 'to write'}" for to, there in cost["folders"].items()]
        lines += [f"reads {sizes}; writes {cost['writes'] / 1e9:.3g} GB; about {cost['memory'] / 1e9:.3g} GB of memory", *plan.notes]
        return show_result(as_json, cost, "\n".join(lines))
    with Terminal() as terminal:
        made = repaired(plan, Store(Path(order.runs), terminal.tell), terminal)
    text = "\n".join([*(f"Model: {place}" for place in made.models), *made.notes, f"Next: {made.following}"])
    show_result(as_json, {"models": made.models, "notes": made.notes, "next": made.following}, text)


def _train(order: AlignRequest | FinetuneRequest, files: list[Place | None], dry_run: bool, as_json: bool, processes: int) -> None:
    """Trains the model, or with --dry-run prints what would be trained. First it prints how `files` are read. Of several processes, only
    the first prints."""
    from titer.api.train import planned, trained
    from titer.commands.training_cost import priced
    from titer.core import ranks
    from titer.core.parallel import Silent
    from titer.core.run import Store
    from titer.terminal import Terminal

    plan = planned(order)
    if not ranks.first():
        if not dry_run:
            trained(order, plan, Silent())
        return None
    if processes > 1 and not dry_run and not ranks.several():
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "titer", *sys.argv[1:]]
        os.execv(sys.executable, [sys.executable, *launch])  # noqa: S606  this same command, now in several processes
    with Terminal() as terminal:
        if dry_run:
            stands = plan.stands(Store(Path(order.runs), terminal.tell))
            line = f"{plan.key}: {plan.stage.steps} steps of {plan.stage.batch}, {'stored already' if stands else 'to run'}"
            cost = priced(plan.stage, plan.start)
            text = "\n".join(filter(None, (line, *forms(files, order.reading, plan.need), plan.text, cost)))
            return show_result(as_json, {"key": plan.key, "stands": stands, "cost": cost, **plan.about}, text)
        announce(terminal, files, plan.about.get("notes", ()), order.reading, plan.need)
        for line in plan.about.get("cut", ()):
            terminal.tell(line)
        made = trained(order, plan, terminal)
    lines = [
        f"Model: {made.model}",
        f"Training stopped early: {made.stopped}; this is the model as it was then." if made.stopped else "",
        made.text,
        f"Next: {made.following}   ({made.prompts})",
    ]
    result = {"model": str(made.model), "stopped": made.stopped, **made.about, "next": made.following}
    show_result(as_json, result, "\n".join(filter(None, lines)))
