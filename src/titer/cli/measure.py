"""`titer evaluate`: a model's answers to text prompts, judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from titer.cli.audit import Settings
from titer.cli.detected import announce, forms
from titer.cli.options import HERE, AsJson, Asked, Dry, Prompts, Runs, Set
from titer.cli.output import command_line, show_result

Second = Annotated[
    str | None, typer.Option(help="Another judge of the same answers; beside refusal its own form by phrases anywhere is the default.")
]
SecondSettings = Annotated[list[str] | None, typer.Option("--second-judge-set", help="A setting of it as NAME=VALUE.")]


def evaluate(
    model: str,
    data: Asked = None,
    canary: Annotated[
        Path | None, typer.Option("--canary", help="In place of --data: what --canary of align and finetune holds out.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Judge: a name (titer list judges) or a .py file.")] = "refusal",
    judge_set: Settings = None,
    second_judge: Second = None,
    second_judge_set: SecondSettings = None,
    labelled: Annotated[Path | None, typer.Option(help="Answers that people judged: measures the judge and corrects the rates.")] = None,
    attack: Annotated[str | None, typer.Option(help="Attack: a name (titer list attacks) or a .py file.")] = None,
    prompts: Prompts = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    settings: Set = None,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Refusal of unsafe prompts, over-refusal of safe ones, degenerate answers."""
    from titer.studies.measuring import Order, asked, evaluated, prepared

    order = Order(
        model=model,
        data=data,
        canary=canary,
        judge=judge,
        judge_set=judge_set or (),
        second_judge=second_judge,
        second_judge_set=second_judge_set or (),
        labelled=labelled,
        attack=attack,
        attack_set=settings or (),
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    ready = prepared(order)
    if dry_run:
        return _plan(as_json, ready.subject.key, asked(order, ready), max_new_tokens, data)
    from titer.core.run import Store
    from titer.terminal import Terminal
    from titer.workbench import Workbench

    with Terminal() as terminal:
        announce(terminal, [data])
        found = evaluated(Workbench(Store(runs, terminal.tell), terminal), order, ready, command_line())
    judges = {name: json.loads(table.to_json(orient="records")) for name, table in found.beside.tables.items()}
    result = {
        "answer": found.answer,
        "report": str(found.page),
        "rates": json.loads(found.rates.to_json(orient="records")),
        "judges": judges,
    }
    show_result(as_json, result, f"{found.lines}\n{found.answer}\nReport: {found.page}")


def _plan(as_json: bool, model: str, asked: dict[str, int], tokens: int, data: Path | None) -> None:
    """What would run, for --dry-run."""
    cost, found = f"at most {sum(asked.values()) * tokens} new tokens", forms([data])
    show_result(as_json, {"model": model, "data": found, "prompts": asked, "cost": cost}, "\n".join([*found, f"{asked}: {cost}"]))
