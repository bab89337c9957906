"""`titer audit`: what tuning did to an alignment, in one report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.detected import announce, forms
from titer.cli.options import HERE, AsJson, Data, Dry, Prompts, Runs, needed
from titer.cli.output import command_line, show_result, slug
from titer.core.errors import TiterError

if TYPE_CHECKING:
    from titer.data.sources import TextData
    from titer.studies.audit.study import Question

Judged = Annotated[str, typer.Option(help="Judge of the labelled prompts: a name (titer list judges) or a .py file.")]
Settings = Annotated[list[str] | None, typer.Option("--judge-set", help="A setting of the judge as NAME=VALUE; may be given again.")]
Capability = Annotated[
    list[str] | None,
    typer.Option("--capability", help="A task that must not suffer, as TASK:PATH (sst2, ag_news, gsm8k); may be given again."),
]
BY_TASK = {"sst2": "label", "ag_news": "label", "gsm8k": "number"}


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
    trained: Annotated[
        list[str] | None,
        typer.Option(help="A file that a model was trained on, as FILE or TASK:PATH: its prompts are not asked; may be given again."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse prompts that recur, where they would be dropped and counted.")] = False,
    control: Annotated[str | None, typer.Option(help="A benign tune of the model before the last change.")] = None,
    landscape: Annotated[
        bool, typer.Option("--landscape", help="Move the weights too: random directions, and the way to the tuned model.")
    ] = False,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """How much safety tuning cost or gained, where in the model, and what to try."""
    from titer.data.sources import read_text
    from titer.models.fetch import resolve

    text, recurring = _apart(read_text(needed(data)), trained or [], strict)
    checkpoints = [resolve(name) for name in models]
    from titer.core.run import Store
    from titer.studies.audit.cost import audit_cost
    from titer.studies.audit.report import audit_report
    from titer.studies.audit.roles import audited
    from titer.studies.audit.study import measured
    from titer.studies.landscape import Landscape
    from titer.terminal import Terminal
    from titer.workbench import Workbench

    found = audited(checkpoints, resolve(control) if control else None)
    asked = _asked(text, prompts, max_new_tokens, (judge, judge_set or []), capability or [])
    asked.judge.check()
    settings = Landscape() if landscape else None
    if dry_run:
        cost = {"data": "; ".join(line.strip() for line in forms([data])), **audit_cost(found, asked, settings)}
        return show_result(as_json, cost, "\n".join(f"{key}: {value}" for key, value in cost.items()))
    with Terminal() as terminal:
        announce(terminal, [data])
        bench = Workbench(Store(runs, terminal.tell), terminal)
        findings = measured(bench, found, asked, settings)
        folder = runs / f"audit-{slug((found.last.after if found.last else found.models[0]).name)}"
        how: dict[str, object] = {"judge": f"{judge} {asked.judge.model_dump_json()}"}
        page, answer = audit_report(found, asked, findings, text, how, command_line(), folder, recurring)
    show_result(as_json, {"answer": answer, "report": str(page)}, f"{answer}\nReport: {page}")


def _apart(text: TextData, trained: list[str], strict: bool) -> tuple[TextData, list[str]]:
    """The prompts that stand in no training file, and what was left out, in words."""
    from titer.data.overlap import apart
    from titer.studies.tuning import read_data

    sets = {f"trained: {place}": read_data(place) for place in trained}
    found = apart({**sets, "prompts": text}, strict)
    told = [f"{text.dropped} repeated prompts of {text.name} were left out"] if text.dropped else []
    told += [one.line() for one in found.recurring if one.loser == "prompts"]
    return found.sets["prompts"], told


def _asked(text: TextData, prompts: int | None, tokens: int, judge: tuple[str, list[str]], capability: list[str]) -> Question:
    from titer.models.lm import Decoding
    from titer.studies.audit.study import Question

    sets: dict[str, tuple[Any, Any]] = {}
    for one in capability:
        task, _, place = one.partition(":")
        if task not in BY_TASK or not place:
            raise TiterError(f"--capability {one!r}", expected=f"TASK:PATH, TASK one of {', '.join(BY_TASK)}")
        from titer.data.tasks import task as read_task

        sets[task] = (read_task(task, place).of_class(False, prompts), made_judge(BY_TASK[task], []))
    return Question(text.of_class(False, prompts), text.of_class(True, prompts), made_judge(*judge), sets, Decoding(max_new_tokens=tokens))


def made_judge(name: str, settings: list[str]) -> Any:
    """A judge by its name, with its settings. Errors: an unknown name or setting."""
    from titer.core.config import build, parse_settings
    from titer.core.plugins import plugin
    from titer.judges.base import Judge

    return build(plugin("judges", name, Judge), parse_settings(settings), f"judge {name}")  # type: ignore[type-abstract]
