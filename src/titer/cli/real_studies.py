"""`titer study --base`: a study's parts that run on real models."""

from __future__ import annotations

from pathlib import Path

from titer.cli.options import needed
from titer.cli.output import command_line, show_result
from titer.core.errors import TiterError


def pair(
    names: tuple[str | None, str | None],
    data: Path | None,
    prompts: int | None,
    bf16: bool,
    runs: Path,
    dry: bool,
    as_json: bool,
    trusted: bool,
) -> None:
    """The mechanistic study's probes on two checkpoints."""
    from titer.core.run import Store, slug
    from titer.data.sources import read_text
    from titer.models.fetch import resolve

    given = [name for name in names if name is not None]
    if len(given) < 2:
        raise TiterError("one model of a pair", expected="both --base and --aligned")
    text = read_text(needed(data))
    found = [resolve(name, trusted) for name in given]
    from titer.studies.jain2024.pair import pair_cost, pair_report
    from titer.terminal import Terminal
    from titer.workbench import Workbench

    if dry:
        cost = pair_cost(found[0], found[1], text, prompts)
        return show_result(as_json, cost, "\n".join(f"{key}: {value}" for key, value in cost.items()))
    with Terminal() as terminal:
        bench = Workbench(Store(runs, terminal.tell), terminal, dtype="bfloat16" if bf16 else "float32")
        page, answer = pair_report(bench, found[0], found[1], text, prompts, command_line(), runs / f"jain2024-{slug(found[1].label)}")
    show_result(as_json, {"answer": answer, "report": str(page)}, f"{answer}\nReport: {page}")


def text(
    base: str | None,
    aligned: str | None,
    data: Path | None,
    scale: str,
    harmful: Path | None,
    alpha: int | None,
    prompts: int | None,
    flops: float | None,
    runs: Path,
    dry: bool,
    as_json: bool,
    trusted: bool,
) -> None:
    """Alignment by SFT and by Vaccine of one real model, a user's fine-tuning of each, what holds."""
    from titer.core.run import Store, slug
    from titer.models.fetch import resolve
    from titer.recipes.vaccine_text import text_scale

    if base is None or aligned is not None:
        raise TiterError("huang2024 aligns a base itself", next_step="give --base alone, with --data FOLDER.")
    if data is None or not data.is_dir():
        raise TiterError("no folder of data sets was given", expected="--data FOLDER, laid out as docs/real_finetuning.md says")
    changes = {name: value for name, value in (("alpha", alpha), ("prompts", prompts)) if value is not None}
    chosen = text_scale(scale).model_copy(update=changes)
    checkpoint = resolve(base, trusted)
    from titer.studies.huang2024 import text as study
    from titer.studies.huang2024.text_cost import text_cost
    from titer.studies.huang2024.text_report import text_report
    from titer.terminal import Terminal
    from titer.workbench import Model, Workbench

    model = Model(checkpoint.label, checkpoint.key, checkpoint)
    sets = study.text_sets(data, model, chosen, harmful)
    if dry:
        cost = text_cost(model, sets, chosen, flops)
        return show_result(as_json, cost, "\n".join(f"{key}: {value}" for key, value in cost.items()))
    with Terminal() as terminal:
        bench = Workbench(Store(runs, terminal.tell), terminal, chosen.save_every)
        study.made_ahead(bench, model, sets, chosen)
        found = study.text_evidence(bench, study.text_models(bench, model, sets, chosen), sets, chosen)
        page, answer = text_report(found, sets, chosen, command_line(), runs / f"huang2024-{slug(model.name)}-{chosen.name}")
    show_result(as_json, {"answer": answer, "report": str(page)}, f"{answer}\nReport: {page}")


def risk(
    base: str | None,
    aligned: str | None,
    data: Path | None,
    scale: str,
    flops: float | None,
    runs: Path,
    dry: bool,
    as_json: bool,
    trusted: bool,
) -> None:
    """The risk levels of fine-tuning on one real model."""
    from titer.core.run import Store, slug
    from titer.models.fetch import resolve
    from titer.recipes.risk_text import risk_scale

    if base is None or aligned is not None:
        raise TiterError("qi2024 aligns a base itself", next_step="give --base alone, with --data FOLDER.")
    if data is None or not data.is_dir():
        raise TiterError("no folder of data sets was given", expected="--data FOLDER, laid out as docs/real_finetuning.md says")
    chosen, checkpoint = risk_scale(scale), resolve(base, trusted)
    from titer.studies.qi2024 import text as study
    from titer.studies.qi2024.text_report import risk_cost, risk_report
    from titer.terminal import Terminal
    from titer.workbench import Model, Workbench

    model = Model(checkpoint.label, checkpoint.key, checkpoint)
    sets = study.risk_sets(data, model, chosen)
    if dry:
        cost = risk_cost(model, sets, chosen, flops)
        return show_result(as_json, cost, "\n".join(f"{key}: {value}" for key, value in cost.items()))
    with Terminal() as terminal:
        bench = Workbench(Store(runs, terminal.tell), terminal, chosen.alignment.save_every)
        found = study.risk_evidence(bench, study.risk_models(bench, model, sets, chosen), sets, chosen)
        page, answer = risk_report(found, sets, chosen, command_line(), runs / f"qi2024-{slug(model.name)}-{chosen.name}")
    show_result(as_json, {"answer": answer, "report": str(page)}, f"{answer}\nReport: {page}")
