"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from titer.core.errors import TiterError

Runs = Annotated[Path, typer.Option("--runs", help="Folder of runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Say what would run and what stands already; run nothing.")]
SETS = "or NAME:FILE, a published prompt set (titer list prompt-sets), or safe:FILE, unsafe:FILE"
Data = Annotated[Path | None, typer.Option("--data", help=f"CSV, JSON, JSONL or Parquet of labelled prompts, {SETS}.")]
HowRead = Annotated[
    str | None,
    typer.Option("--reading", help="How --data is read, where several readings fit: plain, alpaca, chat, preference or unpaired."),
]
Prompts = Annotated[int | None, typer.Option("--prompts", min=1, help="Ask N prompts of each class, drawn; default: all.")]
System = Annotated[str | None, typer.Option("--system", help="A system text before every prompt: a file with it, or the text itself.")]
Think = Annotated[
    Literal["on", "off", "default"],
    typer.Option("--thinking", help="Have it think before it answers or not, by the chat template's own variable."),
]
Thoughts = Annotated[
    int | None,
    typer.Option(
        "--max-thinking-tokens",
        min=0,
        help="Room of a thought beside the answer's. Default: 1024, or as much as --max-new-tokens says.",
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="A setting as NAME=VALUE; may be given again.")]
HERE = Path("runs")
TASK_FILE = "or TASK:PATH, a task's file (TASK: sst2, ag_news, gsm8k, alpaca, persona, questions)"
Asked = Annotated[Path | None, typer.Option("--data", help=f"CSV, JSON, JSONL or Parquet of labelled prompts, {TASK_FILE}, {SETS}.")]

# of the commands that judge
JudgeSettings = Annotated[list[str] | None, typer.Option("--judge-set", help="A setting of the judge as NAME=VALUE; may be given again.")]
Second = Annotated[
    str | None, typer.Option(help="Another judge of the same answers; beside refusal its own form by phrases anywhere is the default.")
]
SecondSettings = Annotated[list[str] | None, typer.Option("--second-judge-set", help="A setting of it as NAME=VALUE.")]
People = Annotated[Path | None, typer.Option("--labelled", help="Answers that people judged: measures the judge and corrects the rates.")]

# of the commands that train
Method = Annotated[str, typer.Option(help="Method: a name (titer list methods) or a .py file.")]
Streams = Annotated[
    list[str] | None,
    typer.Option("--stream", help="A stream of the method as NAME=FILE, NAME=FILE:comply or NAME=FILE:refuse; FILE may be TASK:PATH."),
]
Reads = Annotated[list[str] | None, typer.Option("--read", help="A model that the method reads, as ROLE=MODEL; may be given again.")]
Batch = Annotated[int, typer.Option(min=1)]
Lr = Annotated[float, typer.Option(help="Peak learning rate.")]
FORMER = {"rate": "lr", "ratio": "poison-ratio"}  # names that options of align and finetune had, in scripts still
Rank = Annotated[int, typer.Option(min=0, help="LoRA rank; 0 trains every weight.")]
Alpha = Annotated[int | None, typer.Option(help="LoRA alpha; the change is scaled by alpha / rank. Default: 16.")]
Dropout = Annotated[float | None, typer.Option(help="LoRA dropout. Default: 0.")]
Continued = Annotated[bool, typer.Option("--continued", help="Train on the adapter that MODEL was made with, and not a fresh one.")]
Longest = Annotated[
    int | None,
    typer.Option(min=2, help="Cut examples to N tokens, never the whole answer. Default: rows beyond the model's window are refused."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the code that a model's author put beside its weights, on this machine, before transformers' own: "
        "it can do anything you can.",
    ),
]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Read models in bfloat16: half the memory, for a GPU.")]
Engine = Annotated[str, typer.Option(help="What writes answers: transformers, or vllm on a GPU.")]
To = Annotated[Path | None, typer.Option("--to", help="Put the model into this folder too, under a name of yours.")]
Seed = Annotated[int, typer.Option(min=0)]


def needed(data: Path | None) -> Path:
    """--data, or a message that shows the format."""
    from titer.data.formats import FORMAT

    if data is None:
        raise TiterError("no --data was given", expected=FORMAT, next_step="add --data FILE.")
    return data
