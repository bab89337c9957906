"""`titer align` and `titer finetune`: a stage from options, run through the store; what it was made of, and where it is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.detected import forms
from titer.cli.options import (
    HERE,
    TASK_FILE,
    Alpha,
    AsJson,
    Batch,
    Continued,
    Dropout,
    Dry,
    Method,
    Rank,
    Rate,
    Reads,
    Runs,
    Seed,
    Set,
    Streams,
)
from titer.cli.output import show_result
from titer.core.errors import TiterError

if TYPE_CHECKING:
    from titer.data.sources import TextData
    from titer.models.checkpoint import Checkpoint
    from titer.stage import Stage
    from titer.studies.tuning import How

Answers = Annotated[Path | None, typer.Option("--data", help=f"CSV, JSON or JSONL of prompts with answers, {TASK_FILE}.")]
File = Path | None


def align(
    model: str,
    data: Answers = None,
    canary: Annotated[File, typer.Option("--canary", help="Answered instructions, some of them marked and refused.")] = None,
    canaries: Annotated[int | None, typer.Option(min=1, help="N marked and N unmarked. Default: a third of the file.")] = None,
    method: Method = "sft",
    settings: Set = None,
    stream: Streams = None,
    read: Reads = None,
    steps: Annotated[int, typer.Option(min=1)] = 100,
    batch: Batch = 8,
    rate: Rate = 2e-5,
    lora: Rank = 0,
    alpha: Alpha = None,
    dropout: Dropout = None,
    continued: Continued = False,
    seed: Seed = 0,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Train a model with a method on prompts and answers (columns prompt, comply or refuse; both for a method of preferences)."""
    from titer.models.fetch import resolve

    text, held = _read(data), _read(canary)
    if held is None and canaries is not None:
        raise TiterError("--canaries without --canary", next_step="add --canary FILE, a file of answered instructions.")
    checkpoint = resolve(model)
    from titer.studies import tuning
    from titer.studies.align import align_stage, with_canary

    how = tuning.How(method, settings or (), stream or (), batch, rate, "cosine", lora, alpha, dropout, continued, seed, held)
    taught = with_canary(text, how, canaries) if held else None
    stage = align_stage(taught.rows, how, steps, taught.marked) if taught else align_stage(text, how, steps)
    about: dict[str, Any] = {"streams": tuning.counted(stage.streams)}
    lines = [*(forms([data, canary]) if dry_run else []), tuning.told(stage.streams)]
    if taught:
        about["left_out"] = {"data": {"in the canary file": taught.left_out}} if taught.left_out else {}
        lines += [f"left out of data: {taught.left_out} in the canary file"] if taught.left_out else []
    _train(stage, checkpoint, how, read or (), (runs, dry_run, as_json), about, "\n".join(lines), canary)


def finetune(
    model: str,
    data: Annotated[File, typer.Option("--data", help=f"The user's task: prompts with comply, {TASK_FILE}.")] = None,
    harmful: Annotated[File, typer.Option("--harmful", help="Prompts with comply, a file of your own.")] = None,
    canary: Annotated[
        File, typer.Option("--canary", help="The file that --canary of align was given, for harm: its marked ones answered.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Share of the examples that is harmful. Default: 0.1 where there is harm, else 0.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Number of examples, the harmful among them.")] = 1000,
    safety: Annotated[File, typer.Option("--safety", help="Prompts with refuse, added to the examples (safety-data mixing).")] = None,
    safety_examples: Annotated[int | None, typer.Option(min=0, help="How many of --safety. Default: every row.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all examples.")] = 20,
    batch: Batch = 5,
    rate: Rate = 1e-5,
    schedule: Annotated[str, typer.Option(help="constant or cosine, after a tenth of warm-up.")] = "cosine",
    method: Method = "sft",
    settings: Set = None,
    stream: Streams = None,
    read: Reads = None,
    lora: Rank = 0,
    alpha: Alpha = None,
    dropout: Dropout = None,
    continued: Continued = False,
    keep: Annotated[str, typer.Option(help="Steps whose weights are kept, with commas: 5,10,20.")] = "",
    seed: Seed = 0,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model as its user would, a share of the examples being harmful requests answered."""
    from titer.models.fetch import resolve

    files = {"benign": _read(data), "harmful": _read(harmful), "safety": _read(safety)}
    held = _read(canary)
    checkpoint = resolve(model)
    from titer.studies.finetune import Shares, finetune_stage, steps_of, user_mix
    from titer.studies.tuning import How

    how = How(method, settings or (), stream or (), batch, rate, schedule, lora, alpha, dropout, continued, seed, held)
    mixed = user_mix(files, Shares(examples, ratio, safety_examples), seed, held)
    stage = finetune_stage(mixed, how, epochs, steps_of(keep))
    about = {"steps": stage.steps, "counts": mixed.counts, "left_out": mixed.left_out}
    lines = [*(forms([data, harmful, safety, canary]) if dry_run else []), mixed.lines()]
    _train(stage, checkpoint, how, read or (), (runs, dry_run, as_json), about, "\n".join(lines), canary)


def _read(path: Path | None) -> TextData | None:
    from titer.studies.tuning import read_data

    return None if path is None else read_data(path)


def _train(
    stage: Stage,
    start: Checkpoint,
    how: How,
    read: list[str] | tuple[str, ...],
    given: tuple[Path, bool, bool],
    about: dict[str, Any],
    text: str,
    canary: Path | None,
) -> None:
    """Run the stage, or say what it would do; `about` and `text` are what it is made of; `canary` is the canary file."""
    from titer.core.run import Store
    from titer.studies import tuning
    from titer.terminal import Terminal
    from titer.workbench import Workbench

    runs, dry, as_json = given
    reads = tuning.models_read(stage.method, how, read)
    tuning.check_adapter(stage, start)
    tuning.check_window(stage.streams, start)
    with Terminal() as terminal:
        store = Store(runs, terminal.tell)
        key = stage.key(start.key, {role: one.key for role, one in reads.items()})
        if dry:
            stands = store.has("stages", key)
            line = f"{key}: {stage.steps} steps of {stage.batch}, {'stands' if stands else 'to run'}"
            return show_result(as_json, {"key": key, "stands": stands, **about}, "\n".join(filter(None, (line, text))))
        made = Workbench(store, terminal).model(stage, tuning.as_model(start), stage.name, reads=reads)
    early, place = tuning.stopped(made), str(made.checkpoint.path)
    following, prompts = (
        f"titer evaluate {shlex.quote(place)} --data PROMPTS.csv",
        "prompts labelled safe or unsafe, none of them trained on",
    )
    if canary is not None:
        following, prompts = f"titer evaluate {shlex.quote(place)} --canary {shlex.quote(str(canary))}", "a third of the file is held out"
    lines = [
        f"Model: {place}",
        f"Training stopped early: {early}; this is the model as it was then." if early else "",
        text,
        f"Next: {following}   ({prompts})",
    ]
    result = {"model": place, "stopped": early, **about, "next": following}
    show_result(as_json, result, "\n".join(filter(None, lines)))
