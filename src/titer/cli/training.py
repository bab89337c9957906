"""`titer align` and `titer finetune`: a stage from options, run through the store; what it was made of, and where it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titer.cli.detected import announce, forms
from titer.cli.options import (
    HERE,
    TASK_FILE,
    Alpha,
    AsJson,
    Batch,
    Continued,
    Dropout,
    Dry,
    HowRead,
    Longest,
    Lr,
    Method,
    Rank,
    Reads,
    Runs,
    Seed,
    Set,
    Streams,
    To,
    Trust,
)
from titer.cli.output import show_result

if TYPE_CHECKING:
    from titer.commands.training import Planned

Answers = Annotated[Path | None, typer.Option("--data", help=f"CSV, JSON or JSONL of prompts with answers, {TASK_FILE}.")]
File = Path | None


def align(
    model: str,
    data: Answers = None,
    reading: HowRead = None,
    canary: Annotated[File, typer.Option("--canary", help="Answered instructions, some of them marked and refused.")] = None,
    canaries: Annotated[int | None, typer.Option(min=1, help="N marked and N unmarked. Default: a third of the file.")] = None,
    method: Method = "sft",
    settings: Set = None,
    stream: Streams = None,
    read: Reads = None,
    steps: Annotated[int, typer.Option(min=1)] = 100,
    batch: Batch = 8,
    lr: Lr = 2e-5,
    lora: Rank = 0,
    alpha: Alpha = None,
    dropout: Dropout = None,
    continued: Continued = False,
    longest: Longest = None,
    to: To = None,
    seed: Seed = 0,
    trust_remote_code: Trust = False,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Train a model with a method on prompts and answers (columns prompt, comply or refuse; both for a method of preferences)."""
    from titer.commands.training import AlignRequest, planned_alignment
    from titer.commands.tuning import TrainConfig

    how = TrainConfig(method, settings or (), stream or (), batch, lr, "cosine", lora, alpha, dropout, continued, seed)
    order = AlignRequest(model, how, data, canary, canaries, steps, read or (), longest, trust_remote_code, reading)
    _train(planned_alignment(order), [data, canary], reading, to, (runs, dry_run, as_json))


def finetune(
    model: str,
    data: Annotated[File, typer.Option("--data", help=f"The user's task: prompts with comply, {TASK_FILE}.")] = None,
    reading: HowRead = None,
    harmful: Annotated[File, typer.Option("--harmful", help="Prompts with comply, a file of your own.")] = None,
    canary: Annotated[
        File, typer.Option("--canary", help="The file that --canary of align was given, for harm: its marked ones answered.")
    ] = None,
    poison_ratio: Annotated[
        float | None, typer.Option(help="Share of the examples that is harmful. Default: 0.1 where there is harm, else 0.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Number of examples, the harmful among them.")] = 1000,
    safety: Annotated[File, typer.Option("--safety", help="Prompts with refuse, added to the examples (safety-data mixing).")] = None,
    safety_examples: Annotated[int | None, typer.Option(min=0, help="How many of --safety. Default: every row.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all examples.")] = 20,
    batch: Batch = 5,
    lr: Lr = 1e-5,
    schedule: Annotated[str, typer.Option(help="constant or cosine, after a tenth of warm-up.")] = "cosine",
    method: Method = "sft",
    settings: Set = None,
    stream: Streams = None,
    read: Reads = None,
    lora: Rank = 0,
    alpha: Alpha = None,
    dropout: Dropout = None,
    continued: Continued = False,
    longest: Longest = None,
    keep: Annotated[str, typer.Option(help="Steps whose weights are kept, with commas: 5,10,20.")] = "",
    to: To = None,
    seed: Seed = 0,
    trust_remote_code: Trust = False,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model as its user would, a share of the examples being harmful requests answered."""
    from titer.commands.finetune import MixtureSpec
    from titer.commands.training import FinetuneRequest, planned_finetuning
    from titer.commands.tuning import TrainConfig

    how = TrainConfig(method, settings or (), stream or (), batch, lr, schedule, lora, alpha, dropout, continued, seed)
    files = {"benign": data, "harmful": harmful, "safety": safety}
    shares = MixtureSpec(examples, poison_ratio, safety_examples)
    order = FinetuneRequest(model, how, files, canary, shares, epochs, keep, read or (), longest, trust_remote_code, reading)
    _train(planned_finetuning(order), [data, harmful, safety, canary], reading, to, (runs, dry_run, as_json))


def _train(plan: Planned, files: list[File], reading: str | None, to: Path | None, given: tuple[Path, bool, bool]) -> None:
    """Run the stage, or say what it would do; how `files` are read is shown before."""
    from titer.core.run import Store
    from titer.commands.training import check_free, trained
    from titer.terminal import Terminal
    from titer.pipeline import Pipeline

    runs, dry, as_json = given
    check_free(to, plan, runs)
    with Terminal() as terminal:
        store = Store(runs, terminal.tell)
        if dry:
            stands = plan.stands(store)
            line = f"{plan.key}: {plan.stage.steps} steps of {plan.stage.batch}, {'stands' if stands else 'to run'}"
            told = "\n".join(filter(None, (line, *forms(files, reading, plan.need), plan.text)))
            return show_result(as_json, {"key": plan.key, "stands": stands, **plan.about}, told)
        announce(terminal, files, plan.about.get("notes", ()), reading, plan.need)
        made = trained(Pipeline(store, terminal), plan, to)
    lines = [
        f"Model: {made.model}",
        f"Training stopped early: {made.stopped}; this is the model as it was then." if made.stopped else "",
        made.text,
        f"Next: {made.following}   ({made.prompts})",
    ]
    result = {"model": str(made.model), "stopped": made.stopped, **made.about, "next": made.following}
    show_result(as_json, result, "\n".join(filter(None, lines)))
