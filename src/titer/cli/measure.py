"""`titer evaluate`: a model's answers to text prompts, judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.audit import Settings, made_judge
from titer.cli.detected import announce, forms
from titer.cli.options import HERE, AsJson, Asked, Dry, Prompts, Runs, Set, needed
from titer.cli.output import command_line, show_result, slug
from titer.core.errors import TiterError

if TYPE_CHECKING:
    from titer.data.sources import TextData

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
    from titer.core.config import build
    from titer.core.run import Store
    from titer.models.fetch import resolve

    chosen_judge = made_judge(judge, judge_set or [])
    chosen_judge.check()
    second, people = _second(judge, second_judge, second_judge_set or []), _labelled(labelled)
    text = _prompts(data, canary, prompts, chosen_judge.BY_ANSWER)
    checkpoint = resolve(model)
    from titer.core.memory import Memory
    from titer.models.lm import Decoding
    from titer.studies import evaluation, tuning
    from titer.studies.judging import review
    from titer.terminal import Terminal
    from titer.workbench import Model, Workbench

    chosen_attack = _attack(attack, settings)
    decoding = build(Decoding, {"max_new_tokens": max_new_tokens, "temperature": temperature}, "decoding")
    if dry_run:
        asked = {kind: len(attempts) for kind, attempts in evaluation.sets_of(text, prompts, chosen_attack).items()}
        return _plan(as_json, checkpoint.key, asked, max_new_tokens, data)
    with Terminal() as terminal:
        announce(terminal, [data])
        bench = Workbench(Store(runs, terminal.tell), terminal)
        subject = Model(checkpoint.label, checkpoint.key, checkpoint)
        verdicts, rates = evaluation.evaluate_model(bench, subject, text, chosen_judge, decoding, prompts, chosen_attack)
        how = {"judge": judge, "attack": attack or "none", **decoding.model_dump()}
        folder = runs / f"evaluate-{slug(subject.name)}-{slug(str(Path(text.name).with_suffix('')))}"
        beside = review(verdicts, rates, (judge, chosen_judge), people, second, Memory(runs / "replies"))
        page, answer = evaluation.evaluation_report(
            subject, text, verdicts, rates, command_line(), folder, how, chosen_judge.BY_ANSWER, beside.tables
        )
        if canary is not None:
            (folder / "prompts.csv").write_bytes(tuning.prompt_file(text).encode())
    judges = {name: json.loads(table.to_json(orient="records")) for name, table in beside.tables.items()}
    result = {"answer": answer, "report": str(page), "rates": json.loads(rates.to_json(orient="records")), "judges": judges}
    lines = "\n".join([evaluation.refusal_line(rates), *beside.lines, answer])
    show_result(as_json, result, f"{lines}\nReport: {page}")


def _plan(as_json: bool, model: str, asked: dict[str, int], tokens: int, data: Path | None) -> None:
    """What would run, for --dry-run."""
    cost, found = f"at most {sum(asked.values()) * tokens} new tokens", forms([data])
    show_result(as_json, {"model": model, "data": found, "prompts": asked, "cost": cost}, "\n".join([*found, f"{asked}: {cost}"]))


def _second(first: str, name: str | None, settings: list[str]) -> tuple[str, Any] | None:
    """The second judge by its name; beside the judge of refusals, where none is named, the same by phrases anywhere."""
    if name is None:
        if settings:
            raise TiterError("--second-judge-set was given without --second-judge", next_step="name the judge that the setting is for.")
        return ("refusal, anywhere", made_judge("refusal", ["where=anywhere"])) if first == "refusal" else None
    found = made_judge(name, settings)
    found.check()
    return name, found


def _labelled(file: Path | None) -> Any:
    from titer.studies.judging import read_labelled

    return None if file is None else read_labelled(file)


def _prompts(data: Path | None, canary: Path | None, count: int | None, by_answer: bool) -> TextData:
    """What is asked: --data, where a judge by answer takes rows that do not say safe or unsafe as safe; or a canary's test."""
    from titer.studies.tuning import held_out, read_data

    if canary is not None:
        if data is not None:
            raise TiterError("--data and --canary were both given", next_step="leave out one: each is what the model is asked.")
        return held_out(read_data(canary), count)
    found = read_data(needed(data), labelled=not by_answer)
    return found.model_copy(update={"rows": tuple((row[0], bool(row[1]), *row[2:]) for row in found.rows)})


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
