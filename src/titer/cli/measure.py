"""`titer evaluate` and `titer audit`: a model's answers to text prompts, and what its activations and weights tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.options import HERE, AsJson, Asked, Data, Dry, Prompts, Runs, Set, needed
from titer.cli.output import command_line, show_result, slug
from titer.core.errors import TiterError

if TYPE_CHECKING:
    from titer.data.sources import TextData

BY_ANSWER = ("label", "number")  # judges that compare with the row's answer: safe or unsafe need not be said


def evaluate(
    model: str,
    data: Asked = None,
    canary: Annotated[
        Path | None, typer.Option("--canary", help="In place of --data: what --canary of align and finetune holds out.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Judge: a name (titer list judges) or a .py file.")] = "refusal",
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
    from titer.core.config import build
    from titer.core.run import Store
    from titer.models.fetch import resolve

    text = _prompts(data, canary, prompts, judge)
    checkpoint = resolve(model)
    from titer.models.lm import Decoding
    from titer.studies import evaluation, tuning
    from titer.terminal import Terminal
    from titer.workbench import Model, Workbench

    chosen_judge, chosen_attack = _judge(judge), _attack(attack, settings)
    decoding = build(Decoding, {"max_new_tokens": max_new_tokens, "temperature": temperature}, "decoding")
    if dry_run:
        asked = {kind: len(attempts) for kind, attempts in evaluation.sets_of(text, prompts, chosen_attack).items()}
        cost = f"at most {sum(asked.values()) * max_new_tokens} new tokens"
        return show_result(as_json, {"model": checkpoint.key, "prompts": asked, "cost": cost}, f"{asked}: {cost}")
    with Terminal() as terminal:
        bench = Workbench(Store(runs, terminal.tell), terminal)
        subject = Model(checkpoint.label, checkpoint.key, checkpoint)
        verdicts, rates = evaluation.evaluate_model(bench, subject, text, chosen_judge, decoding, prompts, chosen_attack)
        how = {"judge": judge, "attack": attack or "none", **decoding.model_dump()}
        folder = runs / f"evaluate-{slug(subject.name)}-{slug(str(Path(text.name).with_suffix('')))}"
        page, answer = evaluation.evaluation_report(subject, text, verdicts, rates, command_line(), folder, how)
        if canary is not None:
            (folder / "prompts.csv").write_bytes(tuning.prompt_file(text).encode())
    result = {"answer": answer, "report": str(page), "rates": json.loads(rates.to_json(orient="records"))}
    show_result(as_json, result, f"{evaluation.refusal_line(rates)}\n{answer}\nReport: {page}")


def audit(
    models: Annotated[list[str], typer.Argument(help="[BASE] ALIGNED [TUNED]: one to three models.")],
    data: Data = None,
    prompts: Prompts = None,
    runs: Runs = HERE,
    dry_run: Dry = False,
    as_json: AsJson = False,
) -> None:
    """Where a model tells safe from unsafe prompts, and where tuning changed it."""
    from titer.core.run import Store
    from titer.data.sources import read_text
    from titer.models.fetch import resolve

    if len(models) > 3:
        raise TiterError(f"{len(models)} models", expected="one to three: [BASE] ALIGNED [TUNED]")
    text = read_text(needed(data))
    checkpoints = [resolve(name) for name in models]
    from titer.studies.audit import audit_report, subjects
    from titer.terminal import Terminal
    from titer.workbench import Workbench

    if dry_run:
        counts = {kind: len(text.of_class(kind == "unsafe", prompts)) for kind in ("safe", "unsafe")}
        return show_result(as_json, {"models": [c.key for c in checkpoints], "prompts": counts}, f"{counts}, one forward pass each a model")
    with Terminal() as terminal:
        bench = Workbench(Store(runs, terminal.tell), terminal)
        audited = subjects(checkpoints)
        folder = runs / f"audit-{slug(audited[-1].name)}"
        page, answer = audit_report(bench, audited, text, prompts, command_line(), folder)
    show_result(as_json, {"answer": answer, "report": str(page)}, f"{answer}\nReport: {page}")


def _prompts(data: Path | None, canary: Path | None, count: int | None, judge: str) -> TextData:
    """What is asked: --data, where a judge by answer takes rows that do not say safe or unsafe as safe; or a canary's test."""
    from titer.studies.tuning import held_out, read_data

    if canary is not None:
        if data is not None:
            raise TiterError("--data and --canary were both given", next_step="leave out one: each is what the model is asked.")
        return held_out(read_data(canary), count)
    found = read_data(needed(data), labelled=judge not in BY_ANSWER)
    return found.model_copy(update={"rows": tuple((row[0], bool(row[1]), *row[2:]) for row in found.rows)})


def _judge(name: str) -> Any:
    from titer.core.config import build
    from titer.core.plugins import plugin
    from titer.judges.base import Judge

    return build(plugin("judges", name, Judge), {}, f"judge {name}")  # type: ignore[type-abstract]


def _attack(name: str | None, settings: list[str] | None) -> tuple[str, Any] | None:
    from titer.attacks.base import Attack
    from titer.core.config import build, parse_settings
    from titer.core.plugins import plugin

    values = parse_settings(settings or [])
    if name is None:
        if values:
            raise TiterError("--set was given without --attack", next_step="name the attack that the setting is for.")
        return None
    return Path(name).stem, build(plugin("attacks", name, Attack), values, f"attack {name}")  # type: ignore[type-abstract]
