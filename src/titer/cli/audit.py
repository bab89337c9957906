"""`titer audit`: what tuning did to an alignment, in one report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from titer.cli.detected import announce, forms
from titer.cli.options import (
    HERE,
    AsJson,
    Bf16,
    Data,
    Dry,
    Engine,
    HowRead,
    JudgeSettings,
    People,
    Runs,
    Second,
    SecondSettings,
    System,
    Think,
    Thoughts,
    Trust,
    needed,
)
from titer.core.errors import TiterError, visible
from titer.cli.output import as_records, command_line, show_result

if TYPE_CHECKING:
    from titer.audit.ask import AuditRequest
    from titer.audit.fleet import Tune
    from titer.pipeline import ReadAs

NoBase = Annotated[bool, typer.Option("--no-base", help="The first model is the aligned one, and every other a tune of it.")]
Number = Annotated[str | None, typer.Option("--prompts", help="Ask N prompts of each set, drawn, or auto: as many as the gate needs.")]
Points = Annotated[float | None, typer.Option("--resolution", help="The change in points that --prompts auto must show.")]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        help="A limit, as 'unsafe_refused drops > 5' (points): exit status 3 where it fails, 4 where the prompts cannot resolve it; "
        "may be given again (docs/gate.md).",
    ),
]
Junit = Annotated[Path | None, typer.Option("--junit", help="Write the limits as a JUnit file too.")]
Judged = Annotated[str, typer.Option(help="Judge of the labelled prompts: a name (titer list judges) or a .py file.")]
Capability = Annotated[
    list[str] | None,
    typer.Option("--capability", help="What must not suffer, as TASK:PATH (sst2, ag_news, gsm8k, questions, choices); may be given again."),
]
OfWeights = Annotated[bool, typer.Option("--landscape", help="Move the weights too: random directions, and the way to the tuned model.")]
Mechanisms = Annotated[
    bool, typer.Option("--mechanisms", help="Probe as arXiv 2407.10264 does too: encoded prompts, null space, row space, clusters' rank.")
]
LandscapeSet = Annotated[
    list[str] | None,
    typer.Option("--landscape-set", help="A setting of the landscape as NAME=VALUE (points, directions, prompts ...); may be given again."),
]
Models = Annotated[
    list[str],
    typer.Argument(
        help="[BASE] ALIGNED [TUNED]: of two, the one before and the one after. BASE ALIGNED TUNED TUNED...: one page with a row a tune."
    ),
]
NoPrefill = Annotated[bool, typer.Option("--no-prefill", help="Leave out the unsafe prompts with the answer begun.")]
Attacked = Annotated[str | None, typer.Option("--attack", help="Ask unsafe prompts under this attack too (titer list attacks).")]
AttackSet = Annotated[list[str] | None, typer.Option("--attack-set", help="A setting of the attack as NAME=VALUE; may be given again.")]
Contexts = Annotated[bool, typer.Option("--contexts", help="Ask capability sets again behind a false and a random context.")]
TrainedOn = Annotated[
    list[str] | None,
    typer.Option(
        "--trained", help="A file that a model was trained on, as FILE or TASK:PATH: its prompts are not asked; may be given again."
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse prompts that recur, where they would be dropped and counted.")]
Control = Annotated[str | None, typer.Option("--control", help="A benign tune of the model before the last change.")]
Logs = Annotated[
    Path | None,
    typer.Option("--inspect-logs", help="Write the judged answers as logs of inspect_ai into this folder too, one a model."),
]


def audit(
    models: Models,
    data: Data = None,
    reading: HowRead = None,
    no_base: NoBase = False,
    prompts: Number = None,
    system: System = None,
    resolution: Points = None,
    fail_if: FailIf = None,
    junit: Junit = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, max=2**17, help="Default: 48, or what a judge needs (number: 256).")] = None,
    max_thinking_tokens: Thoughts = None,
    thinking: Think = "default",
    judge: Judged = "refusal",
    judge_set: JudgeSettings = None,
    second_judge: Second = None,
    second_judge_set: SecondSettings = None,
    labelled: People = None,
    capability: Capability = None,
    contexts: Contexts = False,
    no_prefill: NoPrefill = False,
    attack: Attacked = None,
    attack_set: AttackSet = None,
    trained: TrainedOn = None,
    strict: Strict = False,
    control: Control = None,
    landscape: OfWeights = False,
    landscape_set: LandscapeSet = None,
    mechanisms: Mechanisms = False,
    inspect_logs: Logs = None,
    engine: Engine = "transformers",
    bf16: Bf16 = False,
    trust_remote_code: Trust = False,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """How much safety tuning cost or gained, where in the model, and what to try."""
    from titer.core.config import filled
    from titer.models.vllm_engine import serving_of
    from titer.api.auditing import prepare
    from titer.audit.ask import AuditRequest
    from titer.pipeline import ReadAs

    order = filled(AuditRequest, AuditRequest.__dataclass_fields__, {**locals(), "data": needed(data), "prompts": _count(prompts)})
    if inspect_logs is not None:
        from titer.integrations.inspect_ai import must_be_installed

        must_be_installed()
    tunes, serving = prepare(order), serving_of(engine)
    if dry_run:
        return _priced(order, tunes, bf16, as_json)
    _audited(order, tunes, ReadAs(serving, bf16), (inspect_logs, junit), (runs, as_json))


def _count(given: str | None) -> int | Literal["auto"] | None:
    """Errors: neither a number from 1 nor auto."""
    if given is None or given == "auto":
        return given  # type: ignore[return-value]
    if not given.isascii() or not given.isdigit() or not int(given[:20]):
        raise TiterError(f"--prompts {visible(given, 40)!r}", expected="a number from 1, or auto")
    return int(given[:20])


def _priced(order: AuditRequest, tunes: list[Tune], bf16: bool, as_json: bool) -> None:
    """What would run, for --dry-run."""
    from titer.audit.cost import audit_cost
    from titer.audit.fleet import together

    said = "; ".join(line.strip() for line in forms([order.data], order.reading, "prompts"))
    ready = together(tunes)
    cost = {"data": said, **audit_cost(ready.found, ready.question, ready.settings, bf16, ready.limits)}
    cost |= {f"{one.name} is not measured": one.reason for one in tunes if one.reason}
    show_result(as_json, cost, "\n".join(f"{key}: {value}" for key, value in cost.items()))


def _audited(
    order: AuditRequest, tunes: list[Tune], reading: ReadAs, files: tuple[Path | None, Path | None], given: tuple[Path, bool]
) -> None:
    """Run what was prepared and print it; what further judges say too, where they were asked for. `files`: of inspect_ai, of JUnit."""
    from titer.api.auditing import audited
    from titer.core.run import write_text
    from titer.audit import gate
    from titer.audit.fleet import rows, together
    from titer.terminal import Terminal

    (runs, as_json), (logs, junit) = given, files
    ready = together(tunes)
    with Terminal() as terminal:
        announce(terminal, [order.data], ready.text.notes, order.reading, "prompts")
        found = audited(order, tunes, runs, terminal, command_line(), reading)
    if logs is not None:
        from titer.integrations.inspect_log import write_logs

        write_logs(found.tables["verdicts"], logs, judge=order.judge)
    lines = found.beside.lines if order.second_judge or order.labelled else []
    if junit is not None:
        write_text(junit, gate.junit(found.gate, found.answer))
    tables = {"gate": gate.as_table(found.gate)} if order.fail_if else {}
    result = {"answer": found.answer, "report": str(found.page), "notes": list(ready.left_out), "judges": as_records(found.beside.tables)}
    if found.tunes:
        lines, tables = rows(found.tunes), {**tables, "tunes": found.tables["tunes"]}
    text = "\n".join([*lines, *gate.lines(found.gate), found.answer, f"Report: {found.page}"])
    show_result(as_json, {**result, **as_records(tables)}, text)
    raise typer.Exit(found.status)
