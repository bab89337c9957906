"""`titer audit`: what tuning did to an alignment, in one report."""

from __future__ import annotations

from typing import Annotated

import typer

from titer.cli.detected import announce, forms
from titer.cli.options import HERE, AsJson, Bf16, Data, Dry, Engine, Prompts, Runs, Trust, needed
from titer.cli.output import command_line, show_result

Judged = Annotated[str, typer.Option(help="Judge of the labelled prompts: a name (titer list judges) or a .py file.")]
Settings = Annotated[list[str] | None, typer.Option("--judge-set", help="A setting of the judge as NAME=VALUE; may be given again.")]
Capability = Annotated[
    list[str] | None,
    typer.Option("--capability", help="What must not suffer, as TASK:PATH (sst2, ag_news, gsm8k, choices); may be given again."),
]


def audit(
    models: Annotated[
        list[str], typer.Argument(help="[BASE] ALIGNED [TUNED]: one to three models; of two, the one before and the one after.")
    ],
    data: Data = None,
    prompts: Prompts = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 48,
    judge: Judged = "refusal",
    judge_set: Settings = None,
    capability: Capability = None,
    contexts: Annotated[bool, typer.Option("--contexts", help="Ask capability sets again behind a false and a random context.")] = False,
    trained: Annotated[
        list[str] | None,
        typer.Option(help="A file that a model was trained on, as FILE or TASK:PATH: its prompts are not asked; may be given again."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse prompts that recur, where they would be dropped and counted.")] = False,
    control: Annotated[str | None, typer.Option(help="A benign tune of the model before the last change.")] = None,
    landscape: Annotated[
        bool, typer.Option("--landscape", help="Move the weights too: random directions, and the way to the tuned model.")
    ] = False,
    engine: Engine = "transformers",
    bf16: Bf16 = False,
    trust_remote_code: Trust = False,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """How much safety tuning cost or gained, where in the model, and what to try."""
    from titer.models.fast import serving_of
    from titer.studies.audit.ask import Order, prepared
    from titer.terminal import Terminal

    order = Order(
        models=models,
        data=needed(data),
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        judge=judge,
        judge_set=judge_set or (),
        capability=capability or (),
        contexts=contexts,
        trained=trained or (),
        strict=strict,
        control=control,
        landscape=landscape,
        trust_remote_code=trust_remote_code,
    )
    ready, serving = prepared(order), serving_of(engine)
    if dry_run:
        from titer.studies.audit.cost import audit_cost

        cost = {"data": "; ".join(line.strip() for line in forms([data])), **audit_cost(ready.found, ready.question, ready.settings, bf16)}
        return show_result(as_json, cost, "\n".join(f"{key}: {value}" for key, value in cost.items()))
    from titer import api

    with Terminal() as terminal:
        announce(terminal, [data])
        found = api.audited(order, ready, runs, terminal, command_line(), api.Reading(serving, bf16))
    show_result(as_json, {"answer": found.answer, "report": str(found.page)}, f"{found.answer}\nReport: {found.page}")
